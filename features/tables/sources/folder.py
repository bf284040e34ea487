"""Source `folder`: the user's own tables in ``config.path``."""

from pathlib import Path

from features.errors import SourceError
from features.schema import DataConfig
from features.tables.scan import SUFFIXES, find_table


def verify(config: DataConfig) -> Path:
    """The folder, if it holds items and events. Writes nothing. Raises SourceError otherwise."""
    folder = Path(config.path)
    if absent := [name for name in ("items", "events") if find_table(folder, name) is None]:
        raise SourceError(
            f"{folder} has no {' and no '.join(absent)} ({' or '.join(SUFFIXES)}); put your tables there"
        )
    return folder
