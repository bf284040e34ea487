"""Two spaces side by side: neighbours that stay, the switch in one step, the way back, and the command."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from test_recsys_bundle_io import EVENTS, FACTS
from toy_data import toy_catalog, toy_stage

from features.content.spaces import Embedded, SpaceKey
from features.errors import BundleError
from recsys.bundle.compare import compare_bundles
from recsys.bundle.io import load_bundle, save_bundle
from recsys.bundle.registry import current_bundle, find_bundle, list_bundles, publish_bundle
from recsys.content.content_space import ContentSpace

N = 30


def angles(degrees):
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


def content(vectors, name):
    key = SpaceKey(name, "1", vectors.shape[1])
    return ContentSpace(key, None, {"text": Embedded(key, vectors, np.ones(len(vectors), dtype=np.bool_))})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two bundles of one training whose contents lie otherwise: on a circle in order, and with the ends swapped."""
    root = tmp_path_factory.mktemp("bundles")
    rows = [{"name": "ours", "hr_at_10": {"mean": 0.25}, "ndcg_at_10": {"mean": 0.125}}]
    table = {"title": "toy · home", "note": "time cut", "ours": "ours", "split_hashes": ["s"], "rows": rows}
    for name, order in (("one", np.arange(N)), ("other", np.r_[N - 1, 1 : N - 1, 0])):
        vectors = angles(order * 3.0)
        stage, catalog, statistics = toy_stage(EVENTS, toy_catalog(N, text=vectors))
        facts = FACTS | {"config": FACTS["config"] | {"name": name}, "metrics": [table]}
        save_bundle(root, catalog, stage, statistics, facts, content(vectors, name))
    return root


@pytest.fixture
def copies(root, tmp_path):
    return shutil.copytree(root, tmp_path / "bundles", symlinks=True)


def test_a_bundle_beside_itself_keeps_every_neighbour(root):
    bundle = load_bundle(list_bundles(root)[0])
    told = compare_bundles(bundle, bundle, k=3)
    assert told["overlap"] == {"behaviour": 1.0, "content": 1.0}


def test_neighbours_that_change_are_counted(root):
    one, other = map(load_bundle, list_bundles(root))
    told = compare_bundles(one, other, k=1)
    # nearest on the circle, ties to none: item i has i-1 and i+1 at one distance, so k = 2 is the whole neighbourhood
    near = {i: {i - 1, i + 1} for i in range(1, N - 1)} | {0: {1, 2}, N - 1: {N - 2, N - 3}}
    place = np.r_[N - 1, 1 : N - 1, 0]
    after = {int(place[i]): {int(place[j]) for j in js} for i, js in near.items()}
    expected = np.mean([len(near[i] & after[i]) / 2 for i in range(N)])
    assert compare_bundles(one, other, k=2)["overlap"]["content"] == pytest.approx(expected)
    assert told["items"] == {one.fingerprint: N, other.fingerprint: N, "both": N}
    assert told["spaces"][one.fingerprint].startswith("one@1")
    assert told["metrics"][other.fingerprint][0]["rows"][0]["ndcg_at_10"]["mean"] == 0.125


def test_bundles_without_contents_have_none_to_compare(root):
    bundle = load_bundle(list_bundles(root)[0])
    bare = replace(bundle, content=None, catalog=replace(bundle.catalog, has_content=np.zeros(N, dtype=np.bool_)))
    assert compare_bundles(bundle, bare)["overlap"]["content"] is None
    assert compare_bundles(bundle, bare)["spaces"][bare.fingerprint] is None


def test_too_few_common_items_are_refused(root):
    bundle = load_bundle(list_bundles(root)[0])
    with pytest.raises(BundleError, match="share 30 items: too few"):
        compare_bundles(bundle, bundle, k=30)


def test_a_bundle_is_found_by_the_beginning_of_its_name(copies):
    one, other = list_bundles(copies)
    assert find_bundle(copies, one.name) == one
    publish_bundle(other)
    assert find_bundle(copies, "current") == other
    with pytest.raises(BundleError, match="0 bundles begin with 'nope'; there are: "):
        find_bundle(copies, "nope")
    with pytest.raises(BundleError, match="2 bundles begin with ''"):
        find_bundle(copies, "")


def recsys(*arguments):
    code = "from recsys.cli.main import main; main()"
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "400"}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=env)


def test_the_command_compares_switches_and_goes_back(copies):
    one, other = list_bundles(copies)
    publish_bundle(one)
    told = recsys("bundle", "compare", "current", other.name[:6], "--bundles", copies).stdout
    assert "of the 10 nearest stay" in told
    assert f"{other.name} · toy · home (time cut; split s): hr_at_10 0.2500, ndcg_at_10 0.1250" in told
    assert recsys("bundle", "publish", other.name[:6], "--bundles", copies).returncode == 0
    assert current_bundle(copies) == other
    assert recsys("bundle", "publish", one.name, "--bundles", copies).returncode == 0
    assert current_bundle(copies) == one
    listed = recsys("bundle", "list", "--bundles", copies).stdout.splitlines()
    assert [line.split()[0] for line in listed] == [one.name, other.name]
    assert [line.endswith("<- current") for line in listed] == [True, False]


def test_a_damaged_bundle_is_not_published(copies):
    one, other = list_bundles(copies)
    publish_bundle(one)
    (other / "vectors.npy").write_bytes(b"")
    done = recsys("bundle", "publish", other.name, "--bundles", copies)
    assert done.returncode == 1
    assert "vectors.npy" in done.stderr
    assert current_bundle(copies) == one
