"""The benchmark of retrieval across kinds of content: hits and chance by hand, held-out groups, and planted items."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from media import picture

from experiments.bench.media import benchmark
from experiments.bench.media.benchmark import Direction, Items, changed, directions
from experiments.config import RunConfig
from features.content.encoders.images import SIDE, prepare
from features.content.parts import Limits
from features.content.spaces import Embedded, SpaceKey, unit
from features.errors import ConfigError
from features.progress import StartProgress
from recsys.config import AlignmentConfig
from recsys.content import content_space


def config(**encoder: Any) -> RunConfig:
    data = {"source": "folder", "path": "x", "events": {"positive": {"click": None}}}
    alignment = {"nested": [4, 8], "steps": 0, "passes": 0}  # the closed form
    settings = {"name": "t", "data": data, "alignment": alignment, "encoder": {"kind": "builtin"} | encoder}
    return RunConfig.model_validate(settings)


def test_hits_precision_and_chance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "K", 2)
    scores = np.array([[0.9, 0.1, 0.5, 0.0], [-np.inf, 0.1, 0.5, 0.3]])
    right = np.array([[False, True, True, True], [True, True, False, False]])
    found = Direction(np.array([0, 1]), scores, right)
    assert found.hits.tolist() == [1, 0]  # items 0 and 2; items 2 and 3
    assert found.precision.tolist() == [0.5, 0]
    hits, precision = found.chance
    # three of four are right: two drawn are never both wrong. One of three candidates is right: two are drawn
    assert hits.tolist() == pytest.approx([1, 2 / 3])
    assert precision.tolist() == pytest.approx([3 / 4, 1 / 3])


def test_codes_and_what_is_held_out_together() -> None:
    titles = benchmark._codes(pl.Series(["b", "a", None, "a", None, "c"]))
    assert titles[1] == titles[3]
    assert len({*titles.tolist()}) == 5
    sounds = benchmark._codes(pl.Series([None, None, "x", "x", None, None], dtype=pl.String))
    group = benchmark._together(titles, sounds)
    assert group[1] == group[2] == group[3]  # 1 and 3 by title, 2 and 3 by sound
    assert sorted({*group.tolist()}) == [0, 1, 2, 3]


def test_a_changed_picture_is_mirrored_and_has_no_margin() -> None:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2] = 200  # the left half is light, and red at the border
    pixels[:, :22] = [255, 0, 0]
    data = picture(pixels, "PNG")
    whole, other = prepare(data, Limits()), changed(data, Limits())
    assert whole.shape == other.shape == (1, SIDE, SIDE, 3)
    assert other[0, :, : SIDE // 2 - 2].max() == 0
    assert (other[0, :, SIDE // 2 + 2 :] == 200).all()


SPACES = {name: SpaceKey(name, "1", 8) for name in ("text", "image", "sound")}


def planted(n: int = 120, *, seed: int = 0, noise: float = 0.1) -> Items:
    """n items, each kind a linear view of one hidden vector, with noise; two items share a title, every third has a
    sound, and every sixth is an animal."""
    rng = np.random.default_rng(seed)
    hidden = np.repeat(rng.normal(size=(n // 2, 8)), 2, axis=0)
    views = {name: rng.normal(size=(8, 8)) for name in SPACES}

    def view(name: str, present: Any) -> Embedded:
        shown = hidden @ views[name] + noise * rng.normal(size=(n, 8))
        return Embedded(SPACES[name], unit(shown.astype(np.float32)) * present[:, None], present)

    rows = np.arange(n)
    everything = np.ones(n, dtype=np.bool_)
    channels = {name: view(name, everything) for name in ("text", "image")} | {"title": view("text", everything)}
    channels["sound"] = view("sound", rows % 3 == 0)
    queries = {name: view("text", everything) for name in ("title", "German")}
    queries["changed picture"] = view("image", everything)
    titles = rows // 2
    return Items(channels, queries, titles, rows, titles, titles, rows % 6 == 0)


def test_directions_on_planted_items() -> None:
    items, held = planted(), np.arange(120) < 20
    found = directions(items, held, config())
    assert {name: direction.rows.tolist() for name, direction in found.items()} == {
        "title to picture": list(range(20)),
        "German words to picture": list(range(20)),
        "changed picture to the picture": list(range(20)),
        "picture to its like": list(range(20)),
        "sound to its item": [0, 3, 6, 9, 12, 15, 18],
        "animal's sound to its item": [0, 6, 12, 18],
    }
    like = found["picture to its like"]
    assert np.isneginf(like.scores[np.arange(20), np.arange(20)]).all()
    assert np.isfinite(like.scores).sum() == 20 * 119
    for name, direction in found.items():
        assert direction.hits.mean() > direction.chance[0].mean() + 0.3, name
    right = found["title to picture"].right
    assert right.sum(1).tolist() == [2] * 20
    assert found["changed picture to the picture"].right.sum(1).tolist() == [1] * 20


def test_the_space_is_fitted_without_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    items, held = planted(), np.arange(120) % 3 == 1
    seen: list[int] = []

    def fit(
        channels: Mapping[str, Embedded],
        config: AlignmentConfig,
        *,
        seed: int,
        progress: StartProgress | None = None,
    ) -> Any:
        seen.append(len(channels["image"].vectors))
        assert np.array_equal(channels["image"].vectors, items.channels["image"].vectors[~held])
        return content_space.fit_content_space(channels, config, seed=seed)

    monkeypatch.setattr(benchmark, "fit_content_space", fit)
    directions(items, held, config())
    assert seen == [80]


def test_a_run_reports_each_direction_beside_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "read", lambda settings: (planted(240), "d"))
    monkeypatch.setattr(benchmark, "load_config", lambda path: config())
    result = benchmark.run(config="any.yaml")
    figures = result.figures
    assert (figures["items"], figures["folds"], figures["data"], len(figures["split"])) == (240, 5, "d", 16)
    assert figures["title to picture"]["queries"] == 240  # each item is held out once
    assert figures["sound to its item"]["queries"] == 80
    assert figures["title to picture"]["R@10 by chance"] == pytest.approx(1 - (230 * 229) / (240 * 239), abs=1e-4)
    assert figures["changed picture to the picture"]["P@10 by chance"] == pytest.approx(1 / 240, abs=1e-4)
    assert len(result.bars) == 6
    assert all(bar.holds and (bar.op, bar.bar) == (">", 0.0) for bar in result.bars)
    assert benchmark.run(short=True).figures["folds"] == 1


@pytest.mark.parametrize("encoder", [{"without": ["sound"]}, None])
def test_other_encoders_are_refused(encoder: dict[str, Any] | None) -> None:
    settings = config(**encoder) if encoder else config().model_copy(update={"encoder": None})
    with pytest.raises(ConfigError, match="bench media needs all built-in encoders"):
        benchmark.read(settings)
