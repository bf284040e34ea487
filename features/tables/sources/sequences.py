"""Source `sequences`: one line per user, `user item item …`, in time order and without timestamps.

S3-Rec (Zhou et al., CIKM 2020) and later papers on sequential recommendation report results on such files.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from features.errors import SourceError, describe_read_error
from features.files import not_a_file
from features.schema import CATEGORIES, EVENT, ITEM, TIME, TITLE, USER, DataConfig
from features.tables.files.file_format import check_text
from features.tables.scan import scan
from features.tables.sources.extract import Extract, origin_path

START = datetime(2000, 1, 1, tzinfo=UTC)


def extract(config: DataConfig) -> Extract:
    """Events of the file ``config.origin``, event type "interaction".

    Optional files in the same folder: `<stem>-items.csv` with titles and genres, otherwise
    `<stem>_item2attributes.json` with categories ("a12"). The items are those with an event.
    """
    path = origin_path(config, "a file with `user item item …` a line")
    if wrong := not_a_file(path):
        raise SourceError(f"data.origin {path}: {wrong}, e.g. Beauty.txt")
    check_text(path)
    lines = pl.DataFrame({"line": pl.Series(path.read_text(encoding="utf-8").splitlines(), dtype=pl.String)})
    words = (
        lines.lazy()
        .select(pl.col("line").str.strip_chars())
        .filter(pl.col("line") != "")
        .select(pl.col("line").str.split(" ").list.eval(pl.element().filter(pl.element() != "")).alias("words"))
    )
    short = words.filter(pl.col("words").list.len() < 2).select(pl.col("words").list.join(" ")).head(1).collect()
    if len(short):
        raise SourceError(f"{path}: line {short.item()!r} has no item; each line is `user item item …`")
    seconds = pl.int_ranges(0, pl.col("items").list.len()).alias("second")
    events = (
        words.select(pl.col("words").list.first().alias(USER), pl.col("words").list.slice(1).alias("items"))
        .with_columns(seconds)
        .explode("items", "second")
        .select(
            USER,
            pl.col("items").alias(ITEM),
            pl.lit("interaction").alias(EVENT),
            (pl.lit(START).dt.cast_time_unit("us") + pl.duration(seconds="second")).alias(TIME),
        )
    )
    return Extract(
        items=_items(path, events),
        events=events,
        origin=str(path),
        terms="as its publisher says; Amazon reviews and MovieLens files: research use, no redistribution",
        notes=("timestamps are synthetic: a user's n-th event is n-1 seconds after 2000-01-01T00:00:00Z",),
    )


def _items(path: Path, events: pl.LazyFrame) -> pl.LazyFrame:
    """The items of the events, with titles and categories where a file has them."""
    items = events.select(ITEM).unique(maintain_order=True)
    attributes, titles = path.with_name(f"{path.stem}_item2attributes.json"), path.with_name(f"{path.stem}-items.csv")
    categories = pl.lit(None, pl.List(pl.String))
    title = pl.lit(None, pl.String)
    if titles.is_file():
        table = scan(titles).select(ITEM, TITLE, pl.col("genres").str.split("|"))
        items = items.join(table, on=ITEM, how="left", maintain_order="left")
        title, categories = pl.col(TITLE), pl.col("genres")
    elif attributes.is_file():
        check_text(attributes)
        try:
            ids_by_item = json.loads(attributes.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SourceError(
                f"{attributes} is damaged ({describe_read_error(error)}); fetch it again, or remove it"
            ) from error
        table = pl.LazyFrame(
            {ITEM: list(ids_by_item), "attributes": list(ids_by_item.values())},
            schema={ITEM: pl.String, "attributes": pl.List(pl.Int64)},
        ).with_columns(pl.col("attributes").list.eval(pl.format("a{}", pl.element())))
        items = items.join(table, on=ITEM, how="left", maintain_order="left")
        categories = pl.col("attributes")
    return items.select(ITEM, title.alias(TITLE), categories.alias(CATEGORIES))
