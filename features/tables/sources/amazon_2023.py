"""Source `amazon-2023`: reviews of one category of Amazon, with texts, prices and addresses of pictures.

Hou, Li, He, Yan, Chen and McAuley, Bridging Language and Items for Retrieval and Recommendation, 2024 (arXiv
2403.03952). CATEGORY.jsonl.gz has a review a line, meta_CATEGORY.jsonl.gz an item.
"""

from pathlib import Path
from typing import Any

import polars as pl

from features.errors import ConfigError, SourceError
from features.schema import CATEGORIES, DESCRIPTION, EVENT, IMAGE, ITEM, PRICE, TIME, TITLE, USER, VALUE, DataConfig
from features.tables.sources.download import download
from features.tables.sources.extract import Extract, expanded_origin

BASE = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
TERMS = (
    "Amazon Reviews 2023 (McAuley Lab, UCSD): published for research, no licence of the data is stated; texts and "
    "pictures belong to their authors; cite Hou et al. 2024"
)
EXPECTED = "a category, e.g. All_Beauty, which is downloaded, or FOLDER/CATEGORY with its files"

REVIEW: dict[str, Any] = {"user_id": pl.String, "parent_asin": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
META: dict[str, Any] = {
    **dict.fromkeys(("parent_asin", "title", "main_category", "price"), pl.String),
    **dict.fromkeys(("categories", "features", "description"), pl.List(pl.String)),
    "images": pl.List(pl.Struct(dict.fromkeys(("variant", "hi_res", "large"), pl.String))),
}


def extract(config: DataConfig) -> Extract:
    """Reviews as events (type "rating", value in stars) and products as items; variants are one item, their parent.

    ``config.origin`` is a category, whose files are downloaded into ``config.path``/download, or FOLDER/CATEGORY with
    CATEGORY.jsonl and meta_CATEGORY.jsonl, or the same with .gz. Raises SourceError.
    """
    origin = expanded_origin(config)
    if origin is None:
        raise SourceError(f"source amazon-2023 needs data.origin: {EXPECTED}")
    path = Path(origin)
    if path.parent == Path():
        reviews, products = fetch(origin, Path(config.path) / "download")
    else:
        reviews, products = (_found(path.with_name(name)) for name in (path.name, f"meta_{path.name}"))
    time = pl.from_epoch("timestamp", "ms").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    events = pl.scan_ndjson(reviews, schema=REVIEW).select(
        pl.col("user_id").alias(USER),
        pl.col("parent_asin").alias(ITEM),
        pl.lit("rating").alias(EVENT),
        time.alias(TIME),
        pl.col("rating").alias(VALUE),
    )
    described = pl.scan_ndjson(products, schema=META).select(_item()).unique(ITEM, keep="first", maintain_order=True)
    textless = (
        events.select(ITEM).unique(maintain_order=True).join(described, on=ITEM, how="anti", maintain_order="left")
    )
    return Extract(
        items=pl.concat([described, textless], how="diagonal"),
        events=events,
        origin=f"{reviews} and {products.name}",
        terms=TERMS,
        notes=(
            "pictures are URLs: they are fetched where limits.hosts of the configuration names m.media-amazon.com",
            "the mean stars and counts of the products are left out: they contain ratings of later times",
            "reviewed products that are not described are items without text",
        ),
    )


def of_category(config: DataConfig, category: str) -> DataConfig:
    """The configuration with another category, in the same folder where ``config.origin`` names one.

    Raises ConfigError for another source.
    """
    if config.source != "amazon-2023":
        raise ConfigError(f"--category is for source amazon-2023; {config.source} has no categories to choose from")
    origin = category if config.origin is None else str(Path(config.origin).with_name(category))
    return config.model_copy(update={"origin": origin})


def fetch(category: str, into: Path, base: str = BASE) -> tuple[Path, Path]:
    """Download the reviews and the products of a category; a second call resumes. Raises SourceError."""
    names = (f"review_categories/{category}.jsonl.gz", f"meta_categories/meta_{category}.jsonl.gz")
    reviews, products = (download(f"{base}/{name}", into / Path(name).name, md5=None) for name in names)
    return reviews, products


def _found(path: Path) -> Path:
    """The file PATH.jsonl or PATH.jsonl.gz."""
    files = [path.with_name(f"{path.name}{suffix}") for suffix in (".jsonl", ".jsonl.gz")]
    if found := [file for file in files if file.is_file()]:
        return found[0]
    raise SourceError(f"{files[0]}: no such file, nor with .gz; data.origin must be {EXPECTED}")


def _item() -> list[pl.Expr]:
    """Title, texts, categories, price in dollars, and the main picture of a product."""
    texts = pl.concat_list(pl.col(name).fill_null([]) for name in ("description", "features"))
    categories = pl.when(pl.col("categories").list.len() > 0).then("categories")
    images = pl.col("images")
    main = images.list.eval(pl.element().filter(pl.element().struct.field("variant") == "MAIN")).list.first()
    picture = pl.coalesce(main, images.list.first())
    return [
        pl.col("parent_asin").alias(ITEM),
        pl.col("title").alias(TITLE),
        texts.list.join(" ").alias(DESCRIPTION),
        pl.coalesce(categories, pl.concat_list("main_category").list.drop_nulls()).alias(CATEGORIES),
        pl.col("price").cast(pl.Float64, strict=False).alias(PRICE),
        pl.coalesce(picture.struct.field("hi_res"), picture.struct.field("large")).alias(IMAGE),
    ]
