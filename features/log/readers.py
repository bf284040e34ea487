"""The registered readers of the log: what each has read, so that retention deletes nothing that one still needs.

    readers/NAME.json    version, stream, position and time of the last advance of one reader

The file of a reader that no longer exists is deleted by hand.
"""

import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from features.errors import LogError, describe_os_error
from features.files import put_file
from features.log.records import EVENTS, VERSION, Stream
from features.log.segments import make_folder, segment_paths

logger = logging.getLogger(__name__)

READERS = "readers"
FEATURE_STORE = "feature-store"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SUFFIX = ".json"


@dataclass(frozen=True)
class Reader:
    """A registered reader.

    position: what it has read of the stream; advanced: time (µs) when it was last registered; exports: the folder
    that it copies the stream to, "" for none.
    """

    name: str
    stream: Stream
    position: Mapping[str, int]
    advanced: int
    exports: str = ""


def advance(folder: Path, name: str, stream: Stream, position: Mapping[str, int], *, exports: str = "") -> None:
    """Register a reader of a log, or move it to a position. It is on disk when this returns.

    Raises LogError for a name that is no name of a file, and when the position cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise LogError(f"reader {name!r}: a name has 1 to 64 letters, digits, '_', '.' and '-', e.g. nightly-export")
    reader = Reader(name, stream, dict(position), time.time_ns() // 1000, exports)
    path = folder / READERS / f"{name}{_SUFFIX}"
    try:
        make_folder(path.parent)
        put_file(path, lambda part: part.write_bytes(orjson.dumps({"v": VERSION, **asdict(reader)})))
    except OSError as error:
        raise LogError(f"reader {name!r} of the log cannot be registered: {describe_os_error(error)}") from error


def register_store(folder: Path | None, position: Mapping[str, int]) -> None:
    """Register the feature store as a reader of events. What fails is logged: the store itself is filled."""
    if folder is None or not folder.is_dir():
        return
    try:
        advance(folder, FEATURE_STORE, EVENTS, position)
    except LogError as error:
        logger.warning("%s; retention does not know what the feature store has read", error)


def registered(folder: Path) -> list[Reader]:
    """The registered readers of a log, by name. Raises LogError when the file of one cannot be read."""
    try:
        return [_read(path) for path in segment_paths(folder / READERS, _SUFFIX) if _NAME.fullmatch(path.stem)]
    except OSError as error:
        raise LogError(f"the readers of the event log cannot be read: {describe_os_error(error)}") from error


def reader_of(folder: Path, name: str) -> Reader | None:
    """One registered reader; None when there is none of this name. Raises LogError."""
    return next((reader for reader in registered(folder) if reader.name == name), None)


def holders(readers: Iterable[Reader], stream: Stream, key: str, size: int) -> list[Reader]:
    """The readers of a stream that have not read all bytes of a segment, given by its key."""
    return [r for r in readers if r.stream == stream and r.position.get(key, 0) < size]


def _read(path: Path) -> Reader:
    try:
        values = orjson.loads(path.read_bytes())
        return Reader(values["name"], values["stream"], values["position"], values["advanced"], values["exports"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise LogError(f"{path}: is no position of a reader: delete the file and run the reader again") from error
