"""Filters over a small catalogue."""

from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from features.catalog import Catalog
from features.errors import DataError
from features.ids import IdMap
from recsys.retrieval.filters import Filter

DAY = 86_400_000_000


@pytest.fixture(scope="module")
def catalog():
    """Items a to f; f has an id only."""
    frame = pl.DataFrame(
        {
            "item_id": list("abcdef"),
            "title": [None] * 6,
            "description": [None] * 6,
            "categories": [["red"], ["red", "blue"], ["blue"], [], [*(f"c{n}" for n in range(10)), "green"], None],
            "price": [1.0, 2.0, 3.0, 4.0, 5.0, None],
            "available": [True] * 6,
            "published_at": [0, DAY, 2 * DAY, 3 * DAY, 4 * DAY, None],
            "brand": ["x", "y", "x", None, "z", None],
            "year": [1999, 2000, 2001, 2002, 2003, None],
            "tags": [["new"], [], ["new", "sale"], ["sale"], None, None],
            "sold": [True, False, True, None, False, False],
            "day": [date(1970, 1, day) for day in range(1, 7)],
        },
        schema_overrides={"published_at": pl.Datetime("us", "UTC"), "title": pl.String, "description": pl.String},
    )
    return Catalog.of(frame, IdMap(tuple("abcdef")), np.zeros((6, 1), np.float32), np.zeros(6, np.bool_))


@pytest.mark.parametrize(
    ("fields", "passing"),
    [
        ({}, "abcdef"),
        ({"categories": ["red"]}, "ab"),
        ({"categories": ["blue", "green", "no such"]}, "bce"),
        ({"categories": []}, ""),
        ({"price": [2, 4]}, "bcd"),
        ({"price": [None, 2]}, "ab"),
        ({"price": [4.5, None]}, "e"),
        ({"price": [None, None]}, "abcde"),
        ({"published": ["1970-01-02T00:00:00Z", "1970-01-04T00:00:00Z"]}, "bc"),
        ({"published": ["1970-01-04T01:00:00+01:00", None]}, "de"),
        ({"published": [None, "1970-01-01T00:00:00Z"]}, ""),
        ({"items": ["f", "a", "unknown"]}, "af"),
        ({"items": []}, ""),
        ({"exclude": ["a", "unknown", "c"]}, "bdef"),
        ({"columns": {"brand": ["x"]}}, "ac"),
        ({"columns": {"year": [2000, 2003]}}, "be"),
        ({"columns": {"tags": ["sale"]}}, "cd"),
        ({"columns": {"year": [2000.0]}}, "b"),
        *(({"columns": {name: []}}, "") for name in ("brand", "year", "tags", "sold", "day", "published_at")),
        ({"columns": {"price": [1, 2.0]}}, "ab"),
        ({"columns": {"sold": [True]}}, "ac"),
        ({"columns": {"published_at": ["1970-01-02T00:00:00Z"]}}, "b"),
        ({"columns": {"day": ["1970-01-03"]}}, "c"),
        ({"categories": ["c9"]}, "e"),  # the tenth category of an item
        ({"columns": {"brand": ["x", "y"], "year": [1999, 2000]}}, "ab"),
        ({"categories": ["blue"], "price": [None, 2.5], "exclude": ["c"]}, "b"),
    ],
)
def test_items_that_pass(catalog, fields, passing):
    mask = Filter.model_validate(fields).mask(catalog)
    assert mask.dtype == np.bool_
    assert "".join(np.array(list("abcdef"))[mask]) == passing


def test_conditions_are_combined_by_and(catalog):
    price, brand = {"price": [2, None]}, {"columns": {"brand": ["x"]}}
    combined = Filter.model_validate(price | brand).mask(catalog)
    np.testing.assert_array_equal(
        combined, Filter.model_validate(price).mask(catalog) & Filter.model_validate(brand).mask(catalog)
    )


@given(data=st.data())
def test_prices_agree_with_python_comparisons(catalog, data):
    prices = data.draw(st.lists(st.floats(0, 9, width=32) | st.just(float("nan")), min_size=6, max_size=6))
    low, high = sorted(data.draw(st.tuples(st.floats(0, 9, width=32), st.floats(0, 9, width=32))))
    mask = Filter(price=(low, high)).mask(replace(catalog, price=np.array(prices, np.float32)))
    assert mask.tolist() == [low <= price <= high for price in prices]


def test_a_missing_column_or_another_type_is_an_error_with_the_reason(catalog):
    with pytest.raises(DataError, match=r"column 'colour': the items have none; there are: item_id, .*brand"):
        Filter(columns={"colour": ("red",)}).mask(catalog)
    for name, value, reason in (
        ("year", "x", "a number (got ['x'])"),
        ("year", True, "a number (got [True])"),
        ("year", 10**400, "a number (got [1" + "0" * 98 + ")"),
        ("sold", 1, "true or false (got [1])"),
        ("brand", 1, "a text (got [1])"),
        ("published_at", "yesterday", "a time (got ['yesterday'])"),
    ):
        with pytest.raises(DataError) as caught:
            Filter.model_construct(columns={name: (value,)}).mask(catalog)
        assert str(caught.value) == f"filter on column '{name}': must be {reason}"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prices": [1, 2]}, "prices"),
        ({"price": [3, 2]}, "is empty: give the smaller bound first"),
        ({"price": [1]}, "price"),
        ({"price": [True, 5]}, "price"),
        ({"price": [None, False]}, "price"),
        ({"published": ["2020-01-01", None]}, "published"),
        ({"published": ["2020-01-02T00:00:00Z", "2020-01-01T00:00:00Z"]}, "is empty"),
        ({"items": "a"}, "items"),
        *(({name: ["a"] * 10_001}, name) for name in ("categories", "items", "exclude")),
        ({"columns": {"brand": ["a"] * 10_001}}, "brand"),
    ],
)
def test_an_invalid_filter_is_rejected_by_field(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        Filter.model_validate(fields)


def test_ten_thousand_values_are_accepted(catalog):
    many = ["a"] * 10_000
    fields = {"categories": many, "items": many, "exclude": many, "columns": {"brand": many}}
    assert not Filter.model_validate(fields).mask(catalog).any()  # the only item "a" is excluded
