"""A cache of the vectors of one space on disk, by digest of what was embedded.

space.json tells the space in full, and vectors of another one are refused. The shards (`features.content.shards`)
are parquet tables of digest, present, failures and vector; a later row takes the place of an earlier one of the same
digest.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from features.arrays import Bools
from features.content.shards import DamagedShard, Shards
from features.content.spaces import Embedded, Failure, SpaceKey, same_space
from features.errors import SpaceError, StoreError

T = TypeVar("T")

FORMAT = 1
"""Rises when an older version could not read what is written."""

SPACE = "space.json"

SHARD_BYTES = 32 * 2**20
"""Size up to which shards are merged."""

MIN_MERGED = 16
"""So many shards below half of that size are merged."""

MAX_TRIES = 20
"""How often a reader looks again when shards are merged under its eyes."""

_FAILED = {"row": pl.UInt32, "part": pl.Int32, "reason": pl.String}
_FAILURES = pl.List(pl.Struct({"part": pl.Int32, "reason": pl.String}))
_INDEX = pl.Schema({"digest": pl.Binary(), "failures": _FAILURES, "shard": pl.UInt32(), "row": pl.UInt32()})


def cache_folder(cache: Path, space: SpaceKey) -> Path:
    """The folder of a space in a cache of many."""
    return cache / hashlib.sha256(json.dumps(asdict(space)).encode()).hexdigest()[:16]


class VectorCache:
    """Vectors by digest. Digests are (n,) Binary series; a null is never there.

    A reader sees what was there when it first looked. damaged: shards that the writer has set aside, so that their
    vectors are computed again.
    """

    def __init__(self, folder: Path, space: SpaceKey) -> None:
        """Raises SpaceError when the folder is another space's, StoreError when it cannot be read."""
        self.folder, self.space = folder, space
        self.damaged: tuple[Path, ...] = ()
        self._files = Shards(folder)
        self._held: dict[str, pl.DataFrame] | None = None  # shard -> digest, failures
        self._index: pl.DataFrame | None = None
        self._writing = False
        self._check()

    def known(self, digests: pl.Series) -> Bools:
        """Whether each was embedded before, with or without success: (n,) bool."""
        out = np.zeros(len(digests), dtype=np.bool_)
        out[self._steady(lambda: self._hits(digests)).get_column("at").to_numpy()] = True
        return out

    def failures(self, digests: pl.Series) -> tuple[Failure, ...]:
        """What could not be read of them; row: place of the digest among `digests`."""
        return _failures(self._steady(lambda: self._hits(digests)))

    def get(self, digests: pl.Series) -> Embedded:
        """Their vectors, row by row; zeros where there is none. Beside them one shard at a time is in memory.

        Raises StoreError naming a shard that is damaged.
        """
        return self._steady(lambda: self._get(digests))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, `append` may be called. Raises StoreError naming the process that is writing already."""
        with self._files.writing():
            self._check()
            if not (self.folder / SPACE).exists():
                told = {"format": FORMAT} | asdict(self.space)
                self._files.write(SPACE, json.dumps(told, indent=2).encode())
            self._held, self._index, damaged = {}, None, []
            for name in self._files.names():
                try:
                    self._held[name] = self._read(name, ["digest", "failures"])
                except (DamagedShard, FileNotFoundError):
                    damaged.append(self._files.rejected(name))
            self.damaged = tuple(damaged)
            self._writing = True
            try:
                yield
            finally:
                self._writing = False

    def append(self, digests: pl.Series, embedded: Embedded) -> None:
        """Keep n vectors: once this returns no crash loses them. They take the place of earlier ones.

        Raises SpaceError: of another space or shape, or not finite; StoreError: cannot be written.
        """
        same_space(embedded.space, self.space, str(self.folder))
        n, vectors = len(digests), embedded.vectors
        if vectors.shape != (n, self.space.dimension) or embedded.present.shape != (n,):
            raise SpaceError(f"{self.space}: the encoder gave vectors {vectors.shape} for {n} contents")
        if not np.isfinite(vectors).all():
            raise SpaceError(f"{self.space}: the encoder gave vectors that are not finite; none of {n} is kept")
        if not self._writing:
            raise StoreError(f"{self.folder}: nothing is appended outside of `writing()`")
        if not n:
            return
        # a file's name may be no Unicode, and with it the reason
        told = [(f.row, f.part, f.reason.encode("utf-8", "replace").decode()) for f in embedded.failures]
        failed = pl.DataFrame(told, schema=_FAILED, orient="row").group_by("row", maintain_order=True)
        columns = {
            "digest": digests,
            "present": embedded.present,
            "vector": pl.Series(vectors, dtype=pl.Array(pl.Float32, self.space.dimension)),
        }
        failures = failed.agg(pl.struct("part", "reason").alias("failures"))  # null where there are none
        table = (
            pl.DataFrame(columns).with_row_index("row").join(failures, on="row", how="left", maintain_order="left")
        )
        self._add(table.drop("row"))
        self._merge()

    def _check(self) -> None:
        """Whose folder it is."""
        path = self.folder / SPACE
        try:
            told = json.loads(path.read_bytes())
            version = told.pop("format")
            space = SpaceKey(**told) if version == FORMAT else None
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: cannot be read: {error}; remove the folder to embed again") from error
        if space is None:
            raise StoreError(f"{path}: format {version}, this is {FORMAT}; remove the folder to embed again")
        same_space(space, self.space, str(self.folder))

    def _read(self, name: str, columns: list[str]) -> pl.DataFrame:
        return pl.read_parquet(BytesIO(self._files.read(name)), columns=columns)

    def _steady(self, look: Callable[[], T]) -> T:
        """What is seen when no shard goes away, merged with others, while it is looked for."""
        for _ in range(MAX_TRIES):
            try:
                return look()
            except FileNotFoundError as error:
                gone = error.filename
                self._held = self._index = None
        raise StoreError(f"{gone}: a shard of vectors is missing; the next `recsys embed` computes it again")

    def _hits(self, digests: pl.Series) -> pl.DataFrame:
        """at (place among `digests`), digest, failures, shard, row of those that are there, by `at`."""
        if self._held is None:
            self._held = {name: self._read(name, ["digest", "failures"]) for name in self._files.names()}
        asked = pl.DataFrame({"digest": digests.cast(pl.Binary)}).with_row_index("at")
        return asked.join(self._last(), on="digest", how="inner", maintain_order="left")

    def _last(self) -> pl.DataFrame:
        """The row of each digest that counts: shard, by its place in the list, and row in it."""
        if self._index is None:
            row = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
            shards = enumerate((self._held or {}).values())
            told = [shard.with_columns(pl.lit(at, pl.UInt32).alias("shard"), row) for at, shard in shards]
            self._index = pl.concat([pl.DataFrame(schema=_INDEX), *told]).unique("digest", keep="last")
        return self._index

    def _get(self, digests: pl.Series) -> Embedded:
        hits = self._hits(digests)
        names = list(self._held or {})
        vectors = np.zeros((len(digests), self.space.dimension), dtype=np.float32)
        present = np.zeros(len(digests), dtype=np.bool_)
        for of_shard in hits.select("shard", "at", "row").partition_by("shard"):
            table = self._read(names[of_shard.item(0, "shard")], ["present", "vector"])
            at, rows = of_shard.get_column("at").to_numpy(), of_shard.get_column("row").to_numpy()
            vectors[at] = table.get_column("vector").to_numpy()[rows]
            present[at] = table.get_column("present").to_numpy()[rows]
        return Embedded(self.space, vectors, present, _failures(hits))

    def _add(self, table: pl.DataFrame, instead: Collection[str] = ()) -> None:
        buffer = BytesIO()
        table.write_parquet(buffer, compression="uncompressed")
        name = self._files.add(buffer.getbuffer(), instead)
        held = {old: shard for old, shard in (self._held or {}).items() if old not in instead and old != name}
        self._held, self._index = held | {name: table.select("digest", "failures")}, None

    def _merge(self) -> None:
        """Of many small shards one, with their rows that count."""
        sizes = {name: self._files.path(name).stat().st_size for name in self._held or {}}
        small = sorted((name for name in sizes if sizes[name] < SHARD_BYTES / 2), key=lambda name: sizes[name])
        if len(small) < MIN_MERGED:
            return
        fit = np.cumsum([sizes[name] for name in small]) <= SHARD_BYTES
        chosen = {name for name, fits in zip(small, fit, strict=True) if fits}
        tables = []
        for at, name in enumerate(sizes):
            if name in chosen:
                rows = self._last().filter(pl.col("shard") == at).get_column("row")
                tables.append(self._read(name, ["digest", "present", "vector", "failures"])[rows])
        self._add(pl.concat(tables), instead=chosen)


def _failures(hits: pl.DataFrame) -> tuple[Failure, ...]:
    failed = hits.select("at", "failures").explode("failures").drop_nulls("failures").unnest("failures")
    return tuple(Failure(*row) for row in failed.iter_rows())
