"""A cache on disk of the vectors of one space, by digest of the content.

space.json holds the full key of the space, and vectors of another space are rejected. The shards
(`features.content.shards`) are parquet tables of digest, present, failures and vector. A later row replaces an
earlier row with the same digest.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from features.arrays import Bools
from features.content.shards import DamagedShardError, Shards
from features.content.spaces import Embedded, Failure, SpaceKey, same_space
from features.errors import SpaceError, StoreError, describe_read_error
from features.files import not_a_file

T = TypeVar("T")

FORMAT = 1
"""Version of the file format; increased when an older version of this code cannot read the files."""

SPACE = "space.json"

SHARD_BYTES = 32 * 2**20
"""Maximum size of a merged shard, in bytes."""

MIN_MERGED = 16
"""Number of shards below half of SHARD_BYTES that starts a merge."""

MAX_TRIES = 20
"""Number of times that a reader starts again because a merge removed a shard."""

_FAILED = {"row": pl.UInt32, "part": pl.Int32, "reason": pl.String}
_FAILURES = pl.List(pl.Struct({"part": pl.Int32, "reason": pl.String}))
_INDEX = pl.Schema({"digest": pl.Binary(), "failures": _FAILURES, "shard": pl.UInt32(), "row": pl.UInt32()})


def cache_folder(cache: Path, space: SpaceKey) -> Path:
    """The folder of one space in a cache of several spaces."""
    return cache / hashlib.sha256(json.dumps(asdict(space)).encode()).hexdigest()[:16]


class VectorCache:
    """Vectors by digest. Digests are (n,) Binary series; a null digest is never in the cache.

    A reader sees the state of the cache at its first read. damaged: shards that the writer rejected; their vectors
    are computed again.
    """

    def __init__(self, folder: Path, space: SpaceKey) -> None:
        """Raises SpaceError when the folder belongs to another space, StoreError when it cannot be read."""
        self.folder, self.space = folder, space
        self.damaged: tuple[Path, ...] = ()
        self._files = Shards(folder)
        self._tables: dict[str, pl.DataFrame] | None = None  # shard -> digest, failures
        self._index: pl.DataFrame | None = None
        self._writing = False
        self._check()

    def known(self, digests: pl.Series) -> Bools:
        """Whether each digest was embedded before, with or without success: (n,) bool."""
        out = np.zeros(len(digests), dtype=np.bool_)
        out[self._consistent(lambda: self._hits(digests)).get_column("at").to_numpy()] = True
        return out

    def failures(self, digests: pl.Series) -> tuple[Failure, ...]:
        """Parts that could not be read; `row` of a failure is the position in `digests`."""
        return _failures(self._consistent(lambda: self._hits(digests)))

    def get(self, digests: pl.Series) -> Embedded:
        """The vectors, one row for each digest, zeros if it is not cached. Shards are loaded one at a time.

        Raises StoreError with the name of the shard when a shard is damaged.
        """
        return self._consistent(lambda: self._get(digests))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the cache so that `append` may be called. Raises StoreError with the id of another writing process."""
        with self._files.writing():
            self._check()
            if not (self.folder / SPACE).exists():
                header = {"format": FORMAT} | asdict(self.space)
                self._files.write(SPACE, json.dumps(header, indent=2).encode())
            self._tables, self._index, damaged = {}, None, []
            for name in self._files.names():
                try:
                    self._tables[name] = self._read(name, ["digest", "failures"])
                except (DamagedShardError, FileNotFoundError):
                    damaged.append(self._files.rejected(name))
            self.damaged = tuple(damaged)
            self._writing = True
            try:
                yield
            finally:
                self._writing = False

    def append(self, digests: pl.Series, embedded: Embedded) -> None:
        """Store n vectors durably: a crash after the return does not lose them. They replace earlier vectors.

        Raises SpaceError when the vectors belong to another space, have another shape or are not finite, and
        StoreError when they cannot be written.
        """
        same_space(embedded.space, self.space, str(self.folder))
        n, vectors = len(digests), embedded.vectors
        if vectors.shape != (n, self.space.dimension) or embedded.present.shape != (n,):
            raise SpaceError(f"{self.space}: the encoder returned vectors of shape {vectors.shape} for {n} contents")
        if not np.isfinite(vectors).all():
            raise SpaceError(f"{self.space}: the encoder returned vectors that are not finite; none of {n} is stored")
        if not self._writing:
            raise StoreError(f"{self.folder}: call `append` only inside `writing()`")
        if not n:
            return
        # a reason may quote a file name that is not valid Unicode
        rows = [(f.row, f.part, f.reason.encode("utf-8", "replace").decode()) for f in embedded.failures]
        failed = pl.DataFrame(rows, schema=_FAILED, orient="row").group_by("row", maintain_order=True)
        columns = {
            "digest": digests,
            "present": embedded.present,
            "vector": pl.Series(vectors, dtype=pl.Array(pl.Float32, self.space.dimension)),
        }
        failures = failed.agg(pl.struct("part", "reason").alias("failures"))  # null if there are none
        table = (
            pl.DataFrame(columns).with_row_index("row").join(failures, on="row", how="left", maintain_order="left")
        )
        self._add(table.drop("row"))
        self._merge()

    def _check(self) -> None:
        """Raises SpaceError when space.json names another space, StoreError when it cannot be read."""
        path = self.folder / SPACE
        if os.path.lexists(path) and (wrong := not_a_file(path)):
            raise StoreError(f"{path}: {wrong}")
        try:
            header = json.loads(path.read_bytes())
            version = header.pop("format")
            space = SpaceKey(**header) if version == FORMAT else None
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path}: cannot be read: {describe_read_error(error)}; remove the folder to embed again"
            ) from error
        if space is None:
            raise StoreError(f"{path}: format {version}, this code reads {FORMAT}; remove the folder to embed again")
        same_space(space, self.space, str(self.folder))

    def _read(self, name: str, columns: list[str]) -> pl.DataFrame:
        return pl.read_parquet(BytesIO(self._files.read(name)), columns=columns)

    def _consistent(self, read: Callable[[], T]) -> T:
        """The result of `read`, started again when a merge by another process removed a shard during the read."""
        for _ in range(MAX_TRIES):
            try:
                return read()
            except FileNotFoundError as error:
                missing = error.filename
                self._tables = self._index = None
        raise StoreError(f"{missing}: a shard of vectors is missing; the next `recsys embed` computes it again")

    def _hits(self, digests: pl.Series) -> pl.DataFrame:
        """Cached digests as a table of at (position in `digests`), digest, failures, shard, row; ordered by `at`."""
        if self._tables is None:
            self._tables = {name: self._read(name, ["digest", "failures"]) for name in self._files.names()}
        queries = pl.DataFrame({"digest": digests.cast(pl.Binary)}).with_row_index("at")
        return queries.join(self._latest(), on="digest", how="inner", maintain_order="left")

    def _latest(self) -> pl.DataFrame:
        """The latest row of each digest: shard (position in the list of shards), and row in that shard."""
        if self._index is None:
            row = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
            shards = enumerate((self._tables or {}).values())
            tables = [shard.with_columns(pl.lit(at, pl.UInt32).alias("shard"), row) for at, shard in shards]
            self._index = pl.concat([pl.DataFrame(schema=_INDEX), *tables]).unique("digest", keep="last")
        return self._index

    def _get(self, digests: pl.Series) -> Embedded:
        hits = self._hits(digests)
        names = list(self._tables or {})
        vectors = np.zeros((len(digests), self.space.dimension), dtype=np.float32)
        present = np.zeros(len(digests), dtype=np.bool_)
        for shard_hits in hits.select("shard", "at", "row").partition_by("shard"):
            table = self._read(names[shard_hits.item(0, "shard")], ["present", "vector"])
            at, rows = shard_hits.get_column("at").to_numpy(), shard_hits.get_column("row").to_numpy()
            vectors[at] = table.get_column("vector").to_numpy()[rows]
            present[at] = table.get_column("present").to_numpy()[rows]
        return Embedded(self.space, vectors, present, _failures(hits))

    def _add(self, table: pl.DataFrame, replaced: Collection[str] = ()) -> None:
        buffer = BytesIO()
        table.write_parquet(buffer, compression="uncompressed")
        name = self._files.add(buffer.getbuffer(), replaced)
        kept = {old: table for old, table in (self._tables or {}).items() if old not in replaced and old != name}
        self._tables, self._index = kept | {name: table.select("digest", "failures")}, None

    def _merge(self) -> None:
        """Merge many small shards into one that holds their latest rows."""
        sizes = {name: self._files.path(name).stat().st_size for name in self._tables or {}}
        small = sorted((name for name in sizes if sizes[name] < SHARD_BYTES / 2), key=lambda name: sizes[name])
        if len(small) < MIN_MERGED:
            return
        fit = np.cumsum([sizes[name] for name in small]) <= SHARD_BYTES
        chosen = {name for name, fits in zip(small, fit, strict=True) if fits}
        tables = []
        for at, name in enumerate(sizes):
            if name in chosen:
                rows = self._latest().filter(pl.col("shard") == at).get_column("row")
                tables.append(self._read(name, ["digest", "present", "vector", "failures"])[rows])
        self._add(pl.concat(tables), replaced=chosen)


def _failures(hits: pl.DataFrame) -> tuple[Failure, ...]:
    failed = hits.select("at", "failures").explode("failures").drop_nulls("failures").unnest("failures")
    return tuple(Failure(*row) for row in failed.iter_rows())
