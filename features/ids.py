"""The map between external ids, used at the interfaces, and row numbers, used inside."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from features.arrays import Ints
from features.errors import DataError


@dataclass(frozen=True)
class IdMap:
    """External ids (n,) unique, non-empty strings <-> rows 0..n-1.

    Raises DataError when an id occurs twice.
    """

    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self._rows) != len(self.ids):
            seen: set[str] = set()
            duplicate = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"id {duplicate!r} occurs twice among {len(self.ids)} ids; ids must be unique")

    @classmethod
    def shuffled(cls, ids: Iterable[str], seed: int = 0) -> "IdMap":
        """The distinct ids in random order, which depends on the seed alone: a row number carries no information.

        Some public files number their ids in order of first appearance, so that "last id + 1" is a good guess at the
        next item. Ties broken by row would then leak the answer.
        """
        ordered = np.array(sorted(set(ids)), dtype=object)
        return cls(tuple(np.random.default_rng(seed).permutation(ordered).tolist()))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {external: row for row, external in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, external: object) -> bool:
        return external in self._rows

    def row(self, external: str) -> int:
        """Row of one id; -1 for an unknown id."""
        return self._rows.get(external, -1)

    def rows(self, externals: Sequence[str]) -> Ints:
        """Rows (n,) int64 of n ids; -1 for unknown ids."""
        return np.array([self._rows.get(e, -1) for e in externals], dtype=np.int64)

    def rows_of(self, column: pl.Series) -> Ints:
        """Rows (n,) int64 of a string column; -1 for unknown ids. Vectorised, for long columns."""
        known = pl.DataFrame({"id": pl.Series(self.ids, dtype=pl.String)}).with_row_index("row")
        return (
            pl.DataFrame({"id": column.cast(pl.String)})
            .join(known, on="id", how="left", maintain_order="left")
            .get_column("row")
            .cast(pl.Int64)
            .fill_null(-1)
            .to_numpy()
        )
