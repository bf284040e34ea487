"""The behaviour vectors of a bundle as parquet, for other systems.

    items.parquet    item_id, vector: every item of the bundle
    users.parquet    user_id, vector: every user of the tables and the log who has a positive event

The score of an item for a user is the inner product of their vectors. Vectors of two bundles cannot be compared: the
metadata of each file names the bundle and the space.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from experiments.dataset import Dataset
from experiments.pipelines.batch_slates import load_served
from features.arrays import Floats
from features.errors import ConfigError, FileError, describe_write_error
from features.files import check_writable, put_file, working_folder
from features.progress import StartProgress
from features.schema import ITEM, USER
from recsys.bundle.io import TOWERS, behaviour_space
from recsys.bundle.model import Bundle

ITEMS_FILE, USERS_FILE = "items.parquet", "users.parquet"
VECTOR = "vector"
METADATA = "recsys.vectors"
"""Key of a file's metadata: JSON with `bundle`, `space` and `until` (µs)."""

USERS_AT_ONCE = 4096
"""Number of users whose states are in memory at the same time."""


@dataclass(frozen=True)
class VectorReport:
    """What was written. cold: users without a positive event, who have no vector."""

    folder: Path
    dimension: int
    items: int
    users: int
    cold: int


def export_vectors(
    bundle: Bundle, out: Path, *, dimension: int | None = None, progress: StartProgress
) -> VectorReport:
    """Write the vectors of items and users; each file is replaced atomically.

    dimension: only the first coordinates, in which the users vary most; they are not normalised again, so that inner
    products are parts of the full ones. Raises ConfigError when the bundle has fewer, and FileError.
    """
    full = bundle.recommender.vectors.shape[1]
    cut = full if dimension is None else dimension
    if not 1 <= cut <= full:
        raise ConfigError(f"--dimension {cut}: the vectors of {bundle.path} have {full}; choose 1 to {full}")
    check_writable(out, "the folder of the vectors")
    dataset = load_served(bundle, progress)
    space = behaviour_space(bundle.path / TOWERS, full)
    if cut < full:
        space = replace(space, dimension=cut, normalisation="")
    until = dataset.events.latest + 1
    facts = {"bundle": bundle.fingerprint, "space": asdict(space), "until": until}
    metadata = {METADATA: json.dumps(facts)}
    items = _table(ITEM, list(bundle.catalog.ids.ids), bundle.recommender.vectors[:, :cut])
    try:
        put_file(out / ITEMS_FILE, lambda part: items.write_parquet(part, metadata=metadata))
        with working_folder(out, ".writing-vectors-") as folder:
            parts = [folder / "empty.parquet"]
            _table(USER, [], np.zeros((0, cut), np.float32)).write_parquet(parts[0])
            users = 0
            for number, (ids, vectors) in enumerate(_users(bundle, dataset, until, progress)):
                parts.append(folder / f"{number:08d}.parquet")
                _table(USER, ids, vectors[:, :cut]).write_parquet(parts[-1])
                users += len(ids)
            frame = pl.scan_parquet(parts)
            put_file(out / USERS_FILE, lambda part: frame.sink_parquet(part, metadata=metadata))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FileError(f"vectors cannot be written: {describe_write_error(out, error)}") from error
    return VectorReport(out, cut, len(items), users, len(dataset.users) - users)


def _users(
    bundle: Bundle, dataset: Dataset, until: int, progress: StartProgress
) -> Iterator[tuple[list[str], Floats]]:
    """Ids and vectors (b, d) of the users with a positive event before `until` (µs), in the order of the ids."""
    ids = sorted(dataset.users.ids)
    step = progress("vectors of users", len(ids))
    for start in range(0, len(ids), USERS_AT_ONCE):
        names = ids[start : start + USERS_AT_ONCE]
        states = dataset.events.states(dataset.users.rows(names), np.full(len(names), until)).compact()
        warm = np.flatnonzero(states.positives().lengths > 0)
        vectors = bundle.recommender.user_vectors(states)  # (b, d)
        yield [names[i] for i in warm], vectors[warm]
        step(len(names))


def _table(name: str, ids: list[str], vectors: Floats) -> pl.DataFrame:
    """Ids and vectors (n, m), each vector a list of fixed size."""
    column = pl.Series(np.ascontiguousarray(vectors), dtype=pl.Array(pl.Float32, vectors.shape[1]))
    return pl.DataFrame({name: pl.Series(ids, dtype=pl.String), VECTOR: column})
