"""Configuration of the encoders of a run, and the function that opens them."""

import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Limits
from features.content.spaces import Encoder
from features.schema import StrictModel

logger = logging.getLogger("recsys.content")


class BuiltinConfig(StrictModel):
    """The encoders that need no network: one for each modality, aligned on the items of the catalogue."""

    kind: Literal["builtin"] = "builtin"

    multilingual: bool = False
    """Embed texts with multilingual-e5-small instead of MiniLM."""

    without: tuple[Literal["text", "image", "speech", "sound"], ...] = ()
    """Channels that are disabled, for items and for queries."""


class HubConfig(StrictModel):
    """A model of several modalities in one space, from the Hugging Face hub or a folder."""

    kind: Literal["siglip", "clip", "clap", "sentence-transformers"]

    model: str
    """Name on the hub, or a folder."""

    revision: str | None = None
    """Commit, tag or branch; required for a model of the hub."""

    dimension: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Number of coordinates to keep, for a model that was trained for such a cut."""


class GeminiConfig(StrictModel):
    """Gemini Embedding through Google's API; the key is in GEMINI_API_KEY."""

    kind: Literal["gemini"]

    model: str = "gemini-embedding-2"

    dimension: Annotated[int, Field(ge=128, le=3072)] = 768
    """The model was tuned for 768, 1536 and 3072."""

    spend_at_most: Annotated[float, Field(ge=0, le=1_000_000_000)] = 1.0
    """Maximum cost of one process in dollars, by estimates before each request."""


class OpenAICompatibleConfig(StrictModel):
    """Texts by any server with OpenAI's POST /embeddings; a key, if needed, is in OPENAI_API_KEY."""

    kind: Literal["openai-compatible"]

    base_url: str
    """Address up to /v1."""

    model: str

    dimension: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Dimension requested from the server; null: the dimension of the model."""


EncoderConfig = Annotated[
    BuiltinConfig | HubConfig | GeminiConfig | OpenAICompatibleConfig, Field(discriminator="kind")
]

TEXT_CHANNEL = "text"
"""Channel that is cheap enough to be computed on demand; the embedding job computes the others."""

TITLE_CHANNEL = "title"
"""Channel of titles only, in addition to the full text: queries resemble titles."""


def builtin_encoders(
    decoders: DecoderPool, limits: Limits, models: Path, *, multilingual: bool = False
) -> dict[str, Encoder]:
    """Channel -> encoder: text, image, speech, and sound where the package aisfx is installed.

    models: folder of exported models. Image reads the frames of a video; speech and sound read its sound track. A
    model is loaded at its first use.
    """
    from features.content.encoders import sounds
    from features.content.encoders.frozen import Media
    from features.content.encoders.images import EfficientNet
    from features.content.encoders.speech import Whisper
    from features.content.encoders.text import MiniLM, MultilingualE5

    media, text = Media(decoders, limits), MultilingualE5(limits) if multilingual else MiniLM(limits)
    encoders: dict[str, Encoder] = {
        "text": text,
        "image": EfficientNet(media, models),
        "speech": Whisper(media, text),
    }
    if sounds.installed():
        encoders["sound"] = sounds.AiSFX(media, models)
    else:  # no extra brings the package, since its wheel pins an old numpy
        logger.warning("channel sound is left out: it needs the package aisfx (pip install --no-deps aisfx==0.1.2)")
    return encoders


def open_encoders(config: EncoderConfig, decoders: DecoderPool, limits: Limits, models: Path) -> dict[str, Encoder]:
    """Channel -> encoder; models: folder of exported models. A model is loaded at its first use.

    Raises ConfigError, SpaceError and DependencyError.
    """
    from features.content.encoders.frozen import Media

    if isinstance(config, BuiltinConfig):
        encoders = builtin_encoders(decoders, limits, models, multilingual=config.multilingual)
        return {name: encoder for name, encoder in encoders.items() if name not in config.without}
    media = Media(decoders, limits)
    if isinstance(config, HubConfig):
        from features.content.encoders.hub_models import HubEncoder

        hub = HubEncoder(media, config.model, config.revision, family=config.kind, dimension=config.dimension)
        return {"content": hub}
    if isinstance(config, GeminiConfig):
        from features.content.encoders.gemini import GeminiEncoder

        gemini = GeminiEncoder(media, config.model, config.dimension, spend_at_most=config.spend_at_most)
        return {"content": gemini}
    from features.content.encoders.openai_compatible import OpenAICompatibleEncoder

    return {"content": OpenAICompatibleEncoder(limits, config.base_url, config.model, config.dimension)}
