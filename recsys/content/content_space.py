"""The content space: the one space of a catalogue's content vectors, and the map of other contents into it."""

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
    """The space of the content vectors of a training run.

    alignment: maps from the encoders' spaces into this one, None where it is the space of an encoder;
    channels: name -> that channel of the catalogue's n items, in this space.
    """

    space: SpaceKey
    alignment: Alignment | None
    channels: Mapping[str, Embedded]

    def accepts(self, name: str, space: SpaceKey) -> bool:
        """Whether vectors of a channel in an encoder's space can be placed here.

        They can if training placed that channel of the items, or another channel in the same space.
        """
        known = {self.space} if self.alignment is None else self.alignment.maps.keys()
        return name in self.channels or space in known

    def place(self, channels: Mapping[str, Embedded]) -> Embedded:
        """Vectors of k contents in this space: (k, D) unit rows, zeros where all channels are absent.

        channels: name -> the contents' vectors in the encoder's space. Raises SpaceError when training did not use an
        encoder's space.
        """
        if self.alignment is not None:
            return fuse({name: self.alignment.channel(channel) for name, channel in channels.items()})
        for name, channel in channels.items():
            same_space(self.space, channel.space, f"channel {name}")
        return fuse(channels)

    def with_catalog(self, channels: Mapping[str, Embedded]) -> tuple["ContentSpace", Embedded]:
        """This space with the n items of another catalogue, and their vectors in it.

        channels: name -> the items' vectors in the encoder's space. Channels that this space was fitted without are
        left out. Raises SpaceError when no channel remains, or when one is in another encoder's space.
        """
        kept = {name: channel for name, channel in channels.items() if name in self.channels}
        if not kept:
            raise SpaceError(
                f"contents are of {', '.join(channels)}, and {self.space} has {', '.join(self.channels)} only"
            )
        content = self.place(kept)
        if self.alignment is not None:
            kept = {name: self.alignment.channel(channel) for name, channel in kept.items()}
        return ContentSpace(self.space, self.alignment, kept), content

    def near_item(self, row: int, others: Ints) -> dict[str, list[float | None]]:
        """Cosines of an item with others (k,), by channel; None where the channel of either item is absent."""
        return {
            name: _cosines(channel, channel.vectors[row], others) if channel.present[row] else [None] * len(others)
            for name, channel in self.channels.items()
        }

    def near_query(self, query: Floats, others: Ints) -> dict[str, list[float | None]]:
        """Cosines of a query (D,) in this space with items (k,), by channel; None where an item's is absent."""
        return {name: _cosines(channel, query, others) for name, channel in self.channels.items()}


def fit_content_space(
    channels: Mapping[str, Embedded], config: AlignmentConfig, *, seed: int, progress: StartProgress | None = None
) -> tuple[ContentSpace, Embedded, str]:
    """The space of n items, their vectors in it, and a line for the log.

    channels: name -> the items' vectors in the encoder's space. One space is used as it is. Several spaces are
    aligned on the items that have vectors in more than one; a space with fewer than MIN_PAIRED_ITEMS such items is
    left out. Where fewer than two spaces remain, the space of the channel that most items have is used as it is.
    """
    present = {name: channel for name, channel in channels.items() if channel.present.any()}
    counts = ", ".join(f"{name} of {channel.present.sum():,}" for name, channel in present.items()) or "nothing"
    alignable = _alignable(present)
    if few := [name for name in present if name not in alignable]:
        counts += f"; {', '.join(few)} left out: fewer than {MIN_PAIRED_ITEMS} items are in another space too"
    if len({channel.space for channel in alignable.values()}) > 1:
        n = len(next(iter(alignable.values())).present)
        views = {name: Views.of(channel) for name, channel in alignable.items()}
        alignment = fit_alignment(views, n, config, seed=seed, progress=progress).alignment
        placed = {name: alignment.channel(channel) for name, channel in alignable.items()}
        return ContentSpace(alignment.space, alignment, placed), fuse(placed), f"contents aligned: {counts}"
    candidates = present or channels
    largest = max(candidates, key=lambda name: channels[name].present.sum())
    space = channels[largest].space
    same = {name: channel for name, channel in candidates.items() if channel.space == space}
    return ContentSpace(space, None, same), fuse(same), f"contents: {counts}"


def _cosines(channel: Embedded, vector: Floats, rows: Ints) -> list[float | None]:
    """Cosines of a vector (D,) with the items of rows (k,); None where the item's channel is absent."""
    cosines = (channel.vectors[rows] @ vector).tolist()
    return [cosine if present else None for cosine, present in zip(cosines, channel.present[rows], strict=True)]


def _alignable(channels: Mapping[str, Embedded]) -> Mapping[str, Embedded]:
    """The channels of spaces that share at least MIN_PAIRED_ITEMS items with other spaces; else those of one space.

    A map that is fitted on fewer items is arbitrary, and would misplace the items with all their channels.
    """
    while len(spaces := {channel.space for channel in channels.values()}) > 1:
        items_in = {  # space -> (n,): items with a vector in it
            space: np.logical_or.reduce([channel.present for channel in channels.values() if channel.space == space])
            for space in spaces
        }
        in_several = np.sum(list(items_in.values()), axis=0) > 1  # (n,)
        sizes = {key: (int((has & in_several).sum()), int(has.sum()), str(key)) for key, has in items_in.items()}
        rarest = min(sizes, key=lambda space: sizes[space])
        if sizes[rarest][0] >= MIN_PAIRED_ITEMS:
            break
        channels = {name: channel for name, channel in channels.items() if channel.space != rarest}
    return channels
