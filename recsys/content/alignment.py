"""The alignment: one affine map for each encoder's space, into one shared space.

An item has channels: title, text, image, speech, sound. Each channel is embedded in the space of its encoder.
Channels of one space share one map (written and spoken words, for example). An item's vector is the normalised sum of
the unit vectors of its channels in the shared space. Missing channels are left out, so that queries and items of any
channels can be compared.
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
    """The p vectors of one channel over n items; an item has zero, one or several.

    space: the encoder's; items (p,) int64: the item row of each vector; vectors (p, d) float32 unit rows.
    """

    space: SpaceKey
    items: Ints
    vectors: Floats

    @classmethod
    def of(cls, embedded: Embedded) -> "Views":
        """One view of each content that is present."""
        rows = np.flatnonzero(embedded.present)
        return cls(embedded.space, rows, embedded.vectors[rows])

    def where(self, keep: Bools) -> "Views":
        """The views of the items that keep (n,) selects; these items are renumbered 0..keep.sum()-1, in order."""
        new_row = np.cumsum(keep) - 1  # (n,)
        selected = keep[self.items]  # (p,)
        return Views(self.space, new_row[self.items[selected]], self.vectors[selected])


@dataclass(frozen=True)
class AffineMap:
    """(x - mean) @ weight; mean (d,), weight (d, D), float32. Output coordinates are in order of importance."""

    mean: Floats
    weight: Floats

    def __call__(self, vectors: Floats) -> Floats:
        """(k, d) -> (k, D) unit rows."""
        return unit(np.asarray((vectors - self.mean) @ self.weight, dtype=np.float32))


@dataclass(frozen=True)
class Alignment:
    """One map for each encoder's space.

    maps: source space -> map; nested: ascending dimensions that vectors may be cut to (Matryoshka), the last one D.
    """

    maps: Mapping[SpaceKey, AffineMap]
    nested: tuple[int, ...]

    @property
    def dimension(self) -> int:
        """D, the dimension of the shared space."""
        return self.nested[-1]

    @cached_property
    def space(self) -> SpaceKey:
        """The key of the shared space, with a hash of all weights: every training makes another space."""
        digest = hashlib.sha256()
        for key in sorted(self.maps, key=str):
            digest.update(str(key).encode())
            digest.update(self.maps[key].mean.tobytes() + self.maps[key].weight.tobytes())
        return SpaceKey("recsys alignment", digest.hexdigest()[:16], self.dimension)

    def channel(self, embedded: Embedded) -> Embedded:
        """One channel in the shared space: (n, D). Contents that map to zero are absent there.

        A channel of the shared space stays as it is. Raises SpaceError when the alignment has no map from the
        channel's space.
        """
        space = self.space
        if embedded.space == space:
            return embedded
        if embedded.space not in self.maps:
            known = "\n  ".join(map(str, self.maps))
            raise SpaceError(f"the alignment has no map from\n  {embedded.space}\nit has maps from\n  {known}")
        vectors = self.maps[embedded.space](embedded.vectors) * embedded.present[:, None]
        return Embedded(space, vectors, np.asarray(vectors.any(axis=1)), embedded.failures)


def fuse(channels: Mapping[str, Embedded]) -> Embedded:
    """The normalised sum of the channels of the same n contents: (n, D).

    Raises SpaceError when the channels are in different spaces.
    """
    first = next(iter(channels.values()))
    total: Floats = np.zeros(first.vectors.shape, dtype=np.float32)  # (n, D)
    for name, channel in channels.items():
        same_space(channel.space, first.space, f"channel {name}")
        total += unit(channel.vectors)
    present: Bools = np.logical_or.reduce([channel.present for channel in channels.values()])
    return Embedded(first.space, unit(total), present)
