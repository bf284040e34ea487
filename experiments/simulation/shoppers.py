"""Simulated shoppers of a catalogue that nobody has shopped in yet: the events of a demo.

Their tastes are known: they are near items in a space of categories, with a part that is each item's own. They drift.
What a shopper takes without recommendations is a click; some clicks are followed by a purchase. All is drawn from the
seed, and all times are before END.
"""

from datetime import UTC, datetime

import numpy as np
import polars as pl

from experiments.simulation.behaviour import Behaviour, chosen_unaided
from experiments.simulation.people import people_near
from features.arrays import Doubles, Ints
from features.instants import DAY
from features.schema import CATEGORIES, EVENT, ITEM, TIME, USER

SHOPPERS, CLICKS, DAYS = 400, 40, 90
"""Shoppers, clicks of each, and the days before END that they are in."""

END = datetime(2026, 1, 1, tzinfo=UTC)
DRIFT = 0.005
"""Radians a day that a taste turns."""

LIKED = 0.08
"""Share of the catalogue that a shopper likes by more than one half, on average."""

OWN = 8
"""Dimensions of the part of a vector that is the item's own; its length is half of that of one category."""

CLICK, PURCHASE = "click", "purchase"


def shopper_events(items: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """The events of the simulated shoppers of a catalogue, in the columns of the events table, by time.

    items: item_id and categories. The users are `simulated-0001` and so on. Of a shopper's clicks on one item only
    the first counts. Raises DataError for a single item.
    """
    people = people_near(_vectors(items, seed), SHOPPERS, seed=seed, drift=DRIFT, liked=LIKED)
    rng = np.random.default_rng([seed, 1])
    visits = np.sort(rng.uniform(0, DAYS - 1, CLICKS))
    users, rows = chosen_unaided(people, visits, seed=seed)
    days = np.repeat(visits, SHOPPERS) + rng.uniform(0, 1, len(rows))  # not all at the same moment
    behaviour = Behaviour()
    bought = rng.random(len(rows)) < behaviour.converts
    delays = rng.exponential(behaviour.delay, len(rows))
    clicks = _events(items, users, rows, days, CLICK)
    purchases = _events(items, users[bought], rows[bought], (days + delays)[bought], PURCHASE)
    return (
        pl.concat([clicks, purchases])
        .filter(pl.col(TIME) < END)
        .sort(TIME, USER, EVENT)
        .unique([USER, ITEM, EVENT], keep="first", maintain_order=True)
    )


def _vectors(items: pl.DataFrame, seed: int) -> Doubles:
    """(n, c + OWN): 1 for each of the c categories that an item is in, and its own part."""
    pairs = items.select(CATEGORIES).with_row_index().explode(CATEGORIES).drop_nulls()
    columns = pairs.get_column(CATEGORIES).rank("dense").to_numpy().astype(np.int64) - 1
    categories = np.zeros((len(items), columns.max(initial=-1) + 1))
    categories[pairs.get_column("index").to_numpy(), columns] = 1
    own = np.random.default_rng([seed, 2]).normal(size=(len(items), OWN))
    return np.hstack([categories, 0.5 * own / np.linalg.norm(own, axis=1, keepdims=True)])


def _events(items: pl.DataFrame, users: Ints, rows: Ints, days: Doubles, name: str) -> pl.DataFrame:
    """One event a row: users (m,), item rows (m,), days (m,) since the first."""
    start = int(END.timestamp()) * 1_000_000 - DAYS * DAY
    ids = pl.Series([f"simulated-{number:04d}" for number in range(1, SHOPPERS + 1)])
    return pl.DataFrame(
        {
            USER: ids[users],
            ITEM: items.get_column(ITEM)[rows],
            EVENT: pl.repeat(name, len(rows), eager=True),
            TIME: pl.Series(start + (days * DAY).astype(np.int64)).cast(pl.Datetime("us", "UTC")),
        }
    )
