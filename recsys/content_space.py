"""Where contents lie: the one space of a catalogue's content vectors, and how any other content gets there."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.errors import DataError
from features.progress import Begin
from features.spaces import Embedded, SpaceKey, same_space
from recsys.alignment import Alignment, Views, fuse
from recsys.alignment_training import fit_alignment
from recsys.settings import AlignmentConfig


@dataclass(frozen=True)
class ContentSpace:
    """The space of a run's contents.

    alignment: from the encoders' spaces into this one, None where an encoder's own is used as it is;
    channels: name -> that channel of the catalogue's n items, in this space.
    """

    space: SpaceKey
    alignment: Alignment | None
    channels: Mapping[str, Embedded]

    def place(self, channels: Mapping[str, Embedded]) -> Embedded:
        """Contents by what their channels' encoders made of them: (k, D) unit rows, zeros of what says nothing.

        Raises SpaceError when an encoder's space is not one of those that this run was made with.
        """
        if self.alignment is not None:
            return fuse({name: self.alignment.channel(one) for name, one in channels.items()})
        for name, one in channels.items():
            same_space(self.space, one.space, f"channel {name}")
        return fuse(channels)

    def near(self, row: int, others: np.ndarray) -> dict[str, list[float | None]]:
        """Cosines between an item and others (k,), by channel; None where one of the two has nothing there."""
        out: dict[str, list[float | None]] = {}
        for name, channel in self.channels.items():
            if channel.present[row]:
                cosines = channel.vectors[others] @ channel.vectors[row]
                out[name] = [
                    float(c) if there else None for c, there in zip(cosines, channel.present[others], strict=True)
                ]
        return out


def fit_content_space(
    channels: Mapping[str, Embedded], config: AlignmentConfig, *, seed: int, progress: Begin | None = None
) -> tuple[ContentSpace, Embedded, str]:
    """The space of n items, their vectors in it, and a line that says how it came to be.

    channels: name -> what its encoder made of the items. Where they lie in one space, that is it; where several are,
    they are aligned on the items that have more than one; where there are too few of those, the space that most
    items are in is used and the others are left out.
    """
    there = {name: one for name, one in channels.items() if one.present.any()}
    counts = ", ".join(f"{name} of {one.present.sum():,}" for name, one in there.items()) or "nothing"
    if len({one.space for one in there.values()}) > 1:
        n = len(next(iter(there.values())).present)
        try:
            views = {name: Views.of(one) for name, one in there.items()}
            alignment = fit_alignment(views, n, config, seed=seed, progress=progress).alignment
        except DataError as error:
            counts += f"; {error}"
        else:
            placed = {name: alignment.channel(one) for name, one in there.items()}
            return ContentSpace(alignment.space, alignment, placed), fuse(placed), f"contents aligned: {counts}"
    best = max(there or channels, key=lambda name: channels[name].present.sum())
    same = {name: one for name, one in (there or channels).items() if one.space == channels[best].space}
    return ContentSpace(channels[best].space, None, same), fuse(same), f"contents: {counts}"
