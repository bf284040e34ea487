"""The lines of a person in the files of the log, and their erasure.

A line counts as the person's when its JSON names the person as a user. Bytes that are no record (a wrong checksum, a
torn end) belong to nobody that can be known: they count when the id stands in them.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from features.log.erasure.overwrite import Piece, overwrite
from features.log.erasure.person import Person, lines_with
from features.log.records import STREAMS
from features.log.segments import has_ended, payload_of, scan, segment_key, segment_paths

Ends = Mapping[str, int]
"""File of the log, as a path in its folder -> number of bytes."""


@dataclass(frozen=True)
class Found:
    """The person's lines in one file. records: as `Piece`; damaged: pieces that are no record, and hold the id."""

    path: Path
    records: list[Piece]
    damaged: list[Piece]

    @property
    def pieces(self) -> list[Piece]:
        """All of them."""
        return sorted([*self.records, *self.damaged])


def line_files(folder: Path) -> list[Path]:
    """The segments and torn ends of all streams, and those of earlier versions. Raises OSError."""
    folders = (folder, *(folder / stream for stream in STREAMS))
    return [path for own in folders for suffix in (".log", ".torn") for path in segment_paths(own, suffix)]


def log_ends(folder: Path) -> dict[str, int]:
    """How long the files are now: what is appended later is not looked at. Raises OSError."""
    return {segment_key(folder, path): path.stat().st_size for path in line_files(folder)}


def find_lines(folder: Path, person: Person, until: Ends, since: Ends | None = None) -> Iterator[Found]:
    """The person's lines in each file of `until`, also in those without any. since: where to begin in each file.

    Raises OSError.
    """
    for key, end in until.items():
        with suppress(FileNotFoundError):  # a service has taken back an unwritten segment
            yield _find(folder / key, person, (since or {}).get(key, 0), end)


def _find(path: Path, person: Person, start: int, end: int) -> Found:
    records: list[Piece] = []
    damaged: list[Piece] = []
    if min(end, path.stat().st_size) <= start:
        return Found(path, [], [])
    with path.open("rb") as file:
        data = file.read(end)
    for offset, length in _candidates(data, person, start):
        line = data[offset : offset + length]
        payload = payload_of(line[:-1]) if line.endswith(b"\n") else None
        if payload is not None:
            if person.is_named_by(payload):
                records.append((offset, length))
        elif person.stands_in(line) and (line.endswith(b"\n") or path.suffix != ".log" or has_ended(path)):
            damaged.append((offset, length))
    return Found(path, records, damaged)


def _candidates(data: bytes, person: Person, start: int) -> Iterable[Piece]:
    """The lines, from that of the byte `start` on, that may be the person's.

    The bytes of a short id stand in most lines: there only lines with the id in quotes and damaged lines count.
    """
    if person.is_distinctive:
        return lines_with(data, person.forms, start)
    _, end, damaged = scan(data)
    after = (piece for piece in damaged if sum(piece) > start)
    quoted = lines_with(data, person.quoted, start)
    return sorted({*quoted, *after, *lines_with(data, person.forms, max(start, end))})


def erase_lines(folder: Path, person: Person, until: Ends) -> list[Found]:
    """Overwrite the person's lines. Only under the lock of the upkeep. Raises OSError."""
    found = list(find_lines(folder, person, until))
    for part in found:
        overwrite(folder, part.path, part.pieces)
    return found
