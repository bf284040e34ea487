"""What identifies a bundle, in which words one is refused, and the limits of upserts and comparisons."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_recsys_bundle_upsert as fixtures
from test_recsys_bundle_upsert import COLD, N, items, text_channel
from toy_data import FACTS, noise, toy_catalog, toy_stage

from features.content.spaces import Embedded, SpaceKey
from features.errors import BundleError
from recsys.bundle.compare import compare_bundles
from recsys.bundle.formats import check_manifest, checksum_of, current_arrays, current_weights, fingerprint_of
from recsys.bundle.io import load_bundle, save_bundle
from recsys.bundle.query import SearchResult
from recsys.bundle.registry import find_bundle, publish_bundle
from recsys.bundle.upsert import merge_indexes, upsert_items
from recsys.config import SourceQuotas
from recsys.content.content_space import ContentSpace
from recsys.retrieval.mutable_index import MutableIndex

saved, bundle = fixtures.saved, fixtures.bundle

DATA: dict[str, Any] = {
    "source": "folder",
    "path": "p",
    "log": "l",
    "events": {"positive": {}},
    "extra_columns": [],
    "placements": {"home": {}},
}
MANIFEST: dict[str, Any] = {
    "format": 11,
    "files": {},
    "towers": {},
    "candidates": 1,
    "sources": {"recent": 1},
    "fitted_until": 2,
    "statistics_until": 3,
    "category_names": [],
    "content": None,
    "content_dimension": 4,
    "config": {"data": DATA, "encoder": None, "limits": {}},
    "seconds": 1,
}

SERVED = [
    *("format", "files", "towers", "candidates", "sources", "fitted_until", "statistics_until", "category_names"),
    *("content", "content_dimension", "config.encoder", "config.limits"),
    *(f"config.data.{key}" for key in DATA),
]


def changed(place, value):
    manifest = copy.deepcopy(MANIFEST)
    *path, key = place.split(".")
    inner = manifest
    for name in path:
        inner = inner[name]
    inner[key] = value
    return manifest


@pytest.mark.parametrize("place", SERVED)
def test_each_key_that_is_served_changes_the_fingerprint(place):
    value: Any = (
        {"more": {}}
        if place.endswith(("files", "towers", "sources", "placements", "limits", "events", "encoder"))
        else 12
    )
    assert fingerprint_of(changed(place, value)) != fingerprint_of(MANIFEST)
    assert checksum_of(changed(place, value)) != checksum_of(MANIFEST)


def test_the_rest_of_a_manifest_changes_its_checksum_alone():
    for place, value in (("seconds", 2), ("config.name", "n"), ("config.data.min_train_events", 3)):
        assert fingerprint_of(changed(place, value)) == fingerprint_of(MANIFEST)
        assert checksum_of(changed(place, value)) != checksum_of(MANIFEST)
    assert checksum_of(MANIFEST | {"checksum": "0"}) == checksum_of(MANIFEST)
    assert fingerprint_of(MANIFEST | {"fingerprint": "0", "checksum": "0"}) == fingerprint_of(MANIFEST)


def test_fingerprints_stay_those_of_earlier_versions():
    assert fingerprint_of(MANIFEST | {"format": 10}) == "a9aa8380b6f086f8"  # without `sources`
    for old in (8, 9):  # all keys but the fingerprint itself
        manifest = MANIFEST | {"format": old}
        assert len(fingerprint_of(manifest)) == 16
        assert fingerprint_of(manifest | {"seconds": 2}) != fingerprint_of(manifest)
        assert fingerprint_of(manifest | {"fingerprint": "0"}) == fingerprint_of(manifest)
    assert len(checksum_of(MANIFEST)) == 64


def sealed(manifest):
    if manifest["format"] < 10:
        return manifest | {"fingerprint": fingerprint_of(manifest)}
    manifest = manifest | {"fingerprint": fingerprint_of(manifest)}
    return manifest | {"checksum": checksum_of(manifest)}


@pytest.mark.parametrize("version", [8, 9, 10, 11])
def test_the_formats_that_are_read(version):
    assert check_manifest(sealed(MANIFEST | {"format": version}), "m") == version


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (7, "7, this version reads 8, 9, 10, 11; train again"),
        (12, "12, this version reads 8, 9, 10, 11; a newer version wrote it: install that version"),
        ("11", "'11', this version reads 8, 9, 10, 11; train again"),
        (None, "None, this version reads 8, 9, 10, 11; train again"),
    ],
)
def test_other_formats_are_refused_with_a_remedy(version, remedy):
    with pytest.raises(BundleError) as caught:
        check_manifest(MANIFEST | {"format": version}, "m")
    assert str(caught.value) == f"m: format {remedy}"


@pytest.mark.parametrize(
    ("key", "value", "given"),
    [
        ("config", [], "'config' is [], not named values"),
        ("files", None, "'files' is null, not named values"),
        ("candidates", 1.5, "'candidates' is 1.5, not a whole number"),
        ("candidates", True, "'candidates' is true, not a whole number"),
        ("category_names", {}, "'category_names' is {}, not a list"),
        ("sources", [1], "'sources' is [1], not named values"),
        ("content", "x" * 60, f"'content' is \"{'x' * 39}, not named values"),
    ],
)
def test_a_key_of_another_type_is_named(key, value, given):
    with pytest.raises(BundleError) as caught:
        check_manifest(sealed(MANIFEST) | {key: value}, "m")
    assert str(caught.value) == f"m: {given}; restore it or train again"


def test_a_missing_key_and_a_changed_manifest_are_refused():
    manifest = sealed(MANIFEST)
    for wrong, reason in (
        ({k: v for k, v in manifest.items() if k != "towers"}, "'towers' is missing, not named values"),
        (manifest | {"candidates": 5}, f"does not match its own fingerprint '{manifest['fingerprint']}'"),
        (manifest | {"seconds": 5}, "does not match its own checksum"),
        (manifest | {"config": {"data": 1}}, "not the manifest of a bundle"),
        ([], "not the manifest of a bundle"),
    ):
        with pytest.raises(BundleError) as caught:
            check_manifest(wrong, "m")
        assert str(caught.value) == f"m: {reason}; restore it or train again"


def test_names_of_format_8_are_today_s():
    arrays = {"words.data": 1, "words.indices": 2, "words.indptr": 3, "idf": 4}
    assert current_arrays(arrays, 8) == {"tfidf.data": 1, "tfidf.indices": 2, "tfidf.indptr": 3, "idf": 4}
    assert current_arrays(arrays, 9) == arrays
    assert current_weights({"turn": 1, "users.x": 2}, 8) == {"rotation": 1, "users.x": 2}
    assert current_weights({"turn": 1}, 9) == {"turn": 1}


def test_the_files_of_a_bundle(tmp_path):
    text = np.eye(30, 4, dtype=np.float32)
    stage, catalog, statistics = toy_stage(noise(), toy_catalog(30, text=text))
    space = SpaceKey("words", "1", 4)
    content = ContentSpace(space, None, {"text": Embedded(space, text, np.asarray(text.any(1)))})
    keys = np.arange(3, dtype=np.uint64)
    folder = save_bundle(tmp_path, catalog, stage, statistics, FACTS, content, keys)
    assert sorted(file.name for file in folder.iterdir()) == [
        "arrays.safetensors",
        "content.safetensors",
        "contents.json",
        "contents.npy",
        "items.parquet",
        "manifest.json",
        "reranker.txt",
        "towers.safetensors",
        "trained_events.npy",
        "vectors.json",
        "vectors.npy",
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 11
    assert manifest["content"] == {
        "space": {**vars(space)},
        "channels": ["text"],
        "maps": [],
        "nested": [],
    }
    loaded = load_bundle(folder).content
    assert loaded is not None
    np.testing.assert_array_equal(loaded.channels["text"].vectors, text)


def test_quotas_are_kept_and_older_bundles_have_those_of_their_time(tmp_path):
    stage, catalog, statistics = toy_stage(noise())
    quotas = SourceQuotas(recent=0.5, long_term=0.1, neighbours=0.2, fresh=0.3, trending=0.4, popular=0.6)
    folder = save_bundle(tmp_path, catalog, replace(stage, quotas=quotas), statistics, FACTS)
    assert load_bundle(folder).recommender.quotas == quotas
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sources"], manifest["fingerprint"], manifest["checksum"]
    for version in (8, 9, 10):
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest | {"format": version})))
        assert load_bundle(folder).recommender.quotas.model_dump() == {
            "recent": 0.7,
            "long_term": 0.3,
            **dict.fromkeys(("neighbours", "fresh", "trending", "popular"), 0),
        }
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest | {"format": 11, "sources": {"recent": 2}})))
    with pytest.raises(BundleError, match="do not fit together"):
        load_bundle(folder)


def test_the_current_bundle_is_found_beside_others(saved):
    publish_bundle(saved)
    assert find_bundle(saved.parent, "current").resolve() == saved
    with pytest.raises(BundleError) as caught:
        find_bundle(saved.parent, "zz")
    assert str(caught.value) == f"{saved.parent}: 0 bundles begin with 'zz'; there are: {saved.name}"
    with pytest.raises(BundleError, match="there are: none"):
        find_bundle(saved, "zz")


# upserts


class Recorder:
    """An index of a number of fresh vectors among n, which records searches and merges."""

    def __init__(self, index=None, fresh=0, n=0):
        self.index, self.depths, self.merged = index, [], 0
        self.fresh, self.n = fresh, n

    def __len__(self):
        return self.n

    def search(self, queries, k, **options):
        self.depths.append(k)
        return self.index.search(queries, k, **options)

    def upsert(self, rows, vectors):
        pass


def test_a_new_item_is_placed_by_its_20_nearest_items(bundle):
    contents = Recorder(bundle.contents)
    object.__setattr__(bundle, "contents", contents)
    upsert_items(bundle, items("x"), text_channel([1, 0, 0, 0]))
    assert contents.depths == [20]


@pytest.mark.parametrize(("difference", "kept"), [(9e-4, True), (1.1e-3, False)])
def test_content_that_differs_by_rounding_is_unchanged(bundle, difference, kept):
    before = bundle.recommender.vectors[COLD]
    category = [f"c{COLD % 3}"]
    other = upsert_items(bundle, items(f"i{COLD}", categories=[category]), text_channel([difference, 1, 0, 0]))
    assert np.array_equal(other.recommender.vectors[COLD], before) == kept
    assert len(other.catalog) == N


@pytest.mark.parametrize(
    ("fresh", "n", "merged"),
    [(1_000, 100, 0), (1_001, 100, 1), (1_001, 20_020, 0), (1_002, 20_020, 1), (1_001, 20_000, 1)],
)
def test_an_index_is_merged_from_1001_fresh_vectors_and_5_percent_on(monkeypatch, fresh, n, merged):
    def merge(self):
        self.merged += 1

    kind = type("Index", (Recorder, MutableIndex), {"merge": merge, "fresh": 0})
    first, second = kind(fresh=fresh, n=n), kind(fresh=0, n=n)
    bundle: Any = SimpleNamespace(recommender=SimpleNamespace(index=first), contents=second)
    merge_indexes(bundle)
    assert (first.merged, second.merged) == (merged, 0)


# comparisons and results


def test_a_sample_of_the_common_items_is_compared(bundle):
    report = compare_bundles(bundle, bundle, k=3, sample=5)
    assert report["overlap"]["behaviour"] == 1.0
    assert compare_bundles(bundle, bundle)["k"] == 10
    with pytest.raises(ValueError, match="kth"):  # 5 items have no 5 nearest others
        compare_bundles(bundle, bundle, k=5, sample=5)
    with pytest.raises(BundleError) as caught:
        compare_bundles(bundle, bundle, k=30)
    name = bundle.path.name
    assert str(caught.value) == f"{name} and {name} share 30 items: too few, more than 30 are needed"


def test_a_search_result_as_a_table():
    found: list[dict[str, Any]] = [
        {"item_id": "a", "title": None, "score": 0.12345, "near": {"text": 0.5, "image": None}},
        {"item_id": "b", "title": "[red]B", "score": 0.1, "near": {"text": None, "image": 0.98765}},
    ]
    table = SearchResult(True, [], found).render()
    assert [str(column.header) for column in table.columns] == ["item", "title", "score", "text", "image"]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells == [["a", "b"], ["a", "[red]B"], ["0.123", "0.100"], ["0.500", ""], ["", "0.988"]]
    assert len(SearchResult(True, [], []).render().columns) == 3
