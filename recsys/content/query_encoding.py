"""Search queries of text, images, sounds and videos, as one vector in the space of the items' contents."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from features.arrays import Bools
from features.catalog import Catalog
from features.content.encoder_config import (
    BuiltinConfig,
    EncoderConfig,
    GeminiConfig,
    OpenAICompatibleConfig,
    open_encoders,
)
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content, Limits, Modality
from features.content.spaces import Embedded, Encoder, Failure, absent
from features.errors import BundleError
from features.instants import now_micros
from recsys.content.content_space import ContentSpace

CHANNEL_MODALITIES: dict[str, tuple[Modality, ...]] = {
    "text": ("text",),
    "title": ("text",),
    "image": ("image", "video"),
    "speech": ("audio", "video"),
    "sound": ("audio", "video"),
}
"""Channel of the built-in encoders -> what its encoder reads."""

KIND_MODALITIES: dict[str, tuple[Modality, ...]] = {
    "siglip": ("text", "image"),
    "clip": ("text", "image"),
    "clap": ("text", "audio"),
    "sentence-transformers": ("text",),
    "gemini": ("text", "image", "audio", "video"),
    "openai-compatible": ("text",),
}
"""Kind of one encoder for all channels -> what it reads."""


@dataclass(frozen=True)
class EncoderSetup:
    """The encoders of a bundle's contents, which its queries must use too.

    config, limits: of the encoders and of what they read; models: folder of exported models.
    """

    config: EncoderConfig
    limits: Limits
    models: Path

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "EncoderSetup | None":
        """From a bundle's manifest; None where the bundle was trained without an encoder.

        Raises BundleError when the manifest's settings are not valid in this version.
        """
        run = manifest["config"]
        if run.get("encoder") is None:
            return None
        try:
            config: EncoderConfig = TypeAdapter(EncoderConfig).validate_python(run["encoder"])
            return cls(config, Limits.model_validate(run["limits"]), Path(run["cache"]) / "models")
        except (KeyError, ValidationError):
            raise BundleError(
                "encoder, limits or cache in the manifest are not valid in this version: train again"
            ) from None

    @property
    def remote(self) -> bool:
        """Whether the encoder is a remote service."""
        return isinstance(self.config, GeminiConfig | OpenAICompatibleConfig)

    def modalities(self, channels: Collection[str]) -> tuple[Modality, ...]:
        """What a search over items with these content channels can read, known without opening an encoder.

        A model of sentence-transformers is taken to read texts; some read pictures too.
        """
        config = self.config
        if isinstance(config, BuiltinConfig):
            read = {modality for name in channels for modality in CHANNEL_MODALITIES.get(name, ())}
        else:
            read = set(KIND_MODALITIES[config.kind])
        return tuple(modality for modality in get_args(Modality) if modality in read)

    def open(self, decoders: DecoderPool) -> dict[str, Encoder]:
        """Channel -> encoder; see `open_encoders`."""
        return open_encoders(self.config, decoders, self.limits, self.models)


@dataclass(frozen=True)
class QueryEncoder:
    """Embeds queries. space: of the items' contents; encoders: channel -> encoder."""

    space: ContentSpace
    encoders: Mapping[str, Encoder]

    def embed(self, content: Content) -> Embedded:
        """The content in the space of the items' contents: (1, D), absent where no part could be read.

        failures: one for each part that was not read, or not completely. Only encoders that read a kind of part in
        the content are called: no other model is loaded. Raises SpaceError when an encoder has changed since the
        items were encoded.
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
        """One failure for each part that was not read, or not completely, with the first reason."""
        reasons: dict[int, str] = {}  # part -> reason
        for channel in channels.values():
            for failure in channel.failures:
                reasons.setdefault(failure.part, failure.reason)
        for at, part in enumerate(content.parts):
            readers = [name for name in channels if part.modality in self.encoders[name].modalities]
            if not readers:
                reasons.setdefault(
                    at, f"the items cannot be searched by {part.modality}: they were trained without it"
                )
            elif not any(channels[name].vectors.any() for name in readers):
                reasons.setdefault(at, "it has no content to search by")
        return tuple(Failure(0, at, reason) for at, reason in sorted(reasons.items()))


def searchable(catalog: Catalog) -> Bools:
    """(n,): items that a search may return: available, published by now, and with content."""
    out: Bools = catalog.available & catalog.has_content & catalog.published_by(now_micros())
    return out
