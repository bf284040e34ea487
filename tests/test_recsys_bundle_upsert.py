"""Upserts into a bundle: existing items keep rows and vectors, cold items are placed by content."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from toy_data import DAY, FACTS, noise, toy_catalog, toy_log, toy_stage

from features.content.parts import Content
from features.content.spaces import Embedded, SpaceKey, unit
from features.tables.read import ITEMS
from recsys.bundle import upsert
from recsys.bundle.io import load_bundle, save_bundle
from recsys.bundle.model import Bundle
from recsys.bundle.upsert import merge_indexes, place_items, upsert_catalog, upsert_items
from recsys.content.content_space import ContentSpace
from recsys.content.item_encoding import ItemVectors, embed_items

SPACE = SpaceKey("words", "1", 4)
N = 30
COLD = 29
EVENTS = replace(noise(n_items=COLD), n_items=N)


def items(*ids: str, **columns: Any) -> pl.DataFrame:
    """Validated items: columns of the contract, null where not given."""
    frame = pl.DataFrame(
        {"item_id": ids, **columns}, schema_overrides={k: v for k, v in ITEMS.items() if k in columns}
    )
    frame = frame.with_columns(pl.lit(None, kind).alias(k) for k, kind in ITEMS.items() if k not in frame.columns)
    return frame.with_columns(pl.col("available").fill_null(True)).select(list(ITEMS))


def text_channel(*vectors: Any) -> dict[str, Embedded]:
    rows = unit(np.array(vectors, np.float32))
    return {"text": Embedded(SPACE, rows, np.asarray(rows.any(1)))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 items with 4 directions of content, the last item cold; categories c0, c1, c2, c0, …"""
    text = np.eye(4, dtype=np.float32)[np.arange(N) % 4]
    text[7] = 0
    catalog = toy_catalog(N, categories=[[f"c{i % 3}"] for i in range(N)], text=text)
    stage, catalog, statistics = toy_stage(EVENTS, catalog)
    channels = {
        "text": Embedded(SPACE, text, np.asarray(text.any(1))),
        "image": Embedded(SPACE, 0 * text, np.zeros(N, bool)),
    }
    folder = tmp_path_factory.mktemp("bundles")
    return save_bundle(folder, catalog, stage, statistics, FACTS, ContentSpace(SPACE, None, channels))


@pytest.fixture
def bundle(saved: Path) -> Bundle:
    return load_bundle(saved)


def states(n: int = 4) -> Any:
    return EVENTS.states(np.arange(n), np.full(n, EVENTS.latest + DAY))


def test_items_are_placed_for_one_list_as_by_an_upsert_and_no_search_finds_them(saved: Path, bundle: Bundle) -> None:
    new, vectors = items("x", "y", categories=[["c1"], ["c2"]]), text_channel([0, 1, 0, 0], [1, 0, 0, 1])
    asked, every = EVENTS.states(np.array([3]), np.array([EVENTS.latest + DAY])), np.arange(N + 2)
    before = [
        bundle.recommender.index.search(bundle.vectors[:3], 5),
        bundle.contents.search(np.eye(4, dtype=np.float32)[:1], 5),
    ]
    placed, upserted = place_items(bundle, new, vectors), upsert_items(load_bundle(saved), new, vectors)
    assert placed.catalog.ids.ids[N:] == ("x", "y")
    np.testing.assert_array_equal(placed.recommender.vectors, upserted.recommender.vectors)
    ours, theirs = placed.recommender.rank(asked, every), upserted.recommender.rank(asked, every)
    known = bundle.recommender.rank(asked, every[:N])
    assert sorted(ours.rows[0].tolist()) == every.tolist()
    assert ours.rows[0][ours.rows[0] < N].tolist() == known.rows[0].tolist(), "the others keep their order"
    np.testing.assert_array_equal(ours.rows, theirs.rows)
    np.testing.assert_allclose(ours.scores, theirs.scores)
    after = [
        bundle.recommender.index.search(bundle.vectors[:3], 5),
        bundle.contents.search(np.eye(4, dtype=np.float32)[:1], 5),
    ]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
    assert (len(bundle.recommender.index), len(bundle.catalog)) == (N, N)  # type: ignore[arg-type]


def test_categories_keep_their_numbers_and_new_ones_follow() -> None:
    old = toy_catalog(3, categories=[["b"], ["a", "b"], None])
    new = items("x", "i1", categories=[["c", "a", "0"], ["b"]], price=[2.5, None], title=["X", "one"])
    catalog, rows = upsert_catalog(old, new, None)
    assert rows.tolist() == [3, 1]
    assert catalog.ids.ids == ("i0", "i1", "i2", "x")
    assert catalog.category_names == ("a", "b", "0", "c")
    assert catalog.categories.tolist() == [[1, -1, -1], [1, -1, -1], [-1, -1, -1], [3, 0, 2]]
    assert catalog.frame["title"].to_list() == ["Title 0", "one", "Title 2", "X"]
    assert catalog.frame["item_id"].to_list() == list(catalog.ids.ids)
    np.testing.assert_array_equal(catalog.price, np.array([np.nan, np.nan, np.nan, 2.5], np.float32))
    assert old.categories.tolist() == [[1, -1], [0, 1], [-1, -1]]


def test_columns_stay_those_of_the_bundle() -> None:
    old = toy_catalog(2)
    old = replace(old, frame=old.frame.drop("audio").with_columns(size=pl.lit(1, pl.Int32)))
    catalog, _ = upsert_catalog(old, items("x").with_columns(size=pl.lit("7")), None)
    assert catalog.frame.schema == old.frame.schema
    assert catalog.frame["size"].to_list() == [1, 1, 7]


def test_a_new_item_gets_the_mean_vector_of_its_neighbours_by_content(bundle: Bundle) -> None:
    before = bundle.recommender.vectors
    after = upsert_items(bundle, items("x", "y"), text_channel([1, 0, 0, 0], [3, 4, 0, 0]))
    nearest = [i for i in range(N) if i % 4 == 0]  # cosine 1 with x; 0 for all others
    np.testing.assert_allclose(
        after.recommender.vectors[N], unit(before[nearest].mean(0, keepdims=True))[0], atol=1e-6
    )
    others = [i for i in range(N) if i % 4 == 1]
    mixed = 0.6 * before[nearest].sum(0) + 0.8 * before[others].sum(0)
    np.testing.assert_allclose(after.recommender.vectors[N + 1], unit(mixed[None])[0], atol=1e-6)
    np.testing.assert_array_equal(after.recommender.vectors[:N], before)
    found = after.search(np.array([[0.6, 0.8, 0, 0]], np.float32), 1)
    assert (found.rows.tolist(), found.scores[0, 0]) == ([[N + 1]], pytest.approx(1))


def test_a_cold_item_with_unchanged_content_keeps_its_trained_vector(bundle: Bundle) -> None:
    row, name = COLD, f"i{COLD}"
    before = bundle.recommender.vectors[row]
    content, category = bundle.catalog.content[row], [f"c{row % 3}"]
    repriced = upsert_items(bundle, items(name, price=[9.0], categories=[category]), text_channel(content + 1e-5))
    np.testing.assert_array_equal(repriced.recommender.vectors[row], before)
    assert repriced.catalog.price[row] == 9
    for text, categories in ((np.eye(4)[0], category), (content, ["c0"]), (content, [*category, "more"])):
        other = upsert_items(bundle, items(name, categories=[categories]), text_channel(text)).recommender.vectors[
            row
        ]
        assert not np.allclose(other, before, atol=1e-3)


def test_without_content_the_category_mean_is_used_and_without_a_category_the_mean(bundle: Bundle) -> None:
    vectors = bundle.recommender.vectors
    new = items("x", "y", "z", categories=[["c1", "c0"], ["never"], None])
    after = upsert_items(bundle, new, text_channel([0, 0, 0, 0], [0, 0, 0, 0], [-1, 0, 0, 0]))
    np.testing.assert_allclose(after.recommender.vectors[N], unit(vectors[1::3].mean(0, keepdims=True))[0], atol=1e-6)
    for row in (N + 1, N + 2):  # no known category; content with a negative cosine to all items
        np.testing.assert_allclose(after.recommender.vectors[row], unit(vectors.mean(0, keepdims=True))[0], atol=1e-6)
    assert after.catalog.has_content.tolist()[N:] == [False, False, True]
    without = upsert_items(replace(bundle, content=None), items("x", categories=[["c1"]]), {})
    np.testing.assert_allclose(
        without.recommender.vectors[N], unit(vectors[1::3].mean(0, keepdims=True))[0], atol=1e-6
    )


def test_existing_items_keep_their_row_and_with_events_their_vector(bundle: Bundle) -> None:
    before = bundle.recommender.vectors
    after = upsert_items(
        bundle, items("i2", f"i{COLD}", title=["two", "last"]), text_channel([1, 0, 0, 0], [0, 0, 1, 0])
    )
    assert (len(after.catalog), after.catalog.ids) == (N, bundle.catalog.ids)
    np.testing.assert_array_equal(after.recommender.vectors[:COLD], before[:COLD])
    nearest = [i for i in range(N) if i % 4 == 2 and i != 2]  # i2 is replaced: its old content does not count
    expected = unit(before[nearest].mean(0, keepdims=True))[0]
    np.testing.assert_allclose(after.recommender.vectors[COLD], expected, atol=1e-6)
    assert after.catalog.frame["title"][2] == "two"
    np.testing.assert_array_equal(after.catalog.content[2], [1, 0, 0, 0])
    assert 2 in after.search(np.eye(4, dtype=np.float32)[:1], N).rows[0, :9]
    np.testing.assert_array_equal(after.recommender.fallback.popularity, bundle.recommender.fallback.popularity)


def test_all_arrays_are_row_aligned_and_the_old_bundle_is_unchanged(bundle: Bundle) -> None:
    requests, allow = states(), np.ones(N, bool)
    before = bundle.recommender.recommend(requests, N, allow=allow)
    first = upsert_items(bundle, items("x", title=["of another kind"]), text_channel([1, 0, 0, 0]))
    second = items("y", "x", title=["title c1", "title c0"])
    after = upsert_items(first, second, text_channel([0, 1, 0, 0], [0, 0, 1, 0]))
    total = N + 2
    assert after.catalog.ids.ids[N:] == ("x", "y")
    features = after.recommender.reranker.features  # type: ignore[union-attr]
    for array in (after.catalog.frame, after.catalog.categories, after.recommender.vectors, features.vectors):
        assert len(array) == total
    s = features.statistics
    assert (s.total[N:].tolist(), s.recent[N:].tolist(), s.newest[N:].tolist()) == ([0, 0], [0, 0], [0, 0])
    assert s.last[N:].tolist() == [np.iinfo(np.int64).min] * 2
    old = bundle.recommender.reranker.features.neighbours  # type: ignore[union-attr]
    assert features.neighbours.shape == (total, total)
    np.testing.assert_array_equal(features.neighbours.toarray()[:N, :N], old.toarray())
    assert features.neighbours.nnz == old.nnz
    assert features.tfidf.rows.shape[0] == total
    cosines = (features.tfidf.rows @ features.tfidf.rows[[N, N + 1]].T).toarray()
    assert [cosines[0, 0], cosines[1, 1]] == pytest.approx([1, 1])  # x has the text of i0 now, y that of i1
    assert sorted(after.popular.tolist()) == list(range(total))
    assert after.popular[-3:].tolist() == [COLD, N, N + 1]  # no events
    assert after.content is not None
    channels = after.content.channels
    np.testing.assert_array_equal(channels["text"].vectors[N:], [[0, 0, 1, 0], [0, 1, 0, 0]])
    assert channels["text"].present[N:].all()
    assert not channels["image"].present[N:].any()
    again = bundle.recommender.recommend(
        requests, N, allow=allow
    )  # a request to the old bundle, which shares the indexes
    np.testing.assert_array_equal(again.rows, before.rows)
    np.testing.assert_array_equal(again.scores, before.scores)
    slates = after.recommender.recommend(requests, total, allow=np.ones(total, bool))
    assert set(slates.rows.ravel().tolist()) > {N, N + 1}
    only = np.zeros(total, bool)
    only[N:] = True
    assert set(after.similar(np.array([3]), 5, allow=only).rows[0].tolist()) == {N, N + 1, -1}


def test_users_with_new_items_in_their_history_get_recommendations(bundle: Bundle) -> None:
    after = upsert_items(bundle, items("x"), text_channel([1, 0, 0, 0]))
    state = toy_log([(0, N, EVENTS.latest)], 1, N + 1).states(np.array([0]), np.array([EVENTS.latest + DAY]))
    found = after.recommender.recommend(state, 5, allow=np.ones(N + 1, bool), exclude=state.seen_items())
    assert (found.rows >= 0).all()
    assert N not in found.rows


def test_an_index_with_too_many_fresh_vectors_is_merged(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsert, "MAX_FRESH", 2)
    after = upsert_items(bundle, items("x", "y"), text_channel([1, 1, 0, 0], [0, 1, 1, 0]))
    merge_indexes(after)
    assert after.contents.fresh == 2
    after = upsert_items(after, items("z"), text_channel([0, 0, 1, 1]))
    query = unit(np.array([[0, 0, 1, 1]], np.float32))
    before = after.search(query, 5)
    merge_indexes(after)
    assert (after.contents.fresh, after.recommender.index.fresh) == (0, 0)  # type: ignore[attr-defined]
    found = after.search(query, 5)
    np.testing.assert_allclose(found.scores, before.scores, atol=1e-6)
    assert found.rows[0, 0] == N + 2


class FakeEncoder:
    """An encoder of one kind of part, which records its calls."""

    modalities, reader = frozenset({"text"}), ""

    def __init__(self, space: SpaceKey = SPACE, modality: str = "text") -> None:
        self.key, self.modalities, self.calls = space, frozenset({modality}), list[list[Content]]()

    def space(self, task: str = "document") -> SpaceKey:
        return self.key

    def encode(self, contents: Any, *, task: str = "document", progress: Any = None) -> Embedded:
        assert task == "document"
        self.calls.append(list(contents))
        present = np.array([any(p.modality in self.modalities for p in c.parts) for c in contents])
        return Embedded(self.key, np.eye(4, dtype=np.float32)[[0] * len(contents)] * present[:, None], present)


def test_only_known_channels_are_embedded_and_only_present_parts() -> None:
    nothing = Embedded(SPACE, np.zeros((0, 4), np.float32), np.zeros(0, bool))
    encoders = {
        "text": FakeEncoder(),
        "image": FakeEncoder(modality="image"),
        "speech": FakeEncoder(modality="audio"),
        "sound": FakeEncoder(SpaceKey("sounds", "1", 4), "audio"),
    }
    frame = items("a", "b", title=["red", None], description=["and more", None], video=[None, "/v.mp4"])
    plain = embed_items(ContentSpace(SPACE, None, {"text": nothing}), encoders, frame)  # type: ignore[arg-type]
    assert set(plain.channels) == {"text", "image", "speech"}  # speech is in the space of text
    assert plain.channels["text"].present.tolist() == [True, False]
    assert not encoders["image"].calls
    assert plain.failed == [[], [("video", "the items cannot be searched by video: they were trained without it")]]
    titled = embed_items(
        ContentSpace(SPACE, None, {"text": nothing, "title": nothing}),
        encoders,  # type: ignore[arg-type]
        frame,
    )
    assert titled.channels["title"].present.tolist() == [True, False]
    combined = ItemVectors.together([plain, plain])
    assert combined.channels["text"].present.tolist() == [True, False] * 2
    assert combined.failed == plain.failed * 2
