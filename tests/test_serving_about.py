"""Answers that pages are made from: reactions, filters, likes of a user, sounds and videos of items."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from media import sound, video
from service_harness import service_harness
from toy_service import ToyShelf, toy_bundle

from features.catalog import Catalog
from features.ids import IdMap
from features.schema import EventRules
from recsys.retrieval.filters import Choices
from serving.routes.pages.about import reactions
from serving.routes.people.read import likes


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"positive": {"rating": 3.5}}, (("rating", 3.5), ("rating", 1.0), ("not_interested", None))),
        ({"positive": {"star": 1.0}, "seen": ["star"]}, (("star", 1.0), ("star", 0.5), None)),
        (
            {"positive": {"buy": None}, "seen": ["buy", "not_interested"]},
            (("buy", None), None, ("not_interested", None)),
        ),
        ({"positive": {"score": 0.0}}, (("score", 0.0), None, ("not_interested", None))),
    ],
)
def test_reactions_are_what_the_rules_can_tell_apart(
    rules: dict[str, object], expected: tuple[tuple[str, float | None] | None, ...]
) -> None:
    parsed = EventRules.model_validate(rules)
    found = reactions(parsed)
    given = [None if each is None else (each["event"], each["value"]) for each in found.values()]
    assert (list(found), given) == (["like", "dislike", "not_interested"], list(expected))
    minimum = parsed.positive[found["like"]["event"]]
    if found["dislike"] is not None:
        assert minimum is not None
        assert found["dislike"]["value"] < minimum


def catalog(categories: list[list[str]], **columns: list[Any]) -> Catalog:
    n = len(categories)
    ids = IdMap(tuple(f"i{row}" for row in range(n)))
    frame = pl.DataFrame(
        {"item_id": ids.ids, "categories": categories, "title": [None] * n, "description": [None] * n}
    )
    usual: dict[str, list[Any]] = {"price": [None] * n, "available": [True] * n, "published_at": [None] * n}
    frame = frame.with_columns(pl.Series(name, values) for name, values in (usual | columns).items())
    frame = frame.with_columns(
        pl.col("published_at").cast(pl.Datetime("us", "UTC")), pl.col("price").cast(pl.Float64)
    )
    return Catalog.of(frame, ids, np.zeros((n, 1), np.float32), np.zeros(n, dtype=bool))


def test_what_filters_can_choose_from() -> None:
    items = catalog(
        [["b", "a"], ["b"], ["c"], ["z"]],
        price=[2.5, None, 9.0, 99.0],
        available=[True, True, True, False],
        brand=["x", "y", "y", "w"],
        tags=[["new"], ["new", "old"], [], ["gone"]],
        adult=[True, False, True, None],
        code=[1, 2, 3, 4],
        same=["s", "s", "s", "t"],
    )
    declared = ("brand", "tags", "adult", "code", "same", "missing")
    assert Choices.of(items, declared) == Choices(
        categories=("b", "a", "c"),  # the most frequent first; z is of an item that is not available
        price=(2.5, 9.0),
        columns={"brand": ("y", "x"), "tags": ("new", "old"), "adult": (True, False)},
    )


def test_a_column_of_many_texts_is_no_choice() -> None:
    for n, offered in ((50, True), (51, False)):
        items = catalog([["a"]] * n, brand=[f"b{row}" for row in range(n)])
        assert ("brand" in Choices.of(items, ("brand",)).columns) == offered


def test_likes_are_the_categories_that_tell_a_user_apart() -> None:
    # of 12 items, all are "every", 6 "half", 3 "few", 1 "one"
    items = catalog(
        [["every"] + ["half"] * (row < 6) + ["few"] * (row < 3) + ["one"] * (row == 0) for row in range(12)]
    )
    # of items 0, 1, 2: few 3 ln(1 / (3/12)) = 4.2, half 3 ln 2 = 2.1, every 0, one only once
    assert likes(items, np.array([0, 1, 2])) == ["few", "half"]
    assert likes(items, np.array([0, 0, 0])) == []  # one item, however often
    assert likes(items, np.array([6, 7, 8])) == []  # as all items
    assert likes(items, np.array([], dtype=np.int64)) == []


def test_a_sound_and_a_video_are_served_in_parts(tmp_path: Path) -> None:
    (tmp_path / "bark.wav").write_bytes(sound())
    (tmp_path / "clip.mp4").write_bytes(video([10, 200]))
    (tmp_path / "page.wav").write_text("<script>alert(1)</script>")
    bundle = toy_bundle(tmp_path)
    files = {
        "audio": ["bark.wav", "page.wav", "../bark.wav", "https://h.example/a.ogg"],
        "video": ["clip.mp4", "bark.wav"],
    }
    frame = bundle.catalog.frame.with_columns(
        pl.Series(name, [*paths, *[None] * (12 - len(paths))]) for name, paths in files.items()
    )
    shelf = ToyShelf(replace(bundle, catalog=replace(bundle.catalog, frame=frame)))
    with service_harness(tmp_path, shelf=shelf) as harness:
        get = harness.client.get
        item = get("/v1/items/i0").json()
        assert (item["audio"], item["video"]) == ("/media/i0/audio", "/media/i0/video")
        assert get("/v1/items/i3").json()["audio"] == "https://h.example/a.ogg"
        whole = get(item["audio"])
        assert (whole.headers["content-type"], whole.content) == ("audio/wav", sound())
        assert get(item["video"]).headers["content-type"] == "video/mp4"
        part = get(item["audio"], headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, sound()[4:8])
        assert get(item["audio"], headers={"Range": "bytes=99999999-"}).status_code == 416
        for path in ("i1/audio", "i2/audio", "i3/audio", "i4/audio", "i1/video", "nothing/video"):
            refused = get(f"/media/{path}")
            assert (refused.status_code, refused.json()["code"]) == (404, "no_media"), path
        assert get("/media/i0/text").status_code == 422
