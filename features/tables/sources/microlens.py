"""Source `microlens`: comments on short videos, with titles, covers, sounds and videos.

Ni et al., A Content-Driven Micro-Video Recommendation Dataset at Scale, 2023 (arXiv 2309.15379).
"""

import zipfile
from pathlib import Path, PurePosixPath

import polars as pl

from features.errors import SourceError
from features.schema import AUDIO, CATEGORIES, EVENT, IMAGE, ITEM, TIME, TITLE, USER, VIDEO, DataConfig
from features.tables.scan import scan_csv
from features.tables.sources.download import download
from features.tables.sources.extract import Extract, expanded_origin, origin_path

BASE = "https://recsys.westlake.edu.cn"
TITLES = {"MicroLens-50k": "MicroLens-50k_titles.csv", "MicroLens-100k": "MicroLens-100k_title_en.csv"}
"""What is downloaded by name -> its file of titles."""

TERMS = (
    "MicroLens (Westlake University): research; a changed copy may not be offered for download; pictures, sounds and "
    "videos belong to their makers; cite Ni et al. 2023"
)
EXPECTED = f"one of {', '.join(TITLES)}, which is downloaded, or a folder with its files"
MEDIA = {IMAGE: "covers", AUDIO: "audio", VIDEO: "videos"}
"""Column -> what the name of its folder contains after `MicroLens-…_`; a file is ITEM with any suffix."""


def extract(config: DataConfig) -> Extract:
    """Comments as events (type "comment") and videos as items.

    ``config.origin`` is one of TITLES: pairs, titles and covers are downloaded into ``config.path``/download; or a
    folder with …_pairs.csv (user, item, timestamp), …_title….csv (item, title) and, optionally, tags_to_summary.csv
    (item, category) and the folders …_covers, …_audio… and …_videos. Raises SourceError.
    """
    origin = expanded_origin(config)
    folder = (
        fetch(origin, Path(config.path) / "download") if origin in TITLES else origin_path(config, EXPECTED).resolve()
    )
    pairs, titles = (_file(folder, pattern) for pattern in ("*_pairs.csv", "*_title*.csv"))
    time = pl.from_epoch(pl.col("timestamp").cast(pl.Int64), "ms").cast(pl.Datetime("us"))
    events = scan_csv(pairs).select(
        pl.col("user").alias(USER),
        pl.col("item").alias(ITEM),
        pl.lit("comment").alias(EVENT),
        time.dt.replace_time_zone("UTC").alias(TIME),
    )
    items = _two_columns(titles, TITLE)
    if (tags := folder / "tags_to_summary.csv").is_file():
        items = items.join(
            _two_columns(tags, CATEGORIES).with_columns(pl.concat_list(CATEGORIES)),
            on=ITEM,
            how="left",
            maintain_order="left",
        )
    found = {column: _media(folder, name, column) for column, name in MEDIA.items()}
    for media in found.values():
        items = items.join(media.lazy(), on=ITEM, how="left", maintain_order="left")
    counts = ", ".join(f"{len(media):,} {MEDIA[column]}" for column, media in found.items())
    return Extract(
        items=items,
        events=events,
        origin=str(folder),
        terms=TERMS,
        notes=(f"files: {counts}", "an event is a public comment on a video; what was seen without one is not known"),
    )


def fetch(name: str, into: Path, base: str = BASE) -> Path:
    """Download pairs, titles and covers; sounds and videos are many files, which are fetched by hand (docs/data.md).

    Returns their folder. Raises SourceError; a second call resumes.
    """
    folder = into / name
    for file in (f"{name}_pairs.csv", TITLES[name], f"{name}_covers.zip"):
        download(f"{base}/{name}-Dataset/{file}", folder / file, md5=None)
    archive, covers = folder / f"{name}_covers.zip", folder / f"{name}_covers"
    try:
        with zipfile.ZipFile(archive) as packed:
            covers.mkdir(exist_ok=True)
            for member in packed.infolist():
                cover = covers / PurePosixPath(member.filename).name
                if not member.is_dir() and not (cover.is_file() and cover.stat().st_size == member.file_size):
                    cover.write_bytes(packed.read(member))
    except zipfile.BadZipFile as error:
        raise SourceError(f"{archive} is not a zip file; delete it and run again") from error
    return folder


def _file(folder: Path, pattern: str) -> Path:
    if len(found := sorted(folder.glob(pattern))) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise SourceError(f"{folder} must hold one file {pattern} and has {names}; data.origin is {EXPECTED}")
    return found[0]


def _two_columns(path: Path, second: str) -> pl.LazyFrame:
    """ITEM and another column of a CSV file, which has a header (`item`) or not."""
    table = pl.scan_csv(path, has_header=False, infer_schema=False, new_columns=[ITEM, second])
    return table.select(ITEM, second).filter(pl.col(ITEM) != "item")


def _media(folder: Path, name: str, column: str) -> pl.DataFrame:
    """ITEM and path of the files in the folders of one kind."""
    files = [
        file for place in sorted(folder.glob(f"*_{name}*")) if place.is_dir() for file in sorted(place.iterdir())
    ]
    rows = {ITEM: [file.stem for file in files], column: [str(file) for file in files]}
    return pl.DataFrame(rows, schema={ITEM: pl.String, column: pl.String}).unique(ITEM, maintain_order=True)
