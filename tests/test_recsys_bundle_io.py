"""Bundles on disk: load agrees with save, damaged files are rejected by name, a kill leaves no invalid bundle."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from toy_data import DAY, FACTS, SMALL, noise, toy_catalog, toy_log, toy_stage

from features.errors import BundleError
from features.interactions import Ragged
from recsys.bundle import io as module
from recsys.bundle.formats import checksum_of, fingerprint_of
from recsys.bundle.io import load_bundle, save_bundle, trained_events
from recsys.bundle.registry import HISTORY, current_bundle, publish_bundle
from recsys.config import SourceQuotas
from recsys.ranking.reranker import Reranker
from recsys.towers.model import TwoTowers

EVENTS = noise()


def facts(number: int) -> dict[str, Any]:
    """FACTS of a bundle that serves other events: the fingerprint depends on the number."""
    data = FACTS["config"]["data"] | {"events": {"positive": {"take": number}}}
    return FACTS | {"config": {"data": data}}


FILES = ["manifest.json", "items.parquet", "arrays.safetensors", "towers.safetensors", "reranker.txt"]
FILES += [f"{name}.{kind}" for name in ("vectors", "contents") for kind in ("json", "npy")]


@pytest.fixture(scope="module")
def parts():
    text = np.eye(30, 4, dtype=np.float32)
    catalog = toy_catalog(30, categories=[["a", "b"] if i % 3 else [] for i in range(30)], text=text)
    return toy_stage(EVENTS, catalog)


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    stage, catalog, statistics = parts
    return save_bundle(tmp_path_factory.mktemp("bundles"), catalog, stage, statistics, FACTS)


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def same(a, b):
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize("reranked", [True, False])
def test_a_loaded_bundle_recommends_as_the_saved_one(parts, tmp_path, reranked):
    stage, catalog, statistics = parts
    stage = stage if reranked else replace(stage, reranker=None)
    bundle = load_bundle(save_bundle(tmp_path, catalog, stage, statistics, FACTS))
    states = EVENTS.states(np.array([0, 1, 2, -1]), np.full(4, EVENTS.latest + DAY))
    exclude = states.seen_items()
    allow = np.arange(30) % 5 != 0
    same(bundle.recommender.recommend(states, 12), stage.recommend(states, 12))
    same(
        bundle.recommender.recommend(states, 12, allow=allow, exclude=exclude),
        stage.recommend(states, 12, allow=allow, exclude=exclude),
    )
    assert (bundle.recommender.reranker is not None) == reranked
    assert (bundle.path / "reranker.txt").exists() == reranked
    if reranked:
        loaded, saved = (cast(Reranker, r.reranker).features for r in (bundle.recommender, stage))
        assert saved.neighbours.nnz > 0
        np.testing.assert_array_equal(loaded.neighbours.toarray(), saved.neighbours.toarray())
        assert saved.tfidf.rows.nnz > 0
        assert (loaded.tfidf.rows != saved.tfidf.rows).nnz == 0
        np.testing.assert_array_equal(loaded.tfidf.idf, saved.tfidf.idf)
    assert bundle.recommender.fitted_until == stage.fitted_until
    assert bundle.catalog.ids == catalog.ids
    assert bundle.catalog.category_names == catalog.category_names
    assert bundle.catalog.frame.equals(catalog.frame)
    for name in ("categories", "price", "available", "published", "content", "has_content"):
        np.testing.assert_array_equal(getattr(bundle.catalog, name), getattr(catalog, name))
    assert bundle.data.source == "folder"
    counts = stage.fallback.popularity[bundle.popular]
    assert (np.diff(counts) <= 0).all()
    assert sorted(bundle.popular.tolist()) == list(range(30))


def test_weights_of_event_types_are_saved_with_the_towers(parts, tmp_path):
    stage, catalog, statistics = parts
    torch.manual_seed(0)
    towers = TwoTowers(catalog, statistics, SMALL, n_types=3)
    torch.nn.init.normal_(towers.users.event.weight)
    bundle = load_bundle(save_bundle(tmp_path, catalog, replace(stage, towers=towers), statistics, FACTS))
    log = replace(EVENTS, types=1 + EVENTS.items % 2)
    states = log.states(np.arange(3), np.full(3, log.latest + DAY))
    users = bundle.recommender.towers.user_vectors(states, stage.vectors)
    np.testing.assert_array_equal(users, towers.user_vectors(states, stage.vectors))
    swapped = replace(states, types=3 - states.types)
    assert not np.allclose(users, bundle.recommender.towers.user_vectors(swapped, stage.vectors), atol=1e-4)


def test_similar_items_exclude_the_item_itself(saved):
    bundle = load_bundle(saved)
    rows = np.array([3, 17])
    vectors = bundle.recommender.vectors
    d = vectors.shape[1]
    informative = d - d // 4  # the last quarter of the coordinates only gives cold items length 1
    scores = vectors[rows, :informative] @ vectors[:, :informative].T
    scores[[0, 1], rows] = -np.inf
    found = bundle.similar(rows, 5)
    np.testing.assert_array_equal(found.rows, np.argsort(-scores, axis=1)[:, :5])
    assert (bundle.similar(rows, 1, exclude=Ragged.of([[], []])).rows[:, 0] == rows).all()
    allow = np.arange(30) < 10
    assert (bundle.similar(rows, 5, allow=allow).rows < 10).all()


def test_search_uses_content_only(tmp_path):
    text = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    catalog = toy_catalog(30, text=text)
    stage, catalog, statistics = toy_stage(EVENTS, catalog)
    bundle = load_bundle(save_bundle(tmp_path, catalog, stage, statistics, FACTS))
    queries = np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found = bundle.search(queries, 10)
    cosines = queries @ text.T
    np.testing.assert_array_equal(found.rows, np.argsort(-cosines, axis=1)[:, :10])
    np.testing.assert_allclose(found.scores, -np.sort(-cosines, axis=1)[:, :10], atol=1e-6)


def test_the_manifest_records_the_facts(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert FACTS.items() <= manifest.items()
    assert manifest["fingerprint"] == saved.name
    assert sorted(manifest["files"]) == sorted(set(FILES) - {"manifest.json"})
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)


def test_a_fingerprint_names_what_is_served(parts, tmp_path):
    """Seconds, folders of the run, figures and the order of keys are not; the first bundle stays as it is."""
    stage, catalog, statistics = parts
    first = save_bundle(tmp_path, catalog, stage, statistics, facts(0))
    before = (first / "manifest.json").read_bytes()
    moved = facts(0)
    moved["config"]["data"] = dict(reversed(moved["config"]["data"].items()))
    moved["config"] |= {"name": "other", "bundles": "/b", "cache": "/c"}
    same_model = moved | {"code_version": "1", "data_hash": "e", "metrics": [{"fit_seconds": 7.1}]}
    same_model = dict(reversed(same_model.items()))
    assert save_bundle(tmp_path, catalog, stage, statistics, same_model) == first
    assert (first / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


def test_what_is_served_changes_the_fingerprint(parts, tmp_path):
    stage, catalog, statistics = parts

    def name(stage=stage, **changes):
        manifest = facts(0)
        manifest["config"] |= {key: changes.pop(key) for key in ("encoder", "limits") if key in changes}
        manifest["config"]["data"] |= changes
        return save_bundle(tmp_path, catalog, stage, statistics, manifest).name

    two = {"home": {"repeats": False}, "again": {"repeats": True}}
    names = {
        name(),
        name(events={"positive": {"take": None}, "seen": ["look"]}),
        name(placements=two),
        name(placements=dict(reversed(two.items()))),  # the first placement is the default
        name(extra_columns=["year"]),
        name(path="/elsewhere"),  # the service reads the tables there
        name(log="/log"),
        name(encoder={"kind": "builtin"}),
        name(limits={"hosts": ["a.example"]}),
        name(replace(stage, candidates=3)),
        name(replace(stage, quotas=SourceQuotas(popular=0.1))),
        name(replace(stage, reranker=None)),
    }
    assert len(names) == 12


def test_a_damaged_bundle_is_replaced_by_an_equal_one(parts, tmp_path):
    stage, catalog, statistics = parts
    first = save_bundle(tmp_path, catalog, stage, statistics, FACTS)
    (first / "vectors.npy").write_bytes(b"half")
    assert save_bundle(tmp_path, catalog, stage, statistics, FACTS) == first
    assert load_bundle(first).fingerprint == first.name


def test_bundles_of_earlier_formats_are_verified_by_their_own_rule(copy):
    manifest = json.loads((copy / "manifest.json").read_text()) | {"format": 9}
    del manifest["fingerprint"], manifest["checksum"]
    body = json.dumps(manifest, sort_keys=True).encode()
    manifest["fingerprint"] = hashlib.sha256(body).hexdigest()[:16]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert load_bundle(copy).fingerprint == manifest["fingerprint"] != copy.name
    (copy / "manifest.json").write_text(json.dumps(manifest | {"seed": 1}))
    with pytest.raises(BundleError, match="does not match its own fingerprint"):
        load_bundle(copy)


def test_the_events_that_a_bundle_was_trained_on_are_recorded_in_order(parts, tmp_path):
    stage, catalog, statistics = parts
    keys = np.array([5, 2**64 - 1, 2, 5], np.uint64)
    bundle = load_bundle(save_bundle(tmp_path, catalog, stage, statistics, FACTS, trained=keys))
    recorded = trained_events(bundle)
    assert recorded is not None
    assert recorded.tolist() == [2, 5, 5, 2**64 - 1]
    assert trained_events(load_bundle(save_bundle(tmp_path, catalog, stage, statistics, FACTS))) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "extended", "deleted"])
def test_a_damaged_file_is_rejected_by_name(copy, name, damage):
    file = copy / name
    content = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(
            {"truncated": content[: len(content) // 2], "emptied": b"", "extended": content + b"x"}[damage]
        )
    with pytest.raises(BundleError, match=re.escape(str(file))):
        load_bundle(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_single_flipped_bit_is_rejected_by_name(copy, name):
    file = copy / name
    content = bytearray(file.read_bytes())
    before = json.loads((copy / "manifest.json").read_text())
    for at in np.linspace(0, len(content) - 1, 40).astype(int):
        content[at] ^= 1 << (at % 8)
        file.write_bytes(content)
        if name == "manifest.json" and _json(file) == before:
            pass  # a digit beyond the precision of the number
        else:
            with pytest.raises(BundleError, match=re.escape(str(file))):
                load_bundle(copy)
        content[at] ^= 1 << (at % 8)


def _json(file):
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"checksum": "0" * 64},
        {"candidates": 3},
        {"format": 1},
        {"format": None},
        {"fingerprint": "0" * 16},
        {"files": {}},
    ],
)
def test_an_edited_manifest_is_rejected(copy, change):
    manifest = json.loads((copy / "manifest.json").read_text()) | change
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(copy)


@pytest.mark.parametrize("content", ["[]", "7", "null", '"manifest"', "{}"])
def test_json_that_is_no_manifest_is_rejected(copy, content):
    (copy / "manifest.json").write_text(content)
    reason = (
        "format None, this version reads 8, 9, 10" if content == "{}" else "not the manifest of a bundle; restore it"
    )
    with pytest.raises(BundleError, match=rf"manifest\.json: {reason}.* train again"):
        load_bundle(copy)


def seal(folder, **changes):
    """Update the checksums and the fingerprint in the manifest of a folder."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    for name, entry in manifest["files"].items():
        entry |= {"sha256": module._sha256(folder / name), "bytes": (folder / name).stat().st_size}
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["checksum"] = checksum_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_missing_file_that_is_not_in_the_manifest_is_rejected(copy):
    space = {"space": {"model": "m", "revision": "1", "dimension": 2}, "maps": [], "nested": [], "channels": []}
    seal(copy, content=space)
    with pytest.raises(BundleError, match=r"do not fit together: .*; train again"):
        load_bundle(copy)


@pytest.mark.parametrize("changes", [{"files": None}, {"category_names": None}, {"content": 5}, {"towers": None}])
def test_a_manifest_with_invalid_fields_is_rejected(copy, changes):
    manifest = json.loads((copy / "manifest.json").read_text()) | changes
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["checksum"] = checksum_of(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BundleError, match=r"manifest\.json: '\w+' is (null|5), not (named values|a list); restore it or train again"
    ):
        load_bundle(copy)


def test_files_of_different_models_are_rejected(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    seal(copy)
    load_bundle(copy)
    seal(copy, towers=manifest["towers"] | {"dimension": 16})
    with pytest.raises(BundleError, match="its files do not fit together"):
        load_bundle(copy)


def test_publish_switches_current(parts, tmp_path):
    stage, catalog, statistics = parts
    first, second = (save_bundle(tmp_path, catalog, stage, statistics, facts(n)) for n in (0, 1))
    publish_bundle(first)
    assert current_bundle(tmp_path) == first
    publish_bundle(second)
    assert current_bundle(tmp_path) == second
    assert load_bundle(current_bundle(tmp_path)).fingerprint == second.name
    assert (tmp_path / "current").readlink() == Path(second.name)  # relative, so that the folder can be moved
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["current", HISTORY, first.name, second.name])


def test_without_a_published_bundle_the_error_says_what_to_do(tmp_path):
    with pytest.raises(BundleError, match=r"current: no bundle is published there; run `recsys train CONFIG` first"):
        current_bundle(tmp_path)
    (tmp_path / "current").symlink_to("gone")
    with pytest.raises(BundleError) as caught:
        current_bundle(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/current points to gone, which is no folder there: restore it, or publish another bundle "
        "(`recsys bundle list` shows them)"
    )


WRITER = """
import itertools, os, random, sys, time
from pathlib import Path
from test_recsys_bundle_io import EVENTS, facts
from toy_data import FACTS, toy_stage
from recsys.bundle.io import save_bundle
from recsys.bundle.registry import publish_bundle

root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
delays = random.Random(seed)
for kill in range(kills):
    ready, signal = os.pipe()
    child = os.fork()  # before this process starts threads; a fork saves the seconds of the imports
    if child == 0:
        stage, catalog, statistics = toy_stage(EVENTS)
        for number in itertools.count():
            if number == 1:
                os.write(signal, b"!")  # one complete bundle exists
            publish_bundle(save_bundle(root, catalog, stage, statistics, facts(1000 * kill + number)))
    os.read(ready, 1)
    time.sleep(delays.uniform(0.0, 0.06))
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def test_a_kill_at_any_time_leaves_no_invalid_bundle(tmp_path, parts):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), "10", "4"], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    complete = [
        p for p in tmp_path.iterdir() if not p.name.startswith(".writing-") and p.name not in (HISTORY, "current")
    ]
    assert len(complete) >= 10
    for folder in complete:
        assert load_bundle(folder).fingerprint == folder.name
    assert load_bundle(current_bundle(tmp_path)).path in complete
    stage, catalog, statistics = parts
    fresh = save_bundle(tmp_path, catalog, stage, statistics, FACTS)
    there = sorted(path for path in tmp_path.iterdir() if path.name != HISTORY)
    assert there == sorted([*complete, fresh, tmp_path / "current"])  # the rest has been removed


STEPPER = """
import itertools, os, sys
from pathlib import Path
from test_recsys_bundle_io import EVENTS, facts
from toy_data import FACTS, toy_stage
from recsys.bundle.io import save_bundle
from recsys.bundle.registry import publish_bundle
import shutil

root = Path(sys.argv[1])
for step in itertools.count(1):
    child = os.fork()
    if child == 0:
        stage, catalog, statistics = toy_stage(EVENTS)
        remaining = step

        def trace(frame, event, argument):
            global remaining
            code = frame.f_code
            names = ("save_bundle", "_write_files", "_is_intact", "_remove_abandoned", "publish_bundle")
            if code.co_name not in names and code.co_filename != shutil.__file__:
                return None
            if event == "line":
                remaining -= 1
                if remaining == 0:
                    os.kill(os.getpid(), 9)
            return trace

        sys.settrace(trace)
        publish_bundle(save_bundle(root, catalog, stage, statistics, facts(step)))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    for unfinished in root.glob(".writing-*"):
        unfinished.unlink() if unfinished.is_symlink() else shutil.rmtree(unfinished)
print(step)
"""


def test_a_kill_before_any_line_leaves_no_invalid_bundle(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STEPPER, str(tmp_path)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30
    complete = [
        p for p in tmp_path.iterdir() if not p.name.startswith(".writing-") and p.name not in (HISTORY, "current")
    ]
    assert len(complete) > 3  # those killed between rename and publication, and the last one
    for folder in complete:
        assert load_bundle(folder).fingerprint == folder.name
    assert load_bundle(current_bundle(tmp_path)).path in complete


def test_unfinished_bundles_of_running_processes_stay(parts, tmp_path):
    stage, catalog, statistics = parts
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    abandoned, active = f".writing-{dead.stdout.strip()}-a", f".writing-{os.getpid()}-b"
    (tmp_path / abandoned).mkdir()
    (tmp_path / abandoned / "items.parquet").write_bytes(b"half")
    (tmp_path / f"{abandoned}-current").symlink_to("nowhere")
    (tmp_path / active).mkdir()
    save_bundle(tmp_path, catalog, stage, statistics, FACTS)
    assert [p.name for p in tmp_path.glob(".writing-*")] == [active]


PICKLE = re.compile(
    r"\b(import|from) (c?pickle|dill|joblib|shelve|marshal|cloudpickle)\b|\b(pickle|dill|joblib)\.l"
    r"|torch\.(load|save)\b|np\.load\b|allow_pickle|read_pickle"
)


PIPES = ("worker.py", "decoder_pool.py")
"""Files in which a process sends pickles to its own child; nothing is read from disk, no reply is unpickled."""


def test_no_pickle_is_read_anywhere():
    root = Path(module.__file__).parents[2]
    sources = [p for name in ("features", "recsys", "serving", "experiments") for p in (root / name).rglob("*.py")]
    assert len(sources) > 30
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sources
        if path.name not in PIPES
        for line in path.read_text().splitlines()
        if PICKLE.search(line) and not any(option in line for option in ("weights_only=True", "allow_pickle=False"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line", ["import pickle", "x = torch.load(f)", "np.load(f, allow_pickle=True)", "joblib.load(f)"]
)
def test_the_search_for_pickle_finds_it(line):
    assert PICKLE.search(line)


def test_a_bundle_of_a_catalogue_without_content_loads(tmp_path):
    events = toy_log([(u, i, u * 10 + i) for u in range(4) for i in range(6)])
    stage, catalog, statistics = toy_stage(events, reranked=False)
    bundle = load_bundle(save_bundle(tmp_path, catalog, stage, statistics, FACTS))
    states = events.states(np.arange(4), np.full(4, 100))
    same(bundle.recommender.recommend(states, 4), stage.recommend(states, 4))
