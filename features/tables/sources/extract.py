"""The tables of a source, and how they are written to disk."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import SourceError, describe_read_error, describe_url
from features.files import not_a_file
from features.schema import DataConfig
from features.tables.scan import reading

MANIFEST = "source.json"
TABLES = ("items", "events")
EVENTS = "events.parquet"


@dataclass(frozen=True)
class Extract:
    """Lazy tables of the data contract. events: None where the source has no behaviour, and people are simulated;
    origin: description of the origin; terms: terms of use, one line."""

    items: pl.LazyFrame
    events: pl.LazyFrame | None
    origin: str
    terms: str
    notes: tuple[str, ...] = ()


def expanded_origin(config: DataConfig) -> str | None:
    """``config.origin`` with ~ and $VARIABLES expanded."""
    return None if config.origin is None else os.path.expanduser(os.path.expandvars(config.origin))


def origin_path(config: DataConfig, expected: str) -> Path:
    """The origin as an existing path. Raises SourceError otherwise. expected: what the path must be, for messages."""
    origin = expanded_origin(config)
    if origin is None:
        raise SourceError(f"source {config.source!r} needs data.origin: {expected}")
    if "$" in origin:
        raise SourceError(f"data.origin {_shown(str(config.origin))!r} names a variable that is not set: export it")
    path = Path(origin)
    if not path.is_dir() and (wrong := not_a_file(path)):
        raise SourceError(f"data.origin {_shown(origin)!r}: {wrong}; it must be {expected}")
    return path.resolve()


def _shown(origin: str) -> str:
    return describe_url(origin) if "://" in origin else origin


Simulate = Callable[[pl.DataFrame], pl.DataFrame]
"""Items -> events of simulated people."""


def write(extract: Extract, config: DataConfig, simulate: Simulate | None = None) -> Path:
    """Write items.parquet, events.parquet and, last, source.json into ``config.path``.

    simulate: makes the events where the extract has none; source.json then says `simulated`. Each file is written
    under a temporary name, then renamed. Tables without a source.json count as incomplete. Raises SourceError where
    there are no events and `simulate` is None.
    """
    events = extract.events
    if events is None:
        if simulate is None:
            raise SourceError(f"source {config.source!r} has no events; `recsys data get` simulates them")
        events = simulate(extract.items.collect()).lazy()
    folder = Path(config.path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    files: dict[str, dict[str, Any]] = {}
    for name, frame in (("items", extract.items), ("events", events)):
        path = folder / f"{name}.parquet"
        part = path.with_suffix(".part")
        with reading(extract.origin):
            frame.sink_parquet(part)
            rows = pl.scan_parquet(part).select(pl.len()).collect().item()
        files[path.name] = {"rows": rows, "sha256": sha256(part)}
        os.replace(part, path)
    manifest = {
        "name": config.source,
        "configured_origin": expanded_origin(config),
        "origin": extract.origin,
        "terms": extract.terms,
        "notes": list(extract.notes),
        "simulated": extract.events is None,
        "files": files,
    }
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, folder / MANIFEST)
    return folder


def is_simulated(folder: Path) -> bool:
    """Whether the events of the tables in a folder are those that `write` had simulated."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["simulated"]) and sha256(folder / EVENTS) == manifest["files"][EVENTS]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # no source wrote them, or none that could simulate
        return False


def check_foreign(config: DataConfig) -> None:
    """Raise SourceError when ``config.path`` holds tables in files that `write` never writes: both would be read."""
    folder = Path(config.path)
    own = {f"{name}.parquet" for name in TABLES} | {f"{name}.part" for name in TABLES}
    if foreign := sorted(p.name for name in TABLES for p in folder.glob(f"{name}.*") if p.name not in own):
        raise SourceError(
            f"{folder} holds {', '.join(foreign)}, which `recsys data get` did not write; choose another data.path, "
            "or use source: folder for tables of your own"
        )


def is_complete(config: DataConfig) -> bool:
    """Whether ``config.path`` holds all tables of this configuration, unchanged.

    Raises SourceError when it holds tables that `write` did not write, which must not be overwritten.
    """
    folder = Path(config.path)
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        if files := [f"{name}.parquet" for name in TABLES if (folder / f"{name}.parquet").exists()]:
            raise SourceError(
                f"{folder} holds {', '.join(files)} without a {MANIFEST}: another program wrote them, or `recsys "
                "data get` was interrupted; choose another data.path, use source: folder, or overwrite them "
                "with --force"
            )
        return False
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        origin = manifest.get("configured_origin", manifest.get("asked"))  # asked: the key that version 0.1.0 wrote
        name, digests = manifest.get("name"), {file: facts["sha256"] for file, facts in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{manifest_path} is damaged ({describe_read_error(error)}); write the tables again with --force"
        ) from error
    if (name, origin) != (config.source, expanded_origin(config)):
        return False
    for file, digest in digests.items():
        path = folder / file
        if not path.is_file():
            return False
        if sha256(path) != digest:
            raise SourceError(
                f"{path} is not what `recsys data get` wrote; use source: folder for tables of your own, "
                "or overwrite it with --force"
            )
    return True


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
