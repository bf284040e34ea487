"""The states of all users of an events table that may be larger than memory.

The table comes in batches. As long as they fit, they are put together. When they do not, the events are distributed
to files by a hash of their user, and each file is then read on its own.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import polars as pl

from features.errors import StoreError, describe_os_error, describe_write_error
from features.files import working_folder
from features.schema import USER, EventRules
from features.store.user_state import ROWS, joined, states_of_table

PREFIX = "recsys-refresh-"

USERS = 10_000
"""Users whose states are returned at once."""

ROW_BYTES = 500
"""Memory that an event needs until the states of its users are made, ids of usual length included; measured."""

SHARDS = 64
"""Files that the events are distributed to."""

States = list[tuple[str, bytes]]


def table_states(batches: Iterable[pl.DataFrame], rules: EventRules, memory: int) -> Iterator[States]:
    """The states of all users, each user once, in lists.

    batches: canonical events with `features.schema.ROW`; memory: bytes that may be used. Raises StoreError
    when there is no room for the files.
    """
    limit = max(ROWS, memory // ROW_BYTES)
    held, rows = list[pl.DataFrame](), 0
    with _working_folder() as folder:
        spilled = 0
        for batch in batches:
            held.append(batch)
            rows += len(batch)
            if rows > limit:
                _spill(pl.concat(held), folder, spilled)
                held, rows, spilled = [], 0, spilled + 1
        if not spilled:
            if held:
                yield from _of_frame(pl.concat(held), rules)
            return
        if held:
            _spill(pl.concat(held), folder, spilled)
            held = []
        for shard in sorted(folder.iterdir()):
            yield from _of_shard(sorted(shard.iterdir()), rules, limit)


@contextmanager
def _working_folder() -> Iterator[Path]:
    """The folder of the files. A refresh removes those that killed ones have left."""
    base = Path(tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(working_folder(base, PREFIX))
        except OSError as error:
            why = describe_os_error(error)
            raise StoreError(
                f"no folder can be made in {base} to distribute the events to: {why}; set TMPDIR"
            ) from error
        yield folder


def _of_shard(files: list[Path], rules: EventRules, limit: int) -> Iterator[States]:
    """The states of all users of some files. More than `limit` events, as one user may have, are read in parts."""
    sizes = [pl.scan_parquet(file).select(pl.len()).collect().item() for file in files]
    if sum(sizes) <= limit:
        yield from _of_frame(pl.read_parquet(files), rules)
        return
    known: dict[str, bytes] = {}
    start = 0
    for end in range(1, len(files) + 1):
        if end == len(files) or sum(sizes[start : end + 1]) > limit:
            for states in _of_frame(pl.read_parquet(files[start:end]), rules):
                users, added = [user for user, _ in states], [data for _, data in states]
                known |= zip(users, joined([*map(known.get, users)], added, rules), strict=True)
            start = end
    yield list(known.items())


def _spill(events: pl.DataFrame, folder: Path, number: int) -> None:
    """Distribute events to files FOLDER/SHARD/NUMBER.parquet."""
    try:
        shards = events.with_columns((pl.col(USER).hash(seed=1) % SHARDS).alias("__shard__")).partition_by(
            "__shard__", as_dict=True, include_key=False
        )
        for (shard,), part in shards.items():
            (folder / f"{shard:02d}").mkdir(exist_ok=True)
            part.write_parquet(folder / f"{shard:02d}" / f"{number:06d}.parquet", compression="lz4")
    except (OSError, pl.exceptions.PolarsError) as error:
        why = describe_write_error(folder, error)
        raise StoreError(f"the events cannot be distributed to files in {folder}: {why}; set TMPDIR") from error


def _of_frame(events: pl.DataFrame, rules: EventRules) -> Iterator[States]:
    """The states of all users of some events, in lists."""
    states = states_of_table(events, rules)
    while part := list(islice(states, USERS)):
        yield part
