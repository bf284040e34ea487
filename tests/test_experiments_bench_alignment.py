"""The benchmark of alignment: ranks by hand, folds, and a run on photographs whose right answers are planted."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from experiments.bench import alignment
from experiments.bench.alignment import DIRECTIONS, AlignedVectors, CaptionedImages, ranks
from features.content.spaces import Embedded, SpaceKey, unit
from features.errors import ConfigError, SourceError
from recsys.config import AlignmentConfig

X, Y, Z = np.eye(3, dtype=np.float32)
SPACES = {name: SpaceKey(name, "1", 8) for name in ("text", "image", "speech")}


def photographs(n: int, *, seed: int = 0, noise: float = 0.3) -> CaptionedImages:
    """n photographs with two captions each: three linear views of one hidden vector, with noise."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 8))
    views = np.random.default_rng(99).normal(size=(3, 8, 8))  # the same for all seeds

    def view(number: int, *shape: int) -> Any:
        shown = hidden.reshape(n, *(1 for _ in shape), 8) @ views[number]
        return unit((shown + noise * rng.normal(size=(n, *shape, 8))).astype(np.float32))

    return CaptionedImages(view(0, 2), view(1), view(2), SPACES)


def test_ranks_by_hand() -> None:
    text = np.array([[X, Y], [Y, Z]])  # two photographs with two captions each
    image = np.array([X, Y])
    speech = np.array([Y, Z])
    found = ranks(AlignedVectors(text, image, speech))
    assert set(found) == set(DIRECTIONS)
    # captions of photograph 0: x finds image 0 first; y finds image 1 first. Of 1: y finds image 1, z ties both
    assert found["text to image"].tolist() == [[1, 2], [1, 1.5]]
    # image x: its best caption x is alone at the top. Image y: its best caption y ties with y of photograph 0
    assert found["image to text"].tolist() == [1, 1.5]
    # speech y: its best caption y ties with y of photograph 1. Speech z: z is alone
    assert found["speech to text"].tolist() == [1.5, 1]
    # speech y is nearest to image 1; speech z ties both
    assert found["speech to image"].tolist() == [2, 1.5]
    # x + y ties both; y + y is nearest to 1; y + z is nearest to 1; z + z ties both
    assert found["text+speech to image"].tolist() == [[1.5, 2], [1, 1.5]]


def test_hits_are_shares_of_the_queries_of_a_photograph() -> None:
    assert alignment._hits(np.array([[1, 2], [2, 1.5], [1, 1]]), 1).tolist() == [0.5, 0, 1]
    assert alignment._hits(np.array([10, 10.5, 11]), 10).tolist() == [1, 0, 0]


def test_ridge_finds_the_map_between_linear_views() -> None:
    fit, held = photographs(60, noise=0.0), photographs(20, seed=1, noise=0.0)
    found = alignment._ridge(fit, held)
    assert set(found) == set(DIRECTIONS)
    assert found["speech to text"].shape == (20,)
    assert found["text to image"].shape == (20, 2)
    assert all(np.median(rank) < 3 for rank in found.values())  # of 20


def test_five_folds_by_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = photographs(12)
    folders = []

    def read(folder: Path) -> CaptionedImages:
        folders.append(folder)
        return whole

    monkeypatch.setattr(alignment, "read", read)
    folds = alignment._folds("d", None, None, short=False)
    assert [(len(fit), len(held)) for fit, held in folds] == [(9, 3), (9, 3), (10, 2), (10, 2), (10, 2)]
    judged = np.concatenate([held.image for _, held in folds])
    assert sorted(map(tuple, judged.tolist())) == sorted(map(tuple, whole.image.tolist()))  # each photograph once
    for fit, held in folds:
        assert not {*map(tuple, fit.image.tolist())} & {*map(tuple, held.image.tolist())}
    assert len(alignment._folds("d", None, None, short=True)) == 1
    assert len(alignment._folds(None, "a", "b", short=False)) == 1
    assert folders == [Path("d"), Path("d"), Path("a"), Path("b")]


def test_a_run_on_planted_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"a": photographs(60), "b": photographs(30, seed=1)}
    monkeypatch.setattr(alignment, "read", lambda folder: sets[str(folder)])
    monkeypatch.setattr(alignment, "AlignmentConfig", lambda: AlignmentConfig(steps=0, passes=0))  # the closed form
    result = alignment.run(train="a", test="b")
    assert (result.figures["photographs"], result.figures["folds"]) == (30, 1)
    for direction in DIRECTIONS:
        low, high = (result.figures[f"{direction} R@{k}"]["mean"] for k in (1, 10))
        assert 0 <= low <= high
        assert high > 10 / 30  # better than by chance
        assert result.figures[f"{direction} R@10 at 64 dimensions"] == round(high, 4)  # there are only eight
    kept = [bar for bar in result.bars if "kept" in bar.name]
    assert [(bar.op, bar.bar, bar.value) for bar in kept] == [(">=", 0.97, 1.0)] * 5
    low_ends = [bar for bar in result.bars if "low end" in bar.name]
    assert len(low_ends) == 2 * 5 + 2 * 2
    assert {(bar.op, bar.bar) for bar in low_ends} == {(">", 0.0)}


@pytest.mark.parametrize("options", [{}, {"data": "d", "train": "t"}, {"train": "t"}, {"test": "t"}])
def test_a_run_needs_one_folder_or_two(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="needs --data DIR, or --train DIR --test DIR"):
        alignment.run(**options)  # type: ignore[arg-type]


def write(folder: Path, captions: list[tuple[str, str]]) -> Path:
    pl.DataFrame(captions, schema=["image", "caption"], orient="row").write_csv(folder / "captions.csv")
    return folder


def test_a_folder_is_read_in_the_order_of_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [("b.jpg", "one"), ("a.jpg", "two"), ("b.jpg", "three"), ("a.jpg", "four")])
    asked: dict[str, list[Any]] = {}

    def vectors(contents: list[Any], name: str, encoder: Any, limits: Any) -> Embedded:
        asked[name] = [content.parts[0] for content in contents]
        rows = np.arange(len(contents), dtype=np.float32)[:, None] * [1.0, 0.0]
        return Embedded(SpaceKey(name, "1", 2), rows.astype(np.float32), np.ones(len(contents), np.bool_))

    monkeypatch.setattr(alignment, "_vectors", vectors)
    monkeypatch.setattr(alignment, "builtin_encoders", lambda *_: {"text": None, "image": None, "speech": None})
    found = alignment.read(tmp_path)
    assert [part.text for part in asked["text"]] == ["one", "three", "two", "four"]
    assert [part.source for part in asked["image"]] == [tmp_path / "images" / name for name in ("b.jpg", "a.jpg")]
    assert [part.source for part in asked["speech"]] == [tmp_path / "audio" / name for name in ("b.ogg", "a.ogg")]
    assert found.text[:, :, 0].tolist() == [[0, 1], [2, 3]]
    assert len(found) == 2
    assert {name: key.model for name, key in found.spaces.items()} == {name: name for name in SPACES}
    assert found.take(np.array([1])).text[:, :, 0].tolist() == [[2, 3]]


def test_folders_of_another_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no captions\.csv"):
        alignment.read(tmp_path)
    write(tmp_path, [("a.jpg", "one"), ("a.jpg", "two"), ("b.jpg", "three")])
    with pytest.raises(SourceError, match=r"photographs have \[1, 2\] captions"):
        alignment.read(tmp_path)
