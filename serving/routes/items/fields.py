"""Fields of items: what a body says, what is stored, and the new state that they give together."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import polars as pl
from pydantic import Field, ValidationError

from features.catalog import as_type, type_name
from features.instants import format_instant
from features.log.item_changes import MEDIA_FOLDER, store_media
from features.log.records import ItemPut
from features.schema import AUDIO, AVAILABLE, IMAGE, PUBLISHED, VIDEO
from serving.errors import ApiError
from serving.routes.search_query import json_object, media_source
from serving.schemas.body import first_error
from serving.schemas.fields import MAX_TEXT, Id, ItemText
from serving.servable import ServableBundle

MEDIA: Final = (IMAGE, AUDIO, VIDEO)

MAX_URL = 4096
"""Bytes of a URL."""

STORED: Final = "stored"
"""In place of a file: the one that the item has. It is no base64."""

Media = Annotated[
    str | None,
    Field(
        description="base64, or an https URL of a host that the bundle allows; `stored` is the file that the item has"
    ),
]


class ItemIn(ItemText):
    """Fields of an item; null is the same as no value. Extra columns of the bundle are further fields."""

    available: bool | None = True
    group_id: Id | None = Field(default=None, description="the same for all variants of one product")
    image: Media = None
    audio: Media = None
    video: Media = None


def parse_fields(body: bytes, bundle: ServableBundle, log: Path) -> dict[str, Any]:
    """The fields that a body names, as the log has them, None for null and STORED for a file that stays.

    Writes the media of the body to the log folder. Raises ApiError 400 or 422 that names the invalid field.
    """
    return checked_fields(json_object(body, "bad_item"), bundle, log)


def checked_fields(sent: Mapping[str, Any], bundle: ServableBundle, log: Path) -> dict[str, Any]:
    """`parse_fields` of a parsed body."""
    extra = extra_fields(bundle)
    if unknown := next((name for name in sent if name not in ItemIn.model_fields and name not in extra), None):
        fields = ", ".join((*ItemIn.model_fields, *extra))
        raise ApiError("bad_item", f"unknown field; available: {fields}", unknown[:64])
    try:
        item = ItemIn.model_validate({name: sent[name] for name in sent if name not in extra})
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError("bad_item", f"{place}: {reason}", place) from None
    frame, values = bundle.catalog.frame, item.model_dump(exclude_unset=True)
    for name in extra:
        if name in sent:
            values[name] = None if sent[name] is None else _checked_value(name, sent[name], frame)
    hosts = bundle.manifest["config"].get("limits", {}).get("hosts", ())
    media = {name: values[name] for name in MEDIA if values.get(name) and values[name] != STORED}
    sources = {name: _checked_media(value, name, hosts) for name, value in media.items()}
    files = {name: store_media(log, source) for name, source in sources.items() if isinstance(source, bytes)}
    return values | {name: source for name, source in sources.items() if isinstance(source, str)} | files


def new_state(
    item_id: str, sent: Mapping[str, Any], stored: Mapping[str, Any], now: int, *, keep: bool = False
) -> ItemPut:
    """The log record of an item with the fields that a body names; the others are null, or as they are stored.

    sent: as `parse_fields` returns them; stored: as `stored_fields` does; keep: the fields that are not named; now:
    µs. Raises ApiError 422 where there is no file that could stay.
    """
    fields = {**(stored if keep else {}), **sent}
    for name in MEDIA:
        if sent.get(name) == STORED:
            if not is_file(stored.get(name)):
                raise ApiError("bad_media", f"{name}: the item has no file; send base64 or an https URL", name)
            fields[name] = stored[name]
    values = {name: value for name, value in fields.items() if value is not None}
    return ItemPut(item_id=item_id, timestamp=now, fields={AVAILABLE: True} | values)


def extra_fields(bundle: ServableBundle) -> list[str]:
    """The fields of an item besides those of `ItemIn`."""
    return [name for name in bundle.data.extra_columns if name not in ItemIn.model_fields]


def fields_of_rows(bundle: ServableBundle, rows: Sequence[int], log: Path) -> list[dict[str, Any]]:
    """The fields of items of the bundle, as the log has them. rows: of the items."""
    catalog, folder = bundle.catalog, f"{log.resolve() / MEDIA_FOLDER}/"
    names = [name for name in (*ItemIn.model_fields, *extra_fields(bundle)) if name in catalog.frame.columns]
    items = []
    for row, values in zip(rows, catalog.frame[rows].select(names).to_dicts(), strict=True):
        fields = {name: value for name, value in values.items() if value is not None}
        if PUBLISHED in fields:
            fields[PUBLISHED] = format_instant(int(catalog.published[row]))
        for name, value in fields.items():
            if isinstance(value, date):
                fields[name] = value.isoformat()
            elif name in MEDIA and value.startswith(folder):
                fields[name] = f"{MEDIA_FOLDER}/{value.removeprefix(folder)}"
        items.append(fields)
    return items


def as_sent(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored fields as a body of `PUT` that changes nothing: STORED stands for a file."""
    return {AVAILABLE: True} | dict(stored) | {name: STORED for name in MEDIA if is_file(stored.get(name))}


def is_file(value: str | None) -> bool:
    """Whether an image, sound or video is a file, and no URL."""
    return bool(value) and not str(value).startswith(("https://", "http://"))


def _checked_media(value: str, place: str, hosts: Collection[str]) -> str | bytes:
    """The bytes of a file, or a URL of an allowed host. The URL is fetched later, which checks the host again."""
    source = media_source(value, place)
    if isinstance(source, bytes):
        return source
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError:
        raise ApiError("bad_media", f"{place} is not a valid URL", place) from None
    if len(value.encode()) > MAX_URL or not value.isprintable():
        raise ApiError("bad_media", f"{place} has more than {MAX_URL} bytes or unprintable characters", place)
    name, allowed = f"[{host}]" if ":" in host else host, {entry.lower() for entry in hosts}
    if parts.username is not None or not {f"{name}:{port}", *([name] if port == 443 else [])} & allowed:
        listed = ", ".join(hosts) or "none; send base64"
        raise ApiError("bad_media", f"{place}: {name}:{port} is not in limits.hosts: {listed}", place)
    return value


def _checked_value(name: str, value: Any, frame: pl.DataFrame) -> Any:
    """The value of an extra column. Raises ApiError 422 unless it fits the column's type in the bundle."""
    kind = frame.schema.get(name, pl.String())
    needed = type_name(kind)
    if kind.is_integer() and isinstance(value, int) and not isinstance(value, bool):
        empty = pl.Series(dtype=kind)
        needed = f"from {empty.lower_bound().item():,} to {empty.upper_bound().item():,}"
    try:
        if isinstance(value, bool) != (kind == pl.Boolean) or isinstance(value, list) != (kind == pl.List):
            raise ValueError
        if kind.is_temporal() and isinstance(value, str):
            sent = pl.DataFrame({name: [value]})
            if sent.select(as_type(sent, name, kind)).item() is None:
                raise ValueError
        else:
            pl.Series(name, [value], dtype=kind, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        raise ApiError("bad_item", f"{name}: must be {needed}, as in the bundle", name) from None
    if len(str(value)) > MAX_TEXT:
        raise ApiError("bad_item", f"{name}: must be a text of at most {MAX_TEXT:,} characters", name)
    return value
