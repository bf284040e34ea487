"""Sources: data sets by name, written as tables of the contract into the folder of a configuration."""

import difflib
import importlib
from pathlib import Path

from features.errors import ConfigError
from features.schema import DataConfig
from features.tables.sources.extract import is_there, write

SOURCES: dict[str, str] = {
    "movielens": "features.tables.sources.movielens",
    "complete-journey": "features.tables.sources.complete_journey",
    "sequences": "features.tables.sources.sequences",
    "folder": "features.tables.sources.folder",
}
"""Name -> module with ``extract(config) -> Extract``, imported when it is asked for."""


def get(config: DataConfig, *, force: bool = False) -> Path:
    """Write the tables of ``config.source`` into ``config.path`` and return it; what is there already stays.

    force: write anew. Raises ConfigError for an unknown source, SourceError when the data cannot be had.
    """
    if config.source not in SOURCES:
        near = difflib.get_close_matches(config.source, SOURCES, n=1)
        meant = f"; is {near[0]!r} meant?" if near else ""
        raise ConfigError(f"data.source {config.source!r} is none of {', '.join(SOURCES)}{meant}")
    module = importlib.import_module(SOURCES[config.source])
    if config.source == "folder":
        return Path(module.verify(config))
    if force or not is_there(config):
        write(module.extract(config), config)
    return Path(config.path)
