"""Search: words, pictures, sounds and videos, in any mixture, as one vector among the contents of a bundle's items."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from features.catalog import Catalog
from features.content import Content, Limits
from features.decoders import Decoders
from features.encoding import EncoderConfig, open_encoders
from features.errors import BundleError
from features.interactions import Bools, Ints
from features.spaces import Embedded, Encoder, Failure
from recsys.content_space import ContentSpace


@dataclass(frozen=True)
class Encoding:
    """What a bundle's contents were encoded with, as its queries have to be; models: folder of exported models."""

    config: EncoderConfig
    limits: Limits
    models: Path

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Encoding | None":
        """As a bundle's manifest says; None where it was trained without an encoder. Raises BundleError."""
        run = manifest["config"]
        if run.get("encoder") is None:
            return None
        try:
            config: EncoderConfig = TypeAdapter(EncoderConfig).validate_python(run["encoder"])
            return cls(config, Limits.model_validate(run["limits"]), Path(run["cache"]) / "models")
        except (KeyError, ValidationError) as error:
            raise BundleError(f"encoder, limits or cache in the manifest cannot be used, train again: {error}") from None

    def open(self, decoders: Decoders) -> dict[str, Encoder]:
        """Channel -> encoder; see `open_encoders`."""
        return open_encoders(self.config, decoders, self.limits, self.models)


@dataclass(frozen=True)
class Searcher:
    """Makes vectors of queries. encoders: channel -> encoder."""

    space: ContentSpace
    encoders: Mapping[str, Encoder]

    def embed(self, content: Content) -> Embedded:
        """The content in the space of the items' contents: (1, D), not present where nothing of it could be read.

        failures: each part that was not read, or not wholly, once. Only encoders of its parts' kinds are asked, so
        that nothing else is loaded. Raises SpaceError when one has become another than the items were encoded with.
        """
        kinds = {part.modality for part in content.parts}
        channels = {
            name: encoder.encode([content], task="query")
            for name, encoder in self.encoders.items()
            if encoder.modalities & kinds and self._meets_items(name, encoder)
        }
        failures = self._failures(content, channels)
        if not channels:
            nothing = np.zeros((1, self.space.space.dimension), dtype=np.float32)
            return Embedded(self.space.space, nothing, np.zeros(1, dtype=np.bool_), failures)
        return replace(self.space.place(channels), failures=failures)

    def _meets_items(self, name: str, encoder: Encoder) -> bool:
        """Whether training placed that channel of the items, or another one in the same space."""
        alignment = self.space.alignment
        known = {self.space.space} if alignment is None else alignment.maps.keys()
        return name in self.space.channels or encoder.space("query") in known

    def _failures(self, content: Content, channels: Mapping[str, Embedded]) -> tuple[Failure, ...]:
        why: dict[int, str] = {}
        for channel in channels.values():
            for failure in channel.failures:
                why.setdefault(failure.part, failure.reason)
        for at, part in enumerate(content.parts):
            readers = [name for name in channels if part.modality in self.encoders[name].modalities]
            if not readers:
                why.setdefault(at, f"the items cannot be searched by {part.modality}: they were trained without")
            elif not any(channels[name].present[0] for name in readers):
                why.setdefault(at, "there is nothing in it to search by")
        return tuple(Failure(0, at, reason) for at, reason in sorted(why.items()))


def searchable(catalog: Catalog) -> Bools:
    """(n,): items that a search may find, those that are available and that something is known of."""
    out: Bools = catalog.available & catalog.has_content
    return out


def near_query(space: ContentSpace, query: Embedded, rows: Ints) -> dict[str, list[float | None]]:
    """Cosines between a query (1, D) and items (k,), by channel of the items; None where an item has nothing there."""
    return {
        name: [
            float(cosine) if there else None
            for cosine, there in zip(
                channel.vectors[rows] @ query.vectors[0], channel.present[rows].tolist(), strict=True
            )
        ]
        for name, channel in space.channels.items()
    }
