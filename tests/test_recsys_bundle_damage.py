"""Damaged bundles: whatever happens to a file or a key of the manifest, loading ends in BundleError.

Files are damaged twice: as they are, which a checksum finds, and with checksums made to fit, as by a faulty writer.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_recsys_bundle_io import EVENTS, seal
from toy_data import FACTS, toy_catalog, toy_stage
from typer.testing import CliRunner

from features.errors import BundleError
from recsys.bundle.formats import checksum_of, fingerprint_of, read_manifest
from recsys.bundle.io import load_bundle, save_bundle, trained_events
from recsys.bundle.registry import publish_bundle
from recsys.cli.main import app


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    text = np.eye(30, 4, dtype=np.float32)
    stage, catalog, statistics = toy_stage(EVENTS, toy_catalog(30, text=text))
    root = tmp_path_factory.mktemp("bundles")
    keys = np.arange(100, dtype=np.uint64)
    return save_bundle(root, catalog, stage, statistics, FACTS, trained=keys)


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / saved.name))


FILES: tuple[str, ...] = (
    "manifest.json",
    "items.parquet",
    "arrays.safetensors",
    "towers.safetensors",
    "reranker.txt",
)
FILES += ("vectors.json", "vectors.npy", "contents.json", "contents.npy", "trained_events.npy")


def as_folder(file):
    file.unlink()
    file.mkdir()


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "without its last byte": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "first byte": lambda file: file.write_bytes(b"\xff" + file.read_bytes()[1:]),
    "last byte": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\xfe"),
    "text": lambda file: file.write_text("not a file of a bundle\n"),
    "UTF-16": lambda file: file.write_text("no", encoding="utf-16"),
    "nested": lambda file: file.write_text("[" * 100_000),
    "a folder": as_folder,
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_bundle_error(copy, name, damage):
    DAMAGES[damage](copy / name)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        load_bundle(copy)


SEALED = sorted(set(DAMAGES) - {"missing", "a folder", "a link to nothing"})


HARMLESS = {("first byte", "items.parquet"), ("without its last byte", "reranker.txt")}


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("damage", SEALED)
def test_a_damaged_file_with_a_fitting_checksum_is_a_bundle_error(copy, name, damage):
    if damage in ("longer", "last byte") or (damage, name) in HARMLESS:
        return  # a byte that no reader reads, or another number
    DAMAGES[damage](copy / name)
    seal(copy)
    with pytest.raises(BundleError):
        trained_events(load_bundle(copy))


def sealed(folder, manifest):
    """Write a manifest with the fingerprint and the checksum that fit it."""
    for digest in ("fingerprint", "checksum"):
        manifest.pop(digest, None)
    try:
        manifest["fingerprint"] = fingerprint_of(manifest)
    except (AttributeError, KeyError, TypeError):
        manifest["fingerprint"] = "0" * 16
    manifest["checksum"] = checksum_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


READ: tuple[str, ...] = (
    "format",
    "files",
    "towers",
    "candidates",
    "fitted_until",
    "statistics_until",
    "category_names",
    "content",
)
READ += ("content_dimension", "config")
WRONG: tuple[object, ...] = (None, 5, -1, 1.5, "text", [], [1], {}, {"a": 1}, True)


@pytest.mark.parametrize("key", READ)
def test_a_missing_key_of_the_manifest_is_a_bundle_error(copy, key):
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest[key]
    sealed(copy, manifest)
    with pytest.raises(BundleError):
        load_bundle(copy)


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("key", READ)
def test_a_key_of_a_wrong_type_is_a_bundle_error_or_serves(copy, key, value):
    """A wrong number may be a right one for the loader; nothing but BundleError may be raised."""
    manifest = json.loads((copy / "manifest.json").read_text())
    sealed(copy, manifest | {key: value})
    try:
        load_bundle(copy)
    except BundleError:
        return
    assert (key, type(value)) in {
        *((name, int) for name in ("candidates", "fitted_until", "statistics_until")),
        ("content", type(None)),  # what the bundle has
        ("category_names", list),
    }


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["compare current current", "publish {name}"])
def test_commands_on_a_damaged_manifest_end_in_one_line(copy, command, damage):
    publish_bundle(copy)
    DAMAGES[damage](copy / "manifest.json")
    arguments = ["bundle", *command.format(name=copy.name).split(), "--bundles", str(copy.parent)]
    done = CliRunner().invoke(app, arguments)
    assert done.exception is None or isinstance(done.exception, BundleError | SystemExit)


def test_the_manifest_is_read_without_the_files(copy):
    (copy / "vectors.npy").unlink()
    assert read_manifest(copy)["fingerprint"] == copy.name
