"""Rows of erased users: they are left out when tables are read. The tables stay as the customer wrote them."""

from dataclasses import replace

import numpy as np
import polars as pl

from features.log.erasure.erased_users import ErasedUsers
from features.schema import TIME, USER
from features.tables.files.json_lines import LINE
from features.tables.validate import Validated

LEFT_OUT = np.uint8(255)
"""Code of the valid rows that are left out; no violation has it."""

_USER_IN_LINE = rf'"{USER}"\s*:\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",}}]+))'
"""The user in a line that is no JSON object."""


def without_erased(validated: Validated, erased: ErasedUsers) -> tuple[Validated, list[str]]:
    """The table without rows of erased users, and a note that counts them.

    Events after the erasure count: they are of a person who has come back. Rejected rows, and those of the users
    table, have no time that can be compared, and are left out whenever they are from.
    """
    if not erased.users:
        return validated, []
    keep = _of_others(validated.kept, erased)
    kept, rejected = validated.kept.filter(keep), validated.rejected
    if len(rejected):
        rejected = rejected.filter(erased.times(users_of_rejected(rejected)).is_null())
    table, n = validated.count.table, len(validated.kept) - len(kept)
    what = "events" if table == "events" else f"rows of {table}"
    notes = [f"{n:,} {what} of erased users are left out"] if n else []
    if m := len(validated.rejected) - len(rejected):
        notes.append(f"{m:,} rejected rows of {table} are of erased users: they are not written")
    codes = validated.codes.copy()
    codes[np.flatnonzero(codes == 0)[~keep.to_numpy()]] = LEFT_OUT
    usable = validated.usable.filter(_of_others(validated.usable, erased))
    return replace(validated, kept=kept, codes=codes, rejected=rejected, usable=usable), notes


def events_of_others(events: pl.DataFrame, erased: ErasedUsers) -> pl.DataFrame:
    """The canonical events that are not of an erased user."""
    return events.filter(_of_others(events, erased)) if erased.users else events


def _of_others(rows: pl.DataFrame, erased: ErasedUsers) -> pl.Series:
    """(n,) bool: the rows that are not of an erased user, or later than the erasure."""
    at = erased.times(rows.get_column(USER))
    keep = at.is_null()
    if TIME in rows.columns:
        keep |= (rows.get_column(TIME).to_physical().cast(pl.Int64) > at).fill_null(False)
    return keep


def users_of_rejected(rows: pl.DataFrame) -> pl.Series:
    """(n,) text: the user of each rejected row; null where it cannot be read."""
    user = pl.col(USER).cast(pl.String) if USER in rows.columns else pl.lit(None, pl.String)
    if LINE in rows.columns:
        groups = pl.col(LINE).str.extract_groups(_USER_IN_LINE)
        user = pl.coalesce(user, groups.struct.field("1"), groups.struct.field("2"))
    return rows.select(user.alias(USER)).to_series()
