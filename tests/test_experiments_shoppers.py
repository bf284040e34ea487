"""Simulated shoppers: their names, times and tastes, and that a purchase follows its click."""

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from experiments.simulation.shoppers import CLICKS, DAYS, END, SHOPPERS, shopper_events
from features.errors import DataError

KINDS = [["animals", "birds"], ["animals", "fish"], ["tools"], ["plants", "trees"], ["plants", "flowers"]]


def catalogue(n: int = 200) -> pl.DataFrame:
    kinds = [KINDS[row % len(KINDS)] if row else None for row in range(n)]
    schema: dict[str, Any] = {"item_id": pl.String, "categories": pl.List(pl.String)}
    return pl.DataFrame({"item_id": [f"i{row}" for row in range(n)], "categories": kinds}, schema)


def test_the_events_of_simulated_shoppers() -> None:
    events = shopper_events(catalogue())
    assert events.columns == ["user_id", "item_id", "event", "timestamp"]
    assert events.get_column("user_id").unique().sort().to_list() == [
        f"simulated-{number:04d}" for number in range(1, SHOPPERS + 1)
    ]
    times = events.get_column("timestamp").to_list()
    assert times == sorted(times)
    assert END - timedelta(days=DAYS) <= times[0] < times[-1] < END
    assert not events.select("user_id", "item_id", "event").is_duplicated().any()
    clicks, purchases = (events.filter(pl.col("event") == name) for name in ("click", "purchase"))
    assert len(clicks) + len(purchases) == len(events)
    assert 0.4 * SHOPPERS * CLICKS < len(clicks) <= SHOPPERS * CLICKS
    assert 0.2 < len(purchases) / len(clicks) < 0.5  # .3 of all clicks, those on one item taken together
    both = purchases.join(clicks, on=["user_id", "item_id"], how="left")
    assert (both.get_column("timestamp") > both.get_column("timestamp_right")).all()
    assert events.equals(shopper_events(catalogue()))
    assert not events.equals(shopper_events(catalogue(), seed=1))


def test_each_shopper_has_a_taste() -> None:
    events = shopper_events(catalogue()).join(catalogue(), on="item_id").filter(pl.col("event") == "click")
    kinds = events.select("user_id", kind=pl.col("categories").list.join("/"))
    counts = kinds.group_by("user_id", "kind").len().group_by("user_id").agg(pl.col("len").max(), total=pl.sum("len"))
    shares = counts.select(pl.col("len") / pl.col("total")).to_series().to_numpy()
    assert shares.mean() > 0.6  # chance: .2, and a little more for the largest of five


def test_nobody_has_a_taste_in_one_item() -> None:
    with pytest.raises(DataError, match="1 item vectors that do not differ"):
        shopper_events(catalogue(1))
