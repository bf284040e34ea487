"""The rule of external ids, and the map between them, used at the interfaces, and row numbers, used inside.

One rule holds at every door: tables, requests and the records that the service writes. It refuses what cannot travel:
control characters and line separators break lines of logs and files, and every client shortens the path segments "."
and ".." before it sends them. All other text is an id, exactly as it is written.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from features.arrays import Ints, Keys
from features.errors import DataError
from features.schema import MAX_ID_BYTES

_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
"""Control characters and line separators, in the syntax that the regular expressions of Python and polars share."""

_PYTHON_CONTROL = re.compile(f"[{_CONTROL}\ud800-\udfff]")
"""A lone surrogate is not text: UTF-8, and so a polars column, cannot hold it."""


@dataclass(frozen=True)
class TextRule:
    """A way in which text is not a valid id, for a Python string and for a polars column of text.

    found: what a string has that breaks the rule, None when it keeps it; condition: the same for a column, null where
    the column is null.
    """

    reason: str
    advice: str
    found: Callable[[str], str | None]
    condition: Callable[[pl.Expr], pl.Expr]


def _length(text: str) -> str | None:
    size = len(text.encode(errors="surrogatepass"))
    return f"{size} bytes" if size > MAX_ID_BYTES else None


def _control(text: str) -> str | None:
    match = _PYTHON_CONTROL.search(text)
    return match and f"U+{ord(match[0]):04X}"


TEXT_RULES = (
    TextRule(
        "too long",
        f"at most {MAX_ID_BYTES} bytes in UTF-8 are allowed: use a shorter key",
        _length,
        lambda column: column.str.len_bytes() > MAX_ID_BYTES,
    ),
    TextRule(
        "with control characters",
        "remove control characters and line separators (U+0000-001F, U+007F-009F, U+2028, U+2029)",
        _control,
        lambda column: column.str.contains(f"[{_CONTROL}]"),
    ),
)
"""The rules of event types, and of ids."""

ID_RULES = (
    *TEXT_RULES,
    TextRule(
        "that no URL can hold",
        "every client shortens the paths '.' and '..': use another key",
        lambda text: repr(text) if text in (".", "..") else None,
        lambda column: column.is_in([".", ".."]),
    ),
)
"""The rules of ids of users, items, events, requests and products. An id is not empty either."""

NO_NULL = TextRule(
    "with a null character",
    "remove U+0000, which many systems take for the end of a text",
    lambda text: "U+0000" if "\0" in text else None,
    lambda column: column.str.contains("\0", literal=True),
)
"""The rule of titles, descriptions and labels, which may have other control characters."""

_ORDINARY = re.compile(rf"(?!\.{{1,2}}$)[^{_CONTROL}\ud800-\udfff]{{1,{MAX_ID_BYTES // 4}}}")
"""Text that keeps all rules, judged at once: so many characters have at most MAX_ID_BYTES."""


def id_error(text: str, rules: Sequence[TextRule] = ID_RULES) -> str:
    """The reason why a text is not a valid id; "" when it is valid."""
    if _ORDINARY.fullmatch(text):
        return ""
    if not text:
        return "empty: give it a text"
    for rule in rules:
        if found := rule.found(text):
            return f"{rule.reason} ({found}): {rule.advice}"
    return ""


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


def id_keys(ids: Iterable[str]) -> Keys:
    """(n,) uint64: the first 8 bytes of BLAKE2b of each id. Stores and bundles keep them: they never change."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def mix_keys(keys: Keys) -> Keys:
    """The finalizer of splitmix64 (Steele, Lea & Flood 2014): a bijection that spreads every bit over all bits."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
