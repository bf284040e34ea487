"""Which exposed item an event belongs to. Each event belongs to one or to none.

An event that names a request belongs to its item in the answer to that request, whoever the user is. One that names
none belongs to the latest exposure of its item to its user, at or before its time. Either happens within the window:
at most `within` after the exposure. The clock of a device may be behind: an event that names the request may be up to
a day earlier than the exposure.
"""

import polars as pl

from features.instants import MAX_CLOCK_SKEW
from features.schema import EVENT, ITEM, REQUEST_ID, TIME, USER, VALUE

SHOWN = "__shown"
"""Column of events: number of the exposed item that the event belongs to."""

_NAMES_REQUEST = pl.col(REQUEST_ID).fill_null("") != ""


def attribute(exposed: pl.DataFrame, events: pl.DataFrame, within: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The events that belong to an exposed item, with its SHOWN: those that name the request, and the others.

    exposed: SHOWN, REQUEST_ID, USER (null for none), ITEM, TIME; events: canonical columns; within: µs.
    """
    span = pl.duration(microseconds=within)
    named = events.filter(_NAMES_REQUEST).join(
        exposed.select(SHOWN, REQUEST_ID, ITEM, pl.col(TIME).alias("__at")), on=[REQUEST_ID, ITEM], how="inner"
    )
    earliest, latest = pl.col("__at") - pl.duration(microseconds=MAX_CLOCK_SKEW), pl.col("__at") + span
    named = named.filter(pl.col(TIME).is_between(earliest, latest)).drop("__at")
    shown = exposed.filter(pl.col(USER).is_not_null()).select(SHOWN, USER, ITEM, TIME, pl.col(TIME).alias("__at"))
    others = (
        events.filter(~_NAMES_REQUEST)
        .sort(TIME, maintain_order=True)
        .join_asof(shown.sort(TIME, maintain_order=True), on=TIME, by=[USER, ITEM], check_sortedness=False)
        .filter(pl.col(TIME) <= latest)
        .drop("__at")
    )
    return named, others


def summarized(attributed: pl.DataFrame, types: dict[str, bool]) -> pl.DataFrame:
    """SHOWN, and for each event type TYPE_at, TYPE_count and, where `types` says that it has values, TYPE_value.

    TYPE_at: time of the first event; TYPE_value: sum of the values, null without any.
    """
    columns = []
    for name, has_values in types.items():
        is_type = pl.col(EVENT) == name
        columns += [
            pl.col(TIME).filter(is_type).min().alias(f"{name}_at"),
            is_type.sum().cast(pl.Int64).alias(f"{name}_count"),
        ]
        if has_values:
            values = pl.col(VALUE).filter(is_type).drop_nulls()
            columns.append(pl.when(values.len() > 0).then(values.sum()).alias(f"{name}_value"))
    return attributed.group_by(SHOWN).agg(columns)
