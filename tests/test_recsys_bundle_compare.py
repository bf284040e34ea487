"""Comparison of bundles, publishing and republishing, and the commands."""

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_recsys_bundle_io import EVENTS
from toy_data import FACTS, toy_catalog, toy_stage

from features.content.spaces import Embedded, SpaceKey
from features.errors import BundleError, describe_os_error
from recsys.bundle.compare import compare_bundles
from recsys.bundle.io import load_bundle, save_bundle
from recsys.bundle.registry import current_bundle, find_bundle, list_bundles, publish_bundle
from recsys.cli.bundle import bundle_list
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
    """Two bundles of one training with different contents: on a circle in order, and with both ends swapped."""
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


def test_a_bundle_compared_with_itself_keeps_every_neighbour(root):
    bundle = load_bundle(list_bundles(root)[0])
    report = compare_bundles(bundle, bundle, k=3)
    assert report["overlap"] == {"behaviour": 1.0, "content": 1.0}


def test_neighbours_that_change_are_counted(root):
    first, second = map(load_bundle, list_bundles(root))
    report = compare_bundles(first, second, k=1)
    # on the circle, i-1 and i+1 have the same distance from item i: k = 2 includes both
    neighbours = {i: {i - 1, i + 1} for i in range(1, N - 1)} | {0: {1, 2}, N - 1: {N - 2, N - 3}}
    position = np.r_[N - 1, 1 : N - 1, 0]
    after = {int(position[i]): {int(position[j]) for j in js} for i, js in neighbours.items()}
    expected = np.mean([len(neighbours[i] & after[i]) / 2 for i in range(N)])
    assert compare_bundles(first, second, k=2)["overlap"]["content"] == pytest.approx(expected)
    assert report["items"] == {first.fingerprint: N, second.fingerprint: N, "both": N}
    assert report["spaces"][first.fingerprint].startswith("one@1")
    assert report["metrics"][second.fingerprint][0]["rows"][0]["ndcg_at_10"]["mean"] == 0.125


def test_bundles_without_contents_have_none_to_compare(root):
    bundle = load_bundle(list_bundles(root)[0])
    without = replace(bundle, content=None, catalog=replace(bundle.catalog, has_content=np.zeros(N, dtype=np.bool_)))
    assert compare_bundles(bundle, without)["overlap"]["content"] is None
    assert compare_bundles(bundle, without)["spaces"][without.fingerprint] is None


def test_too_few_common_items_are_rejected(root):
    bundle = load_bundle(list_bundles(root)[0])
    with pytest.raises(BundleError, match="share 30 items: too few"):
        compare_bundles(bundle, bundle, k=30)


def test_a_bundle_is_found_by_a_prefix_of_its_name(copies):
    first, second = list_bundles(copies)
    assert find_bundle(copies, first.name) == first
    publish_bundle(second)
    assert find_bundle(copies, "current") == second
    with pytest.raises(BundleError, match="0 bundles begin with 'nope'; there are: "):
        find_bundle(copies, "nope")
    with pytest.raises(BundleError, match="the name of a bundle is empty"):
        find_bundle(copies, "")


def recsys(*arguments):
    code = "from recsys.cli.main import main; main()"
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "400"}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=env)


def test_the_commands_compare_publish_and_republish(copies):
    first, second = list_bundles(copies)
    publish_bundle(first)
    output = recsys("bundle", "compare", "current", second.name[:6], "--bundles", copies).stdout
    assert "of the 10 nearest stay" in output
    assert f"{second.name} · toy · home (time cut; split s): hr_at_10 0.2500, ndcg_at_10 0.1250" in output
    assert recsys("bundle", "publish", second.name[:6], "--bundles", copies).returncode == 0
    assert current_bundle(copies) == second
    assert recsys("bundle", "publish", first.name, "--bundles", copies).returncode == 0
    assert current_bundle(copies) == first
    listed = recsys("bundle", "list", "--bundles", copies).stdout.splitlines()
    assert [line.split()[0] for line in listed] == [first.name, second.name]
    assert [line.endswith("<- current") for line in listed] == [True, False]


def test_a_damaged_bundle_is_not_published(copies):
    first, second = list_bundles(copies)
    publish_bundle(first)
    (second / "vectors.npy").write_bytes(b"")
    done = recsys("bundle", "publish", second.name, "--bundles", copies)
    assert done.returncode == 1
    assert "vectors.npy" in done.stderr
    assert current_bundle(copies) == first


def test_a_link_to_a_bundle_that_is_gone_is_told_and_the_others_are_listed(
    copies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copies / "current").unlink(missing_ok=True)
    (copies / "current").symlink_to("gone")
    bundle_list(copies)
    said = capsys.readouterr()
    assert said.err == (
        f"warning: {copies}/current points to gone, which is no folder there: restore it, or publish another bundle "
        "(`recsys bundle list` shows them)\n"
    )
    assert len(said.out.splitlines()) == len(list_bundles(copies))
    assert "<- current" not in said.out


def test_a_bundle_that_cannot_be_published_names_the_link(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(target), None, str(path))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(PermissionError) as caught:
        publish_bundle(list_bundles(copies)[0])
    assert describe_os_error(caught.value).startswith(
        f"{copies}/current: Permission denied; give this user the right"
    )
