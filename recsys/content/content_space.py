"""Where contents lie: the one space of a catalogue's content vectors, and how any other content gets there."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.arrays import Floats, Ints
from features.content.spaces import Embedded, SpaceKey, same_space
from features.errors import SpaceError
from features.progress import StartProgress
from recsys.config import AlignmentConfig
from recsys.content.alignment import Alignment, Views, fuse
from recsys.content.alignment_training import MIN_PAIRED_ITEMS, fit_alignment


@dataclass(frozen=True)
class ContentSpace:
    """The space of a run's contents.

    alignment: from the encoders' spaces into this one, None where an encoder's own is used as it is;
    channels: name -> that channel of the catalogue's n items, in this space.
    """

    space: SpaceKey
    alignment: Alignment | None
    channels: Mapping[str, Embedded]

    def accepts(self, name: str, space: SpaceKey) -> bool:
        """Whether training placed that channel of the items, or another one in the same space."""
        known = {self.space} if self.alignment is None else self.alignment.maps.keys()
        return name in self.channels or space in known

    def place(self, channels: Mapping[str, Embedded]) -> Embedded:
        """Contents by what their channels' encoders made of them: (k, D) unit rows, zeros of what says nothing.

        Raises SpaceError when an encoder's space is not one of those that this run was made with.
        """
        if self.alignment is not None:
            return fuse({name: self.alignment.channel(one) for name, one in channels.items()})
        for name, one in channels.items():
            same_space(self.space, one.space, f"channel {name}")
        return fuse(channels)

    def with_catalog(self, channels: Mapping[str, Embedded]) -> tuple["ContentSpace", Embedded]:
        """The same space around another catalogue's n items, and their vectors in it.

        channels: what their encoders made of the items; those that this space was made without are left out.
        Raises SpaceError when none is left, or one comes from another encoder's space.
        """
        same = {name: one for name, one in channels.items() if name in self.channels}
        if not same:
            raise SpaceError(f"contents are of {', '.join(channels)}, and {self.space} of {', '.join(self.channels)}")
        content = self.place(same)
        if self.alignment is not None:
            same = {name: self.alignment.channel(one) for name, one in same.items()}
        return ContentSpace(self.space, self.alignment, same), content

    def near_item(self, row: int, others: Ints) -> dict[str, list[float | None]]:
        """Cosines between an item and others (k,), by channel; None where one of the two has nothing there."""
        return {
            name: _cosines(channel, channel.vectors[row], others) if channel.present[row] else [None] * len(others)
            for name, channel in self.channels.items()
        }

    def near_query(self, query: Floats, others: Ints) -> dict[str, list[float | None]]:
        """Cosines between a query (D,) of this space and items (k,), by channel; None where one has nothing there."""
        return {name: _cosines(channel, query, others) for name, channel in self.channels.items()}


def fit_content_space(
    channels: Mapping[str, Embedded], config: AlignmentConfig, *, seed: int, progress: StartProgress | None = None
) -> tuple[ContentSpace, Embedded, str]:
    """The space of n items, their vectors in it, and a line that says how it came to be.

    channels: name -> what its encoder made of the items. Where they lie in one space, that is it. Several are aligned
    on the items that are in more than one; a space that fewer than MIN_PAIRED_ITEMS such items are in is left out.
    Where that leaves nothing to align, the space that most items are in is used.
    """
    there = {name: one for name, one in channels.items() if one.present.any()}
    counts = ", ".join(f"{name} of {one.present.sum():,}" for name, one in there.items()) or "nothing"
    meeting = _alignable(there)
    if few := [name for name in there if name not in meeting]:
        counts += f"; {', '.join(few)} left out: at least {MIN_PAIRED_ITEMS} items need it beside another kind"
    if len({one.space for one in meeting.values()}) > 1:
        n = len(next(iter(meeting.values())).present)
        views = {name: Views.of(one) for name, one in meeting.items()}
        alignment = fit_alignment(views, n, config, seed=seed, progress=progress).alignment
        placed = {name: alignment.channel(one) for name, one in meeting.items()}
        return ContentSpace(alignment.space, alignment, placed), fuse(placed), f"contents aligned: {counts}"
    best = max(there or channels, key=lambda name: channels[name].present.sum())
    same = {name: one for name, one in (there or channels).items() if one.space == channels[best].space}
    return ContentSpace(channels[best].space, None, same), fuse(same), f"contents: {counts}"


def _cosines(channel: Embedded, vector: Floats, rows: Ints) -> list[float | None]:
    cosines = (channel.vectors[rows] @ vector).tolist()
    return [cosine if there else None for cosine, there in zip(cosines, channel.present[rows], strict=True)]


def _alignable(channels: Mapping[str, Embedded]) -> Mapping[str, Embedded]:
    """Those of spaces that meet another one in at least MIN_PAIRED_ITEMS items; those of one space where none does.

    A map of fewer would put their items anywhere, and the other channels of these items with them.
    """
    while len(spaces := {one.space for one in channels.values()}) > 1:
        within = {
            key: np.logical_or.reduce([one.present for one in channels.values() if one.space == key])
            for key in spaces
        }
        several = np.sum(list(within.values()), axis=0) > 1
        met = {key: (int((mine & several).sum()), int(mine.sum()), str(key)) for key, mine in within.items()}
        rarest = min(met, key=lambda key: met[key])
        if met[rarest][0] >= MIN_PAIRED_ITEMS:
            break
        channels = {name: one for name, one in channels.items() if one.space != rarest}
    return channels
