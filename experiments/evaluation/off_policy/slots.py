"""The explored slots of a log: what was shown, what else could have been, and what the user did.

A slot is an explored position of one answer. Its *choices* are its own item and the items of its pool
(`recsys.ranking.exploration`); one of them was shown, with a known probability.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.arrays import Doubles, Ints
from features.errors import DataError
from features.interactions import Ragged
from features.log.outcomes.table import COLUMNS
from features.log.reader import frame_of_exposures, read_lines
from features.log.records import EXPOSURES
from features.schema import ITEM, POSITION, PROPENSITY, REQUEST_ID, TIME, USER
from features.tables.files.parquet import scan_parquet
from features.tables.scan import reading
from recsys.ranking.exploration import LAW

_KEYS = (REQUEST_ID, POSITION)


@dataclass(frozen=True)
class Slots:
    """m explored slots whose pool is not empty, of answers whose window is over; by answer and position.

    users, answers (m,): number of the user of each, in `user_ids`, and of the answer, in `request_ids`; times (m,):
    of the answer (µs); positions (m,); choices: of m slots, numbers of items in `item_ids`: the own item, then the
    pool, best first by the ranking that was logged; shown (m,): index of the shown item in `choices.flat`; rewards
    (m,): events of the type; logged (m,): probability of the shown item; open, unknown: explored rows that are left
    out, because their window is open, or because the log does not have their choices.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    request_ids: tuple[str, ...]
    users: Ints
    answers: Ints
    times: Ints
    positions: Ints
    choices: Ragged
    shown: Ints
    rewards: Doubles
    logged: Doubles
    open: int
    unknown: int

    def __len__(self) -> int:
        return len(self.users)


def read_slots(outcomes: Path, log: Path, event: str, since: int | None = None) -> Slots:
    """The slots of a file of `recsys log outcomes` whose choices the exposures of the log name.

    event: type of the events that are the reward; since: µs, answers until then are left out: what was trained on
    their events cannot be judged by them. Raises DataError where the file is none of outcomes or has no such
    type, and where it has no explored slot that can be used; LogError where the log cannot be read.
    """
    rows = _outcomes(outcomes, event)
    explored = rows.filter((pl.col(PROPENSITY) < 1) & pl.col(USER).is_not_null())
    if not len(explored):
        raise DataError(
            f"{outcomes}: no item of its {len(rows):,} rows was drawn: the answers were made without exploration; "
            "serve with a rule `explore` (docs/rules.md)"
        )
    if since is not None:
        later = explored.filter(pl.col(TIME).to_physical() > since)
        if not len(later):
            raise DataError(
                f"{outcomes}: all {len(explored):,} explored rows are of answers until {np.datetime64(since, 'us')}, "
                "the newest event that a bundle was trained on: it has learned from them; judge it by later ones"
            )
        explored = later
    complete = explored.filter("complete")
    slots = complete.join(explorations(log), on=_KEYS, how="inner").sort(TIME, *_KEYS)
    slots = slots.filter(pl.concat_list("own", "pool").list.contains(pl.col(ITEM)))
    open_rows, unknown = len(explored) - len(complete), len(complete) - len(slots)
    if not len(slots):
        raise DataError(
            f"{outcomes}: none of {len(explored):,} explored rows can be used: {open_rows:,} have an open window, of "
            f"{unknown:,} the log in {log} does not say what else could have been shown; name the log that the file "
            "was made from, or a shorter --within"
        )
    return _slots(slots, event, open_rows, unknown)


def _outcomes(path: Path, event: str) -> pl.DataFrame:
    with reading(f"{path}: outcomes"):
        frame = scan_parquet(path).collect()
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise DataError(f"{path} is no file of `recsys log outcomes`: it has no column {', '.join(missing)}")
    if f"{event}_count" not in frame.columns:
        known = [name.removesuffix("_count") for name in frame.columns if name.endswith("_count")]
        raise DataError(f"{path}: no event of type {event}; it has {', '.join(known) or 'none'}")
    if not len(frame):
        raise DataError(f"{path}: no rows: no answer was logged; name a file with outcomes")
    return frame


def explorations(log: Path, which: pl.Expr | None = None) -> pl.DataFrame:
    """Request, position, own item and pool of the explored positions of a log, where the pool is not empty.

    which: of the exposures, by TIME; None: all.
    """
    columns = (REQUEST_ID, "exploration")
    frames, position = [frame_of_exposures([], (*columns, TIME))], dict[str, int]()
    while (part := read_lines(log, position, stream=EXPOSURES)).position != position:
        position = part.position
        frames.append(frame_of_exposures(part.lines, (*columns, TIME)).filter(True if which is None else which))
    drawn = pl.concat(frames).select(REQUEST_ID, pl.col("exploration").struct.unnest()).filter(pl.col("law") == LAW)
    return (
        drawn.unique(REQUEST_ID, keep="first", maintain_order=True)
        .select(REQUEST_ID, pl.col("positions").alias(POSITION), "own", pl.col("pools").alias("pool"))
        .explode(POSITION, "own", "pool")
        .filter(pl.col("pool").list.len() > 0)
    )


def _slots(rows: pl.DataFrame, event: str, open_rows: int, unknown: int) -> Slots:
    """Of the joined rows, in their order."""
    choices = rows.select(pl.concat_list("own", "pool")).to_series()
    flat = choices.explode()
    users, requests = rows.get_column(USER), rows.get_column(REQUEST_ID)
    item_ids, user_ids, request_ids = (names.unique().sort() for names in (flat, users, requests))
    numbers = _places(flat, item_ids)
    ends = np.cumsum(choices.list.len().to_numpy().astype(np.int64))
    ragged = Ragged(numbers, np.r_[0, ends[:-1]], ends)
    of_shown = _places(rows.get_column(ITEM), item_ids)
    slot, value = ragged.pairs()
    at = np.flatnonzero(value == of_shown[slot])
    return Slots(
        tuple(user_ids),
        tuple(item_ids),
        tuple(request_ids),
        _places(users, user_ids),
        _places(requests, request_ids),
        rows.get_column(TIME).to_physical().to_numpy(),
        rows.get_column(POSITION).to_numpy().astype(np.int64),
        ragged,
        at[np.searchsorted(slot[at], np.arange(len(rows)))],
        rows.get_column(f"{event}_count").to_numpy().astype(np.float64),
        rows.get_column(PROPENSITY).to_numpy(),
        open_rows,
        unknown,
    )


def _places(values: pl.Series, names: pl.Series) -> Ints:
    """The place of each value among ascending names."""
    places: Ints = names.search_sorted(values).to_numpy().astype(np.int64)
    return places
