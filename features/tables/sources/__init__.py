"""Data sources by name. Each is written as tables of the data contract into the folder of a configuration."""

import difflib
import importlib
from pathlib import Path

from features.errors import ConfigError
from features.schema import DataConfig
from features.tables.scan import tables_folder
from features.tables.sources.extract import Simulate, check_foreign, is_complete, write

SOURCES: dict[str, str] = {
    "movielens": "features.tables.sources.movielens",
    "complete-journey": "features.tables.sources.complete_journey",
    "sequences": "features.tables.sources.sequences",
    "amazon-2023": "features.tables.sources.amazon_2023",
    "microlens": "features.tables.sources.microlens",
    "stamps": "features.tables.sources.stamps",
    "folder": "features.tables.sources.folder",
}
"""Name -> module with ``extract(config) -> Extract``, which is imported on use."""


def source_fault(source: str) -> str:
    """Why a name is not that of a source, "" for one that is."""
    if source in SOURCES:
        return ""
    similar = difflib.get_close_matches(source, SOURCES, n=1)
    meant = f"; is {similar[0]!r} meant?" if similar else ""
    return f"data.source {source!r} is none of {', '.join(SOURCES)}{meant}"


def get(config: DataConfig, *, force: bool = False, simulate: Simulate | None = None) -> Path:
    """Write the tables of ``config.source`` into ``config.path`` and return that path. Existing tables stay.

    force: overwrite them, but never files that this function does not write; simulate: makes the events of a source
    that has none.
    Raises ConfigError for an unknown source, DataError where config.path is no folder, and SourceError when the data
    cannot be obtained.
    """
    if fault := source_fault(config.source):
        raise ConfigError(fault)
    folder = tables_folder(config.path)
    module = importlib.import_module(SOURCES[config.source])
    if config.source == "folder":
        return Path(module.verify(config))
    check_foreign(config)
    if force or not is_complete(config):
        write(module.extract(config), config, simulate)
    return folder
