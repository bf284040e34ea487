"""The products of a catalogue, found by keys that are the same in every bundle and process.

The key of an item or a group is a hash of its id. Rows change with the bundle, keys do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from features.arrays import Bools, Ints, Keys
from features.catalog import Catalog
from features.history_rules import short_keys
from features.ids import id_keys
from features.interactions import Ragged
from features.schema import GROUP
from recsys.ranking.slate import item_groups

SHORT_BITS = 48
"""Bits of `short_keys`."""

KEY_BITS = 40
"""Bits of the keys of products. With a million items and 1,000 shown ones, one item shares its key with a shown one
with a probability of 1e-3; it then counts as shown."""


@dataclass(frozen=True)
class ItemKeys:
    """Finds the rows of items by their short keys. keys (n,) uint64, ascending; order (n,): the row of each key."""

    keys: Keys
    order: Ints

    @classmethod
    def of(cls, ids: Sequence[str]) -> "ItemKeys":
        """Of the items of a catalogue, in row order."""
        keys = short_keys(id_keys(ids))
        order = np.argsort(keys)
        return cls(keys[order], order)

    @cached_property
    def by_row(self) -> Keys:
        """(n,) uint64: the short key of each row."""
        keys = np.empty_like(self.keys)
        keys[self.order] = self.keys
        return keys

    def extended(self, ids: Sequence[str]) -> "ItemKeys":
        """With the items that follow those that are known."""
        if len(ids) == len(self.order):
            return self
        keys = np.concatenate((self.keys, short_keys(id_keys(ids[len(self.order) :]))))
        rows = np.concatenate((self.order, np.arange(len(self.order), len(ids))))
        order = np.argsort(keys)
        return ItemKeys(keys[order], rows[order])

    def rows(self, keys: Keys, bits: int = SHORT_BITS) -> Ints:
        """Rows of the items whose short keys begin with these bits (m,); keys of no item are skipped."""
        return self.pairs(keys, bits)[1]

    def pairs(self, keys: Keys, bits: int = SHORT_BITS) -> tuple[Ints, Ints]:
        """The same rows, and before them the index of the key of each."""
        return self._found(keys, bits).pairs()

    def has(self, keys: Keys, bits: int = SHORT_BITS) -> Bools:
        """(m,) bool: which keys are those of an item."""
        return self._found(keys, bits).lengths > 0

    def _found(self, keys: Keys, bits: int) -> Ragged:
        rest = np.uint64(SHORT_BITS - bits)
        begin, end = (np.searchsorted(self.keys, edge << rest) for edge in (keys, keys + np.uint64(1)))
        return Ragged(self.order, begin, end)


@dataclass(frozen=True)
class Products:
    """Which items of a catalogue are variants of one product (column group_id). Others are products of their own.

    groups (n,): of `item_groups`; items: rows of the items by their short keys.
    """

    catalog: Catalog
    groups: Ints
    items: ItemKeys

    @classmethod
    def of(cls, catalog: Catalog) -> "Products":
        """Of a catalogue."""
        return cls(catalog, item_groups(catalog), ItemKeys.of(catalog.ids.ids))

    def extended(self, catalog: Catalog) -> "Products":
        """Of a catalogue that has further items after those that are known, and any groups."""
        return Products(catalog, item_groups(catalog), self.items.extended(catalog.ids.ids))

    def variants(self, rows: Ints) -> Bools:
        """(n,) bool: which items are of the products of rows (m,)."""
        is_one = np.zeros(2 * len(self.groups) + 1, dtype=np.bool_)  # by group
        is_one[self.groups[rows]] = True
        return is_one[self.groups]

    def keys_of(self, rows: Ints) -> Keys:
        """(m,) uint64 below 2^KEY_BITS, ascending: the keys of items and of their groups."""
        items = self.items.by_row[rows] >> np.uint64(SHORT_BITS - KEY_BITS)
        return np.union1d(items, self._group_keys(rows))

    def rows_of(self, keys: Keys) -> Ints:
        """Rows of the products that `keys_of` gave these keys (m,), in this catalogue or another one, ascending.

        An item that left the catalogue or its group since still stands for the group that it was in.
        """
        rows = self.items.rows(keys, KEY_BITS)
        others = keys[~self.items.has(keys, KEY_BITS)]
        moved = np.setdiff1d(others, self._group_keys(rows)) if len(others) else others
        if len(moved):
            rows = np.concatenate((rows, self._first_of_groups.rows(moved, KEY_BITS)))
        return np.flatnonzero(self.variants(rows))

    def _group_keys(self, rows: Ints) -> Keys:
        """The keys of the groups of items; none of items that are products of their own."""
        groups, first = np.unique(self.groups[rows], return_index=True)
        grouped = rows[first[groups >= len(self.groups)]]
        if not len(grouped):
            return np.zeros(0, dtype=np.uint64)
        return _product_keys([_in_group(name) for name in self._names.gather(grouped)])

    @property
    def _names(self) -> pl.Series:
        return self.catalog.frame.get_column(GROUP).cast(pl.String)

    @cached_property
    def _first_of_groups(self) -> ItemKeys:
        """The row of one item of each group, by the short key of the group."""
        rows = np.unique(self.groups, return_index=True)[1]
        rows = rows[self.groups[rows] >= len(self.groups)]
        by_key = ItemKeys.of([_in_group(name) for name in self._names.gather(rows)] if len(rows) else [])
        return ItemKeys(by_key.keys, rows[by_key.order])


def _in_group(name: str) -> str:
    """What is hashed of a group. No id begins like this: the keys of items and groups differ."""
    return f"\0{name}"


def _product_keys(names: Sequence[str]) -> Keys:
    return short_keys(id_keys(names)) >> np.uint64(SHORT_BITS - KEY_BITS)
