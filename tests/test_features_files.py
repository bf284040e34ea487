"""What stands in place of a file: a folder, a pipe, a socket, a device or a link is named, and nothing is opened."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_data import toy_config, write_tables

from experiments.config import load_config
from features.content.spaces import SpaceKey
from features.content.vector_cache import SPACE, VectorCache
from features.errors import RecsysError
from features.files import not_a_file
from features.schema import DataConfig
from features.tables.files.file_format import check_format
from features.tables.read import read_items, read_tables
from features.tables.sources import get
from recsys.bundle.formats import read_manifest
from recsys.bundle.serving_copy import load_serving_bundle
from recsys.cli.options import config_path
from recsys.cli.serve import _check_file

FOLDER, PIPE, SOCKET = "a folder; give a file", "a pipe (FIFO); write it to a regular file", "a socket; give a"
LINK = "a link to none, which does not exist; correct the link"


def put_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


THINGS: dict[str, Callable[[Path], object]] = {
    FOLDER: Path.mkdir,
    PIPE: os.mkfifo,
    SOCKET: put_socket,
    LINK: lambda path: path.symlink_to("none"),
}

TABLES = DataConfig.model_validate({"source": "folder", "path": "data", "events": {"positive": {"take": None}}})
SEQUENCES = TABLES.model_copy(update={"source": "sequences", "path": "out", "origin": "data/s.txt"})
MOVIELENS = TABLES.model_copy(update={"source": "movielens", "path": "out", "origin": "data"})

DOORS: dict[str, Callable[[Path], object]] = {
    "data/items.csv": lambda path: read_tables(TABLES),
    "data/items.parquet": lambda path: read_items(TABLES),
    "data/events.csv": lambda path: get(TABLES),
    "data/events.parquet": lambda path: read_tables(TABLES),
    "data/events.jsonl": lambda path: read_tables(TABLES),
    "data/s.txt": lambda path: get(SEQUENCES),
    "data/ratings.dat": lambda path: [path.with_name("movies.dat").write_bytes(b""), get(MOVIELENS)],
    "toy.yaml": load_config,
    "configuration": lambda path: config_path(str(path)),
    "x.jsonl": check_format,
    "x.jpg": lambda path: _check_file("--image", path),
    "bundle/manifest.json": lambda path: read_manifest(path.parent),
    "served/manifest.json": lambda path: load_serving_bundle(path.parent),
    f"cache/{SPACE}": lambda path: VectorCache(path.parent, SpaceKey("m", "1", 4)),
}
"""Path -> the reader of a file there."""


@pytest.mark.parametrize("what", THINGS)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_file_is_named_at_every_door(
    door: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path / "data")
    toy_config(tmp_path)
    path = Path(door)
    path.parent.mkdir(exist_ok=True)
    for file in Path("data").glob(f"{path.stem}.*"):
        file.unlink()
    path.unlink(missing_ok=True)
    THINGS[what](path)
    raised: list[BaseException] = []

    def read() -> None:
        try:
            DOORS[door](path)
        except BaseException as error:
            raised.append(error)

    reader = threading.Thread(target=read, daemon=True)  # a pipe that is opened waits for ever
    reader.start()
    reader.join(60)
    assert not reader.is_alive(), "it waits for a writer"
    (error,) = raised
    assert isinstance(error, RecsysError), repr(error)
    assert f"{path}: {what}" in str(error).replace("'", "").replace("cannot be read: ", "").replace(
        f"{tmp_path}/", ""
    )


def test_what_stands_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    assert not_a_file(tmp_path / "file") is None
    assert not_a_file(tmp_path / "link") is None
    assert not_a_file(tmp_path / "none") == "no such file; check the path"
    assert not_a_file(Path("/dev/null")) == "a device; give a regular file"
    assert not_a_file(Path("a\0b")) == "no path: it has a null character; remove it"
    assert str(not_a_file(tmp_path / "file" / "x")).startswith("Not a directory; a file stands where a folder")
    assert "symbolic links" in str(not_a_file(tmp_path / "loop"))
