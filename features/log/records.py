"""What the event log holds: one line a record."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Event:
    """One accepted event. timestamp in µs since 1970 UTC; order breaks ties among equal timestamps of one request."""

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
class Exposure:
    """What one request was shown, best first: items, scores and propensities have one length; positions are 1, 2, …

    item_id: the item beside which they were shown (similar items), else None; user_id "" where there was none.
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


@dataclass(frozen=True, slots=True)
class ItemPut:
    """All that an item is from now on: values by the name of their column in the items table, absent ones null.

    timestamp in µs since 1970 UTC; media are URLs, or files that `features.log.item_changes.keep_media` named.
    """

    kind: Literal["item_put"] = field(default="item_put", init=False)
    item_id: str
    timestamp: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ItemGone:
    """An item that is not to be shown from now on, until it is put again."""

    kind: Literal["item_gone"] = field(default="item_gone", init=False)
    item_id: str
    timestamp: int


Record = Event | Exposure | ItemPut | ItemGone
_KINDS: dict[str, type[Event] | type[Exposure] | type[ItemPut] | type[ItemGone]] = {
    "event": Event,
    "exposure": Exposure,
    "item_put": ItemPut,
    "item_gone": ItemGone,
}
_FIELDS = {kind: tuple(f.name for f in fields(of) if f.init) for kind, of in _KINDS.items()}


def record_of(found: dict[str, Any]) -> Record | None:
    """The record that was written as `found`; None where this version knows no such kind."""
    kind = str(found.get("kind"))
    if kind not in _KINDS:
        return None
    return _KINDS[kind](**{name: found[name] for name in _FIELDS[kind] if name in found})
