"""The served bundle, the one before it, and the last training and night, as the files of the bundles' folder say."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError

from features.errors import BundleError
from features.instants import format_instant
from recsys.bundle.formats import read_manifest
from recsys.bundle.registry import CURRENT, Publication, list_bundles, publications, written_at
from serving.servable import ServableBundle

NIGHT: Final = "nightly.json"
"""File with the report of the last night of `recsys nightly`."""

FIGURES: Final = (
    *("hr_at_10", "ndcg_at_10", "mrr_at_10", "hr_at_10_warm", "hr_at_10_cold_user", "hr_at_10_cold_item"),
    *("coverage", "novelty_bits", "diversity", "popularity_percentile"),
)
"""Figures of a table that are shown."""


class FigureOut(BaseModel):
    """A figure of an evaluation. low, high: its 95 % interval, null where it has none."""

    name: str
    mean: float | None
    low: float | None = None
    high: float | None = None


class TableOut(BaseModel):
    """The evaluation of a bundle in one placement. splits: hashes of its split; figures of another do not compare."""

    placement: str
    note: str
    users: int
    events: int
    splits: list[str]
    figures: list[FigureOut]


class PublishedOut(BaseModel):
    """When a bundle became the current one. previous: the bundle that was; by: the user of the system; why: in one
    line."""

    at: str
    previous: str | None
    by: str
    why: str


class BundleOut(BaseModel):
    """A bundle. trained_until: time of its newest event; written_at: end of its training; null: not known."""

    bundle: str
    configuration: str | None
    code_version: str | None
    trained_until: str | None
    written_at: str | None
    published: PublishedOut | None
    tables: list[TableOut]


class TrainingOut(BaseModel):
    """The newest bundle that was written, and whether it is the published one."""

    bundle: str
    at: str
    current: bool


class NightOut(BaseModel):
    """The last night of `recsys nightly`. status: published, not published, nothing new, or failed."""

    status: str
    reason: str
    kind: str
    started: str
    ended: str
    served: str | None
    current: str | None


class BundlesOut(BaseModel):
    """What is served and how it came about. null: no file says it."""

    served: BundleOut | None
    before: BundleOut | None = Field(description="the bundle that was current before; null also where it was deleted")
    training: TrainingOut | None
    nightly: NightOut | None


def bundles_of(root: Path, bundle: ServableBundle | None) -> BundlesOut:
    """What the files below root say. bundle: that is served."""
    served, before = None, None
    history = list[Publication]()
    with suppress(OSError):
        history = publications(root)[::-1]
    if bundle is not None:
        served = _described(root, bundle.fingerprint, bundle.manifest, history)
        previous = None if served.published is None else served.published.previous
        if previous is not None:
            with suppress(BundleError):
                before = _described(root, previous, read_manifest(root / previous), history)
    return BundlesOut(served=served, before=before, training=_training(root), nightly=_night(root))


def _described(root: Path, name: str, manifest: Mapping[str, Any], history: Sequence[Publication]) -> BundleOut:
    """history: the publications, the newest first."""
    config = manifest.get("config") or {}
    last = next((one for one in history if one.bundle == name), None)
    written, until = written_at(root / name), manifest.get("fitted_until")
    tables = []
    with suppress(ValueError, KeyError, TypeError, AttributeError, StopIteration):  # of a version with other figures
        tables = [_table(table) for table in manifest.get("metrics", ())]
    return BundleOut(
        bundle=name,
        configuration=config.get("name"),
        code_version=manifest.get("code_version"),
        trained_until=None if until is None else format_instant(until),
        written_at=_time(written) if written else None,
        published=None
        if last is None
        else PublishedOut(at=last.at, previous=last.previous, by=last.by, why=last.why),
        tables=tables,
    )


def _table(table: Mapping[str, Any]) -> TableOut:
    """The row of what the bundle holds, from a table of its manifest."""
    row = next(row for row in table["rows"] if row["name"] == table["ours"])
    return TableOut(
        placement=table.get("placement") or table["title"],
        note=table["note"],
        users=table["users"],
        events=table["events"],
        splits=table["split_hashes"],
        figures=[_figure(name, row[name]) for name in FIGURES if row.get(name) is not None],
    )


def _figure(name: str, value: Any) -> FigureOut:
    return FigureOut(name=name, **value) if isinstance(value, dict) else FigureOut(name=name, mean=value)


def _training(root: Path) -> TrainingOut | None:
    with suppress(OSError):
        folders = list_bundles(root)
        if folders:
            current = root / CURRENT
            is_current = current.is_symlink() and current.readlink().name == folders[-1].name
            return TrainingOut(bundle=folders[-1].name, at=_time(written_at(folders[-1])), current=is_current)
    return None


def _night(root: Path) -> NightOut | None:
    with suppress(OSError, ValueError, ValidationError):
        return NightOut.model_validate(json.loads((root / NIGHT).read_text(encoding="utf-8")))
    return None


def _time(seconds: float) -> str:
    """ISO 8601 in UTC of seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
