"""The alignment: vectors of several frozen encoders into one shared space.

Channels are what an item is made of (title, text, image, speech, sound); each lies in the space of its encoder, and
channels of one space, as written and spoken words, share one map. An item is the sum of its channels' unit vectors in
the shared space: what is missing is left out, and a query made of anything meets items made of anything else.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.content.spaces import Embedded, SpaceKey, same_space, unit
from features.errors import SpaceError


@dataclass(frozen=True)
class Views:
    """What one channel has of n items, or says of them in several ways: p vectors.

    space: whose vectors; items (p,) int64: the row of each vector's item; vectors (p, d) float32 unit rows.
    """

    space: SpaceKey
    items: Ints
    vectors: Floats

    @classmethod
    def of(cls, embedded: Embedded) -> "Views":
        """One view of each content that there is something of."""
        rows = np.flatnonzero(embedded.present)
        return cls(embedded.space, rows, embedded.vectors[rows])

    def where(self, keep: Bools) -> "Views":
        """The views of the items that keep (n,) marks, of which there are then keep.sum(), in order."""
        new = np.cumsum(keep) - 1
        mine = keep[self.items]
        return Views(self.space, new[self.items[mine]], self.vectors[mine])


@dataclass(frozen=True)
class AffineMap:
    """(x - mean) @ weight; mean (d,), weight (d, D), float32. Its first coordinates matter most: Matryoshka."""

    mean: Floats
    weight: Floats

    def __call__(self, vectors: Floats) -> Floats:
        """(k, d) -> (k, D) unit rows."""
        return unit(np.asarray((vectors - self.mean) @ self.weight, dtype=np.float32))


@dataclass(frozen=True)
class Alignment:
    """One map for each encoder's space.

    maps: by the space they map from; nested: dimensions that its vectors may be cut to.
    """

    maps: Mapping[SpaceKey, AffineMap]
    nested: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """Of the shared space."""
        return self.nested[-1]

    @cached_property
    def space(self) -> SpaceKey:
        """The shared space, named by the maps' numbers: two trainings make two spaces."""
        digest = hashlib.sha256()
        for key in sorted(self.maps, key=str):
            digest.update(str(key).encode())
            digest.update(self.maps[key].mean.tobytes() + self.maps[key].weight.tobytes())
        return SpaceKey("recsys alignment", digest.hexdigest()[:16], self.dimension)

    def channel(self, embedded: Embedded) -> Embedded:
        """One channel in the shared space; what the map makes nothing of is absent there.

        Raises SpaceError for vectors of a space that it was not fitted on.
        """
        if embedded.space not in self.maps:
            there = "\n  ".join(map(str, self.maps))
            raise SpaceError(f"the alignment has no map from\n  {embedded.space}\nbut from\n  {there}")
        vectors = self.maps[embedded.space](embedded.vectors) * embedded.present[:, None]
        return Embedded(self.space, vectors, np.asarray(vectors.any(axis=1)), embedded.failures)


def fuse(channels: Mapping[str, Embedded]) -> Embedded:
    """Channels of the same n contents in one space, summed and normalised: (n, D).

    Raises SpaceError when they lie in different spaces.
    """
    first = next(iter(channels.values()))
    total: Floats = np.zeros(first.vectors.shape, dtype=np.float32)
    for name, channel in channels.items():
        same_space(channel.space, first.space, f"channel {name}")
        total += unit(channel.vectors)
    present: Bools = np.logical_or.reduce([channel.present for channel in channels.values()])
    return Embedded(first.space, unit(total), present)
