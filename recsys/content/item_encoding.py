"""Items put into a running service, as vectors: embedded as the items of its bundle were."""

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
    """What a bundle's encoders make of m items. channels: name -> (m, d) in that encoder's space; failed: for each
    item, (kind of part, reason) of what could not be read."""

    channels: Mapping[str, Embedded]
    failed: list[list[tuple[str, str]]]

    @classmethod
    def together(cls, parts: "Sequence[ItemVectors]") -> "ItemVectors":
        """Of all the items of some, in order; each has the same channels."""
        channels = {
            name: Embedded(
                one.space,
                np.concatenate([part.channels[name].vectors for part in parts]),
                np.concatenate([part.channels[name].present for part in parts]),
            )
            for name, one in parts[0].channels.items()
        }
        return cls(channels, [failed for part in parts for failed in part.failed])


def embed_items(space: ContentSpace, encoders: Mapping[str, Encoder], items: pl.DataFrame) -> ItemVectors:
    """Checked items (m rows), whose media are absolute paths or URLs, through the encoders of a bundle.

    Only encoders that training placed, or whose vectors lie where those of one did, and only for what there is to
    read: nothing else is loaded.
    """
    contents = item_contents(items, Path())
    channels = {
        name: _encoded(encoder, contents)
        for name, encoder in encoders.items()
        if space.accepts(name, encoder.space())
    }
    failed = [_failed(row, content, channels, encoders) for row, content in enumerate(contents)]
    if TITLE_CHANNEL in space.channels and TEXT_CHANNEL in encoders:
        channels[TITLE_CHANNEL] = _encoded(encoders[TEXT_CHANNEL], item_titles(items))
    return ItemVectors(channels, failed)


def _encoded(encoder: Encoder, contents: Sequence[Content]) -> Embedded:
    if any(part.modality in encoder.modalities for content in contents for part in content.parts):
        return encoder.encode(contents, task="document")
    return absent(encoder.space(), len(contents))


def _failed(
    row: int, content: Content, channels: Mapping[str, Embedded], encoders: Mapping[str, Encoder]
) -> list[tuple[str, str]]:
    """Each part of one content that was not read, or not wholly, once."""
    failures = [f for channel in channels.values() for f in channel.failures if f.row == row]
    why = {failure.part: failure.reason for failure in reversed(failures)}
    read = frozenset().union(*(encoders[name].modalities for name in channels))
    for at, part in enumerate(content.parts):
        if part.modality not in read:
            why.setdefault(at, f"the items cannot be searched by {part.modality}: they were trained without")
    return [(content.parts[at].modality, reason) for at, reason in sorted(why.items())]
