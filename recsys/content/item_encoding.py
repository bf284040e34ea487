"""Vectors of items that are upserted into a running service, by the encoders of its bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from features.content.embed import item_contents, item_titles
from features.content.encoder_config import TEXT_CHANNEL, TITLE_CHANNEL
from features.content.parts import Content
from features.content.spaces import Embedded, Encoder, absent
from recsys.content.content_space import ContentSpace


@dataclass(frozen=True)
class ItemVectors:
    """The vectors of m items.

    channels: name -> (m, d) in the space of the channel's encoder; failed: for each item, (kind of part, reason) of
    the parts that were not read.
    """

    channels: Mapping[str, Embedded]
    failed: list[list[tuple[str, str]]]

    @classmethod
    def together(cls, parts: "Sequence[ItemVectors]") -> "ItemVectors":
        """The vectors of several lists of items, concatenated; all have the same channels."""
        channels = {
            name: Embedded(
                channel.space,
                np.concatenate([part.channels[name].vectors for part in parts]),
                np.concatenate([part.channels[name].present for part in parts]),
            )
            for name, channel in parts[0].channels.items()
        }
        return cls(channels, [failed for part in parts for failed in part.failed])

    def apart(self) -> "list[ItemVectors]":
        """The vectors of each item, the inverse of `together`."""
        return [
            ItemVectors(
                {
                    name: Embedded(channel.space, channel.vectors[i : i + 1], channel.present[i : i + 1])
                    for name, channel in self.channels.items()
                },
                [failed],
            )
            for i, failed in enumerate(self.failed)
        ]


def embed_items(
    space: ContentSpace, encoders: Mapping[str, Encoder], items: pl.DataFrame, root: Path = Path()
) -> ItemVectors:
    """Embed m validated items, whose media are URLs or paths, relative ones to `root`, with the encoders of a bundle.

    Only encoders whose channel the space accepts are used, and only where an item has a part that they read: no other
    model is loaded.
    """
    contents = item_contents(items, root)
    channels = {
        name: _encode(encoder, contents) for name, encoder in encoders.items() if space.accepts(name, encoder.space())
    }
    failed = [_failed(row, content, channels, encoders) for row, content in enumerate(contents)]
    if TITLE_CHANNEL in space.channels and TEXT_CHANNEL in encoders:
        channels[TITLE_CHANNEL] = _encode(encoders[TEXT_CHANNEL], item_titles(items))
    return ItemVectors(channels, failed)


def _encode(encoder: Encoder, contents: Sequence[Content]) -> Embedded:
    """The contents in the encoder's space; an encoder that reads none of their parts is not called."""
    if any(part.modality in encoder.modalities for content in contents for part in content.parts):
        return encoder.encode(contents, task="document")
    return absent(encoder.space(), len(contents))


def _failed(
    row: int, content: Content, channels: Mapping[str, Embedded], encoders: Mapping[str, Encoder]
) -> list[tuple[str, str]]:
    """(kind of part, reason) of each part of one content that was not read, or not completely: one reason a part."""
    failures = [f for channel in channels.values() for f in channel.failures if f.row == row]
    reasons = {failure.part: failure.reason for failure in reversed(failures)}
    read = frozenset().union(*(encoders[name].modalities for name in channels))
    for at, part in enumerate(content.parts):
        if part.modality not in read:
            reasons.setdefault(at, f"the items cannot be searched by {part.modality}: they were trained without it")
    return [(content.parts[at].modality, reason) for at, reason in sorted(reasons.items())]
