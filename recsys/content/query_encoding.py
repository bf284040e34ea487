"""Search: words, pictures, sounds and videos, or any mixture of them, as one vector among the items' contents."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from features.arrays import Bools
from features.catalog import Catalog
from features.content.encoder_config import EncoderConfig, GeminiConfig, OpenAICompatibleConfig, open_encoders
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content, Limits
from features.content.spaces import Embedded, Encoder, Failure, absent
from features.errors import BundleError
from features.interactions import now_micros
from recsys.content.content_space import ContentSpace

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class EncoderSetup:
    """What a bundle's contents were encoded with, as its queries have to be; models: folder of exported models."""

    config: EncoderConfig
    limits: Limits
    models: Path

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "EncoderSetup | None":
        """As a bundle's manifest says; None where it was trained without an encoder. Raises BundleError."""
        run = manifest["config"]
        if run.get("encoder") is None:
            return None
        try:
            config: EncoderConfig = TypeAdapter(EncoderConfig).validate_python(run["encoder"])
            return cls(config, Limits.model_validate(run["limits"]), Path(run["cache"]) / "models")
        except (KeyError, ValidationError) as error:
            raise BundleError(
                f"encoder, limits or cache in the manifest cannot be used, train again: {error}"
            ) from None

    @property
    def remote(self) -> bool:
        """Whether another machine encodes."""
        return isinstance(self.config, GeminiConfig | OpenAICompatibleConfig)

    def open(self, decoders: DecoderPool) -> dict[str, Encoder]:
        """Channel -> encoder; see `open_encoders`."""
        return open_encoders(self.config, decoders, self.limits, self.models)


@dataclass(frozen=True)
class QueryEncoder:
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
            if encoder.modalities & kinds and self.space.accepts(name, encoder.space("query"))
        }
        failures = self._failures(content, channels)
        if not channels:
            return replace(absent(self.space.space, 1), failures=failures)
        placed = self.space.place(channels)
        return replace(placed, present=placed.present & placed.vectors.any(axis=1), failures=failures)

    def _failures(self, content: Content, channels: Mapping[str, Embedded]) -> tuple[Failure, ...]:
        why: dict[int, str] = {}
        for channel in channels.values():
            for failure in channel.failures:
                why.setdefault(failure.part, failure.reason)
        for at, part in enumerate(content.parts):
            readers = [name for name in channels if part.modality in self.encoders[name].modalities]
            if not readers:
                why.setdefault(at, f"the items cannot be searched by {part.modality}: they were trained without")
            elif not any(channels[name].vectors.any() for name in readers):
                why.setdefault(at, "there is nothing in it to search by")
        return tuple(Failure(0, at, reason) for at, reason in sorted(why.items()))


def searchable(catalog: Catalog) -> Bools:
    """(n,): items that a search may find: available, published by now, and something is known of them."""
    out: Bools = catalog.available & catalog.has_content & catalog.published_by(now_micros())
    return out
