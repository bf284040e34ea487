"""The benchmarks of baselines and of encoding: what they read, what they time, and their bars."""

from pathlib import Path
from typing import Any

import pytest

from experiments.bench import baselines, encode
from experiments.bench.baselines import read_sequences
from features.errors import SourceError


def write(folder: Path, text: str) -> Path:
    path = folder / "sequences" / "Beauty.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_sequences_by_hand(tmp_path: Path) -> None:
    events = read_sequences(write(tmp_path, "7 30 10 30\n\n9 20\n"))
    assert (events.n_users, events.n_items) == (2, 3)
    assert events.users.tolist() == [0, 0, 0, 1]
    assert events.times.tolist() == [0, 1, 2, 0]  # positions in the line
    first, second, third, fourth = events.items.tolist()
    assert first == third
    assert {first, second, fourth} == {0, 1, 2}
    assert events.positive.all()
    assert events.seen.all()
    with pytest.raises(SourceError, match="no such file"):
        read_sequences(tmp_path / "none.txt")


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """Thirty users take eight of twelve items in a circle; the next item is certain."""
    lines = [f"{user} " + " ".join(str((user + step) % 12) for step in range(8)) for user in range(30)]
    write(tmp_path, "\n".join(lines))
    return tmp_path


def test_a_short_run_judges_the_models_with_bars(sequences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_DATA", str(sequences))
    result = baselines.run(short=True)
    figures = result.figures
    assert (figures["test_users"], figures["items"]) == (30, 12)
    for name, (hr, ndcg) in {
        "item-knn + recency": (0.0716, 0.0434),
        "ease + recency": (0.0749, 0.0445),
    }.items():
        assert figures[f"{name} hr_at_10"] == 1  # at most five of the twelve items are left
        assert 0.5 < figures[f"{name} ndcg_at_10"] <= 1
        assert figures[f"{name} hr_at_10 reference"] == hr
        assert figures[f"{name} ndcg_at_10 reference"] == ndcg
        assert figures[f"{name} fit_seconds"] >= 0
        assert figures[f"{name} recommend_seconds"] >= 0
    assert [bar.name for bar in result.bars] == [
        "item-knn + recency hr_at_10, relative distance from 0.0716",
        "item-knn + recency ndcg_at_10, relative distance from 0.0434",
        "ease + recency hr_at_10, relative distance from 0.0749",
        "ease + recency ndcg_at_10, relative distance from 0.0445",
    ]
    assert result.bars[0].value == pytest.approx(1 / 0.0716 - 1)
    assert {(bar.op, bar.bar) for bar in result.bars} == {("<=", 0.02)}
    assert not any(name.startswith("popular") for name in figures)


def test_a_full_run_judges_all_models(sequences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_DATA", raising=False)
    fits = dict.fromkeys(baselines.FITS, baselines.FITS["popular"])  # the models themselves have other tests
    monkeypatch.setattr(baselines, "FITS", fits)
    figures = baselines.run(data=str(sequences)).figures
    judged = [name.removesuffix(" hr_at_10") for name in figures if name.endswith(" hr_at_10")]
    assert judged == ["item-knn + recency", "ease + recency", "item-knn", "popular", "ease", "als"]
    references = {
        name.split(" hr")[0]: value for name, value in figures.items() if name.endswith("hr_at_10 reference")
    }
    assert references == {
        "item-knn + recency": 0.0716,
        "ease + recency": 0.0749,
        "item-knn": 0.0634,
        "ease": 0.0670,
        "als": 0.0601,
    }
    with pytest.raises(SourceError, match="set --data or RECSYS_DATA"):
        baselines.run()


# --- encoding


def test_rounds_alternate_and_the_first_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], list[str]()
    monkeypatch.setattr(encode.time, "perf_counter", lambda: clock[0])
    durations = {"piped": iter([100, 1, 2, 3, 4, 5]), "bare": iter([200, 6, 6, 7, 9, 9])}

    def work(name: str) -> Any:
        def call() -> None:
            calls.append(name)
            clock[0] += next(durations[name])

        return call

    assert encode._alternate(work("piped"), work("bare")) == (3, 7)
    assert calls == ["piped", "bare"] * 6


def test_the_bare_pass_gets_batches_in_order() -> None:
    bare: Any = encode._bare(lambda batch: list(batch), list("abcde"), 2)  # type: ignore[arg-type]
    assert bare() == [["a", "b"], ["c", "d"], ["e"]]
    assert bare() == [["a", "b"], ["c", "d"], ["e"]]


def test_encoding_needs_a_folder(tmp_path: Path) -> None:
    for folder in (None, str(tmp_path)):
        with pytest.raises(SourceError, match=r"needs --data DIR with captions\.csv"):
            encode.run(data=folder)
