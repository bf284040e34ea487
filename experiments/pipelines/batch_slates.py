"""Batch job: slates of all users, for e-mail and for offline evaluation, written as parquet shards.

    part-00017.parquet   user_id, position (from 1), item_id, score, source ("model" or "popular"); by position
    users.parquet        the users of the job, in the order of the shards; its metadata holds the manifest
    manifest.json        bundle, placement and sizes of the job, and the time until which events count; written first

A job that was killed continues when it is run again: finished shards are kept. Several processes or machines share
one folder, each with its own `part`. All runs use the users and the time of the first run, even when the service has
logged more events; events that are deleted meanwhile are not used. When several runs start at the same time, the run
that writes users.parquet first is the first run, and both files are of that run.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import ValidationError

from experiments.config import RunConfig
from experiments.dataset import Dataset, extend_dataset, load_dataset
from experiments.preflight import check_log
from features.arrays import Ints
from features.errors import (
    BundleError,
    ConfigError,
    FileError,
    describe_invalid,
    describe_read_error,
    describe_write_error,
)
from features.files import check_writable, not_a_file, put_file, put_new_file
from features.interactions import UserStates
from features.progress import StartProgress
from features.schema import ITEM, POSITION, USER
from features.tables.scan import UNREADABLE, reading
from recsys.bundle.model import Bundle
from recsys.ranking.rules import load_rules
from recsys.ranking.slate import item_groups, recommend_slates
from recsys.ranking.slate_rules import SlateRules, misfit, rules_by_user

MANIFEST, USERS = "manifest.json", "users.parquet"
USERS_AT_ONCE = 256
"""Number of users whose candidates are in memory at the same time."""

COLUMNS = {USER: pl.String(), POSITION: pl.Int32(), ITEM: pl.String(), "score": pl.Float32(), "source": pl.String()}
"""Columns of a shard."""


@dataclass(frozen=True)
class BatchReport:
    """Counts of one run.

    shards: number of shards of this part; existing_shards: how many of them existed before; users, rows: written by
    this run; note: why no row was written, "" where some were or no shard was left.
    """

    folder: Path
    shards: int
    existing_shards: int
    users: int
    rows: int
    note: str = ""


def write_slates(
    bundle: Bundle,
    out: Path,
    *,
    k: int,
    placement: str | None = None,
    part: tuple[int, int] = (1, 1),
    shard: int = 4096,
    rules: Path | None = None,
    progress: StartProgress,
) -> BatchReport:
    """Write the k best items of every user of the tables and the log, `shard` users in each file.

    placement: its rule on repeats is applied; None: the first placement of the bundle. part: (i, n) writes share i of
    n shares of the shards, counted from 1. rules: a file of a shop's rules. Raises ConfigError when the folder holds
    another job, the placement is unknown or a rule cannot be used, and FileError when a file cannot be written.
    """
    placements = bundle.data.placements
    placement = placement or next(iter(placements))
    if placement not in placements:
        raise ConfigError(f"placement {placement!r}: the bundle has {', '.join(placements)}")
    if not 1 <= part[0] <= part[1]:
        raise ConfigError(f"part {part[0]}/{part[1]}: give 1/n to n/n")
    check_writable(out, "the folder of the slates")
    dataset = load_served(bundle, progress)
    job = {"bundle": bundle.fingerprint, "placement": placement, "k": k, "shard": shard}
    shop, ruling = None, None
    if rules is not None:
        latest = dataset.events.latest + 1
        shop = load_rules(rules, partial(misfit, catalog=bundle.catalog, vectors=bundle.vectors, now=latest))
        job["rules"] = hashlib.sha256(rules.read_bytes()).hexdigest()[:16]
    try:
        until, users = _join_job(out, job, dataset)
        if shop is not None:
            ruling = rules_by_user(shop, placement, dataset.catalog, bundle.vectors, until)
        shards = [*range(0, len(users), shard)][part[0] - 1 :: part[1]]  # first user of each shard
        step = progress(f"slates, part {part[0]} of {part[1]}", len(shards))
        existing = written = rows = 0
        for start in shards:
            path = out / f"part-{start // shard:05d}.parquet"
            if path.exists():
                existing += 1
            else:
                chosen = users[start : start + shard].drop_nulls()  # null: the user was erased meanwhile
                frame = _slates(bundle, dataset, chosen, until, k, placements[placement].repeats, ruling)
                put_file(path, frame.write_parquet)
                written, rows = written + len(chosen), rows + len(frame)
            step(1)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = describe_write_error(out, error)
        raise FileError(
            f"slates cannot be written: {reason}; run the command again, finished shards are kept"
        ) from error
    note = _no_rows(dataset, until, placement) if written and not rows else ""
    return BatchReport(out, len(shards), existing, written, rows, note)


def _no_rows(dataset: Dataset, until: int, placement: str) -> str:
    """Why the slates of all users are empty."""
    if not (dataset.catalog.available & dataset.catalog.published_by(until)).any():
        return "no item is available and published: see `available` and `published_at` of the items"
    return f"the users have seen all items, and placement {placement} has no repeats: set `repeats` or choose another"


def load_served(bundle: Bundle, progress: StartProgress, log: Path | None = None) -> Dataset:
    """The current tables and log, in the rows of the bundle's catalogue, without items that the bundle lacks.

    log: folder of the event log, None for that of the bundle's configuration.
    """
    try:
        config = RunConfig.model_validate(bundle.manifest["config"])
    except ValidationError as error:
        first = describe_invalid(error.errors())[0]
        place = ".".join(map(str, first.place))
        where = f"{place} in its configuration" if place else "its configuration"
        raise BundleError(f"{bundle.path}: {where}: {first.reason}; train again") from None
    if log is not None:
        config = config.changed({"data.log": str(log)})
    check_log(config.data.log)
    dataset = extend_dataset(bundle.catalog, load_dataset(config, progress), int(np.iinfo(np.int64).max))
    if len(dataset.catalog) != len(bundle.catalog):
        raise BundleError(
            f"{bundle.path}: the data set has {len(dataset.catalog)} items, the bundle has {len(bundle.catalog)}"
        )
    return dataset


def _slates(
    bundle: Bundle,
    dataset: Dataset,
    users: pl.Series,
    until: int,
    k: int,
    repeats: bool,
    rules: Callable[[bool], SlateRules] | None = None,
) -> pl.DataFrame:
    """The slates of some users, by their events before `until` (µs)."""
    rows, groups = dataset.users.rows(users.to_list()), item_groups(bundle.catalog)
    states = dataset.events.states(rows, np.full(len(rows), until))
    if not len(rows):
        return pl.DataFrame(schema=COLUMNS)
    blocks = (slice(start, start + USERS_AT_ONCE) for start in range(0, len(rows), USERS_AT_ONCE))
    return pl.concat([_block(bundle, dataset, users[at], states[at], groups, k, repeats, rules) for at in blocks])


def _block(
    bundle: Bundle,
    dataset: Dataset,
    users: pl.Series,
    states: UserStates,
    groups: Ints,
    k: int,
    repeats: bool,
    rules: Callable[[bool], SlateRules] | None = None,
) -> pl.DataFrame:
    """The slates of one block of users."""
    allowed = dataset.catalog.available & dataset.catalog.published_by(int(states.as_of[0]))
    states = states.compact()
    seen = None if repeats else states.seen_items()
    slates = recommend_slates(bundle.recommender, states, k, groups, rules, allow=allowed, exclude=seen)
    source = np.where(states.positives().lengths > 0, "model", "popular")
    state, place = np.nonzero(slates.rows >= 0)
    return pl.DataFrame(
        {
            USER: users[state],
            POSITION: pl.Series(place + 1, dtype=pl.Int32),
            ITEM: pl.Series(bundle.catalog.ids.ids, dtype=pl.String)[slates.rows[state, place]],
            "score": pl.Series(slates.scores[state, place], dtype=pl.Float32),
            "source": pl.Series(source[state].tolist(), dtype=pl.String),
        }
    )


def _join_job(out: Path, job: dict[str, Any], dataset: Dataset) -> tuple[int, pl.Series]:
    """The time (µs) until which events count and the users of the job, as its first run recorded them.

    Raises ConfigError when the folder holds another job.
    """
    if not (out / MANIFEST).exists():
        _start_job(out, job, dataset)
    if wrong := not_a_file(out / MANIFEST):
        raise FileError(f"{out / MANIFEST}: {wrong}")
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        facts = {"rules": None} | job
        if different := {name: manifest.get(name) for name in facts if manifest.get(name) != facts[name]}:
            values = ", ".join(f"{name} {value} there, {facts[name]} here" for name, value in different.items())
            raise ConfigError(
                f"{out}: slates of another job are there ({values}): choose another folder, or remove it"
            )
        return int(manifest["until"]), pl.read_parquet(out / USERS).get_column(USER)
    except (ValueError, KeyError, TypeError, AttributeError, *UNREADABLE) as error:
        raise FileError(
            f"{out}: {MANIFEST} or {USERS} is damaged ({describe_read_error(error)}): remove the folder, start anew"
        ) from error


def _start_job(out: Path, job: dict[str, Any], dataset: Dataset) -> None:
    """Write the users and the manifest of this run, or keep those of a run that was first.

    Raises ConfigError when users.parquet was not written by such a job.
    """
    out.mkdir(parents=True, exist_ok=True)
    users = pl.DataFrame({USER: pl.Series(sorted(dataset.users.ids), dtype=pl.String)})
    manifest = job | {"data_hash": dataset.hash, "users": len(users), "until": dataset.events.latest + 1}
    metadata = {MANIFEST: json.dumps(manifest, indent=1)}
    put_new_file(out / USERS, lambda path: users.write_parquet(path, metadata=metadata))
    with reading(str(out / USERS)):
        first = pl.read_parquet_metadata(out / USERS).get(MANIFEST)
    if first is None:
        raise ConfigError(
            f"{out / USERS} is not of slates and would be overwritten: choose another folder, or remove it"
        )
    put_file(out / MANIFEST, lambda path: path.write_text(first))
