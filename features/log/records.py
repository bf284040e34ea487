"""The records of the event log, one per line, and the stream that each kind belongs to.

A line is "<CRC-32 of the JSON, 8 hex> <JSON>\\n". The JSON begins with the version of the record, "v". Records
without a version are of version 0, which differs from version 1 in that alone. A field that is added has a default
and needs no new version: records without it are read with the default, and earlier versions of the code pass it over.

A filler is a line of the kind "erased" in place of a record of an erased user (`features.log.erasure`). It has the
length of that line and no content; readers pass over it.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from zlib import crc32

import orjson

VERSION = 1

Stream = Literal["events", "exposures", "items", "corrections"]
EVENTS: Stream = "events"
EXPOSURES: Stream = "exposures"
ITEMS: Stream = "items"
CORRECTIONS: Stream = "corrections"
STREAMS: tuple[Stream, ...] = (EVENTS, EXPOSURES, ITEMS, CORRECTIONS)

ERASED: Literal["erased"] = "erased"
"""Kind of a filler."""


@dataclass(frozen=True, slots=True)
class Event:
    """One accepted event.

    timestamp: µs since 1970 UTC; order: breaks ties between equal timestamps of one request.
    """

    kind: Literal["event"] = field(default="event", init=False)
    user_id: str
    item_id: str
    event: str
    timestamp: int
    value: float | None = None
    event_id: str = ""
    request_id: str | None = None
    position: int | None = None
    order: int = 0


@dataclass(frozen=True, slots=True)
class Exploration:
    """How the items at the explored positions of a slate were drawn. `recsys.ranking.exploration` defines the law.

    policy: name of the rule; law: name of the law; rate: see the rule; seed: of the draw; positions: those that are
    explored, of each of them: own: the item that stands there without exploration; pools: the items that may be drawn
    in its place, none where the pool is empty. drawn: the positions that show an item of their pool.
    """

    policy: str
    law: str
    rate: float
    seed: int
    positions: tuple[int, ...]
    own: tuple[str, ...]
    pools: tuple[tuple[str, ...], ...]
    drawn: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a slate was chosen from, of a share of the answers.

    candidates, candidate_scores: the best candidates, best first; features: of each item of the slate the features
    that the reranker read, in the order of feature_names, None where one is undefined. Both are empty where no
    reranker ranked the items.
    """

    candidates: tuple[str, ...]
    candidate_scores: tuple[float, ...]
    feature_names: tuple[str, ...]
    features: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Exposure:
    """The slate of one response, best item first.

    items, scores, propensities and reasons have one length; the positions are first_position, first_position + 1, …;
    reasons: the source of each item, none in records of version 0.2 and earlier; exploration: None where nothing is
    explored; sample: None for most answers; item_id: the item whose similar items were requested, otherwise None;
    user_id: "" for a request without a user.
    """

    kind: Literal["exposure"] = field(default="exposure", init=False)
    request_id: str
    user_id: str
    placement: str
    timestamp: int
    fingerprint: str
    variant: str
    source: str
    degraded: tuple[str, ...]
    items: tuple[str, ...]
    scores: tuple[float, ...]
    propensities: tuple[float, ...]
    item_id: str | None = None
    first_position: int = 1
    reasons: tuple[str, ...] = ()
    exploration: Exploration | None = None
    sample: Sample | None = None


@dataclass(frozen=True, slots=True)
class ItemPut:
    """The complete new state of an item.

    fields: column of the items table -> value, null for absent columns; media are URLs or names that
    `features.log.item_changes.store_media` returned; timestamp: µs since 1970 UTC.
    """

    kind: Literal["item_put"] = field(default="item_put", init=False)
    item_id: str
    timestamp: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ItemDeleted:
    """The deletion of an item: it is not recommended until it is put again."""

    kind: Literal["item_gone"] = field(default="item_gone", init=False)
    item_id: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class UsersMerged:
    """The events of `from_id` whose time is `until` or earlier belong to `user_id`.

    timestamp, until: µs since 1970 UTC. `features.log.corrections` defines what a merge means.
    """

    kind: Literal["merge"] = field(default="merge", init=False)
    user_id: str
    from_id: str
    timestamp: int
    until: int


@dataclass(frozen=True, slots=True)
class EventUndone:
    """The event of this event_id does not count, whenever it is logged. See `features.log.corrections`."""

    kind: Literal["undo"] = field(default="undo", init=False)
    user_id: str
    event_id: str
    timestamp: int


Correction = UsersMerged | EventUndone
Record = Event | Exposure | ItemPut | ItemDeleted | Correction
_KINDS: dict[str, type[Record]] = {
    "event": Event,
    "exposure": Exposure,
    "item_put": ItemPut,
    "item_gone": ItemDeleted,
    "merge": UsersMerged,
    "undo": EventUndone,
}
_FIELDS = {kind: tuple(f.name for f in fields(cls) if f.init) for kind, cls in _KINDS.items()}
_STREAMS: dict[str, Stream] = {
    "event": EVENTS,
    "exposure": EXPOSURES,
    "item_put": ITEMS,
    "item_gone": ITEMS,
    "merge": CORRECTIONS,
    "undo": CORRECTIONS,
}
_PARTS: dict[str, type[Exploration | Sample]] = {"exploration": Exploration, "sample": Sample}
"""Fields of an exposure that are records themselves."""

_START = re.compile(rb'\{(?:"v":(\d{1,9}),)?"kind":"(\w+)"')


def line(record: Record) -> bytes:
    """The line of a record."""
    return line_of(b'{"v":%d,%s' % (VERSION, orjson.dumps(record)[1:]))


def line_of(payload: bytes) -> bytes:
    """The line of a JSON text: its checksum, the text, a newline."""
    return b"%08x %s\n" % (crc32(payload), payload)


_FILLER = b'{"v":%d,"kind":"erased","pad":"%s"}'
FILLER_BYTES = len(line_of(_FILLER % (VERSION, b"")))
"""Length of the shortest filler. The line of every record is longer."""


def filler(length: int) -> bytes:
    """The filler of `length` bytes, FILLER_BYTES or more."""
    return line_of(_FILLER % (VERSION, b"x" * (length - FILLER_BYTES)))


def stream_of(record: Record) -> Stream:
    """The stream that a record is appended to."""
    return _STREAMS[record.kind]


def stream_of_payload(payload: bytes) -> Stream | Literal["erased"] | None:
    """The stream of a line's JSON, ERASED of a filler; None when this version does not know its kind or version."""
    start = _START.match(payload)
    if start is None or int(start[1] or 0) > VERSION:
        return None
    if start[2] == b"erased":
        return ERASED
    return _STREAMS.get(start[2].decode())


def record_of(payload: dict[str, Any]) -> Record | None:
    """The record of a log line's JSON object; None for a kind or a version that this version does not know.

    Keys that the kind does not have are ignored.
    """
    kind, version = str(payload.get("kind")), payload.get("v", 0)
    if kind not in _KINDS or not isinstance(version, int) or version > VERSION:
        return None
    values = {name: payload[name] for name in _FIELDS[kind] if name in payload}
    if kind == "exposure":
        for name, part in _PARTS.items():
            if given := values.get(name):
                values[name] = part(**{f.name: given[f.name] for f in fields(part)})
    return _KINDS[kind](**values)
