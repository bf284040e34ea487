"""Records, and logs as earlier versions wrote them, for the tests of the log."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from zlib import crc32

import orjson

from features.log.item_changes import ItemChanges
from features.log.reader import read
from features.log.records import Event, Exposure, ItemDeleted, ItemPut, Record, Stream


def event(number: int, user: str = "u") -> Event:
    return Event(user_id=user, item_id=f"i{number}", event="click", timestamp=number, event_id=f"e{number}")


def exposure(number: int, items: int = 2) -> Exposure:
    return Exposure(
        request_id=f"r{number}",
        user_id="u",
        placement="home",
        timestamp=number,
        fingerprint="f",
        variant="default",
        source="model",
        degraded=(),
        items=tuple(f"i{n}" for n in range(items)),
        scores=(1.0,) * items,
        propensities=(1.0,) * items,
    )


def put(item: str, time: int, **fields: object) -> ItemPut:
    return ItemPut(item_id=item, timestamp=time, fields=fields)


def gone(item: str, time: int) -> ItemDeleted:
    return ItemDeleted(item_id=item, timestamp=time)


def legacy_segment(folder: Path, records: Iterable[Record], number: int = 1_700_000_000 * 10**9) -> Path:
    """A segment as version 0.2 wrote it: all streams in one file, no version, written for a second."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:020d}-7.log"
    payloads = [orjson.dumps(record) for record in records]
    path.write_bytes(b"".join(b"%08x %s\n" % (crc32(payload), payload) for payload in payloads))
    os.utime(path, ns=(number + 10**9, number + 10**9))
    return path


def read_all(folder: Path, stream: Stream, since: dict[str, int] | None = None, limit: int = 1 << 20) -> list[Record]:
    """All records of a stream after a position, which is moved."""
    position = {} if since is None else since
    records: list[Record] = []
    while (part := read(folder, position, stream=stream, limit=limit)).position != position:
        records += part.records
        position.clear()
        position.update(part.position)
    return records


def ids(records: Sequence[Record]) -> list[int]:
    """The times of records, which number them in these tests."""
    return [record.timestamp for record in records]


def state(folder: Path) -> tuple[list[str], dict[str, ItemPut], frozenset[str]]:
    """The item changes of a log: the order of the puts, the puts, the deleted items."""
    changes = ItemChanges.of(folder)
    return list(changes.puts), changes.puts, changes.deleted
