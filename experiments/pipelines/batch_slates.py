"""Slates of all users in one job, for e-mail and for judging offline: parquet shards, streamed, done once each.

    part-00017.parquet   user_id, position (from 1), item_id, score, source ("model" or "popular"); best first
    users.parquet        whose slates, in order: shards are cut by it; the manifest, as the file's metadata, with it
    manifest.json        what the slates are of, and until when events count; written before any shard

A killed job goes on where it was when it is run again; several processes or machines share one folder by `part`.
Users and events stay those of the first run, though the service goes on logging; what is deleted meanwhile is out.
Of runs that begin at once the first to put users.parquet is the first run, and both files are its own.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.config import RunConfig
from experiments.dataset import Dataset, extend_dataset, load_dataset
from features.arrays import Ints
from features.errors import BundleError, ConfigError, StoreError
from features.files import put_file, put_new_file
from features.interactions import UserStates
from features.progress import StartProgress
from features.schema import ITEM, POSITION, USER
from recsys.bundle.model import Bundle
from recsys.interfaces import Candidates
from recsys.ranking.slate import item_groups

MANIFEST, USERS = "manifest.json", "users.parquet"
USERS_AT_ONCE = 256
"""Users whose candidates are held at once."""


@dataclass(frozen=True)
class BatchReport:
    """shards: of this part, of which `there` were there before; users, rows: written in this run."""

    folder: Path
    shards: int
    there: int
    users: int
    rows: int


def write_slates(
    bundle: Bundle,
    out: Path,
    *,
    k: int,
    placement: str | None = None,
    part: tuple[int, int] = (1, 1),
    shard: int = 4096,
    progress: StartProgress,
) -> BatchReport:
    """Write the k best items of every user of the tables and the log, as known now, `shard` users in each file.

    placement: its rule on repeats holds; None: the first. part: (i, n) does the i-th of n shares, counted from 1.
    Raises ConfigError where the folder has another job or the placement is unknown, StoreError when it cannot be
    written.
    """
    places = bundle.data.placements
    place = placement or next(iter(places))
    if place not in places:
        raise ConfigError(f"placement {place!r}: the bundle has {', '.join(places)}")
    if not 1 <= part[0] <= part[1]:
        raise ConfigError(f"part {part[0]}/{part[1]}: give 1/n to n/n")
    dataset = _dataset(bundle, progress)
    job = {"bundle": bundle.fingerprint, "placement": place, "k": k, "shard": shard}
    try:
        until, names = _claim(out, job, dataset)
        shards = [*range(0, len(names), shard)][part[0] - 1 :: part[1]]
        step = progress(f"slates, part {part[0]} of {part[1]}", len(shards))
        there = written = rows = 0
        for begin in shards:
            path = out / f"part-{begin // shard:05d}.parquet"
            if path.exists():
                there += 1
            else:
                chosen = names[begin : begin + shard]
                frame = _slates(bundle, dataset, chosen, until, k, places[place].repeats)
                put_file(path, frame.write_parquet)
                written, rows = written + len(chosen), rows + len(frame)
            step(1)
    except OSError as error:
        raise StoreError(f"{out}: slates cannot be written: {error}; run it again, what is there is kept") from error
    return BatchReport(out, len(shards), there, written, rows)


def _dataset(bundle: Bundle, progress: StartProgress) -> Dataset:
    """The data as it is now, in the bundle's rows; what is newer than the bundle is left out of it."""
    config = RunConfig.model_validate(bundle.manifest["config"])
    dataset = extend_dataset(bundle.catalog, load_dataset(config, progress), int(np.iinfo(np.int64).max))
    if len(dataset.catalog) != len(bundle.catalog):
        raise BundleError(f"{bundle.path}: {len(dataset.catalog)} items where it has {len(bundle.catalog)}")
    return dataset


def _slates(bundle: Bundle, dataset: Dataset, names: pl.Series, until: int, k: int, repeats: bool) -> pl.DataFrame:
    rows, groups = dataset.users.rows(names.to_list()), item_groups(bundle.catalog)
    states = dataset.events.states(rows, np.full(len(rows), until))
    blocks = (slice(at, at + USERS_AT_ONCE) for at in range(0, len(rows), USERS_AT_ONCE))
    return pl.concat([_block(bundle, dataset, names[at], states[at], groups, k, repeats) for at in blocks])


def _block(
    bundle: Bundle, dataset: Dataset, names: pl.Series, states: UserStates, groups: Ints, k: int, repeats: bool
) -> pl.DataFrame:
    """Variants of one product fall out of a slate: where that leaves it short, more is asked for."""
    n = len(bundle.catalog)
    source = np.where(states.positives().lengths > 0, "model", "popular")
    shown = dataset.catalog.available & dataset.catalog.published_by(int(states.as_of[0]))
    frames, left, wide = [], np.arange(len(states)), k
    while len(left):
        asked = states[left].compact()
        seen = None if repeats else asked.seen_items()
        found = bundle.recommender.recommend(asked, wide, allow=shown, exclude=seen)
        table = _table(found, groups, k)
        table = table.with_columns(pl.Series("which", left[table.get_column("which").to_numpy()]))
        full = np.bincount(table.get_column("which").to_numpy(), minlength=len(states))[left] == k
        done = full | ((found.rows >= 0).sum(axis=1) < wide) | (wide >= n)
        frames.append(table.filter(pl.col("which").is_in(left[done])))
        left, wide = left[~done], min(4 * wide, n)
    table = pl.concat(frames).sort("which", POSITION)
    which, row = table.get_column("which").to_numpy(), table.get_column("row").to_numpy()
    return pl.DataFrame(
        {
            USER: names[which],
            POSITION: table.get_column(POSITION).cast(pl.Int32),
            ITEM: pl.Series(bundle.catalog.ids.ids, dtype=pl.String)[row],
            "score": table.get_column("score").cast(pl.Float32),
            "source": pl.Series(source[which].tolist(), dtype=pl.String),
        }
    )


def _table(found: Candidates, groups: Ints, k: int) -> pl.DataFrame:
    """which, row, score and position of each place of each slate: the first of every product, k at most."""
    which, at = np.nonzero((found.rows >= 0) & np.isfinite(found.scores))
    rows = found.rows[which, at]
    frame = pl.DataFrame({"which": which, "row": rows, "group": groups[rows], "score": found.scores[which, at]})
    frame = frame.unique(("which", "group"), keep="first", maintain_order=True)
    place = pl.int_range(pl.len()).over("which") + 1
    return frame.with_columns(place.alias(POSITION)).filter(pl.col(POSITION) <= k)


def _claim(out: Path, job: dict[str, Any], dataset: Dataset) -> tuple[int, pl.Series]:
    """Until when (µs) events count, and whose slates: as the first run of the job found them.

    Raises ConfigError where the folder is that of another job.
    """
    if not (out / MANIFEST).exists():
        _begin(out, job, dataset)
    there = json.loads((out / MANIFEST).read_text())
    if other := {name: there.get(name) for name in job if there.get(name) != job[name]}:
        told = ", ".join(f"{name} {value} there, {job[name]} here" for name, value in other.items())
        raise ConfigError(f"{out}: slates of another job are there ({told}): choose another folder, or remove it")
    return there["until"], pl.read_parquet(out / USERS).get_column(USER)


def _begin(out: Path, job: dict[str, Any], dataset: Dataset) -> None:
    """Users and manifest of this run, or of the first one. Raises ConfigError where users.parquet is no job's."""
    out.mkdir(parents=True, exist_ok=True)
    names = pl.DataFrame({USER: pl.Series(sorted(dataset.users.ids), dtype=pl.String)})
    manifest = job | {"data_hash": dataset.hash, "users": len(names), "until": dataset.events.latest + 1}
    told = {MANIFEST: json.dumps(manifest, indent=1)}
    put_new_file(out / USERS, lambda part: names.write_parquet(part, metadata=told))
    first = pl.read_parquet_metadata(out / USERS).get(MANIFEST)
    if first is None:
        raise ConfigError(f"{out / USERS} is not of slates, and would be lost: choose another folder, or remove it")
    put_file(out / MANIFEST, lambda part: part.write_text(first))
