"""Which encoders a run uses: one line of its configuration."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Limits
from features.content.spaces import Encoder
from features.schema import Strict


class BuiltinConfig(Strict):
    """The encoders that work with no network: one for each kind of content, aligned on the catalogue's own items."""

    kind: Literal["builtin"] = "builtin"

    multilingual: bool = False
    """Texts by multilingual-e5-small rather than MiniLM."""

    without: tuple[Literal["text", "image", "speech", "sound"], ...] = ()
    """Kinds of content that are not read, neither of items nor of queries."""


class HubConfig(Strict):
    """A model of several kinds of content in one space, from the Hugging Face hub or a folder."""

    kind: Literal["siglip", "clip", "clap", "sentence-transformers"]

    model: str
    """Name on the hub, or a folder."""

    revision: str | None = None
    """Commit, tag or branch; a model of the hub needs one."""

    dimension: Annotated[int, Field(ge=1)] | None = None
    """Cut to so many coordinates, where the model was trained for it."""


class GeminiConfig(Strict):
    """Gemini Embedding through Google's API; the key is in GEMINI_API_KEY."""

    kind: Literal["gemini"]

    model: str = "gemini-embedding-2"

    dimension: Annotated[int, Field(ge=128, le=3072)] = 768
    """Tuned for 768, 1536 and 3072."""

    spend_at_most: Annotated[float, Field(ge=0)] = 1.0
    """Dollars that one process may spend, by estimates made before anything is sent."""


class OpenAICompatibleConfig(Strict):
    """Texts by any server that speaks POST /embeddings as OpenAI does; a key, where needed, in OPENAI_API_KEY."""

    kind: Literal["openai-compatible"]

    base_url: str
    """Up to /v1."""

    model: str

    dimension: Annotated[int, Field(ge=1)] | None = None
    """Asked of the server; null: what the model has."""


EncoderConfig = Annotated[
    BuiltinConfig | HubConfig | GeminiConfig | OpenAICompatibleConfig, Field(discriminator="kind")
]

TEXT_CHANNEL = "text"
"""Channel that is cheap enough to be computed whenever it is needed; the others are the embedding job's."""

TITLE_CHANNEL = "title"
"""Channel of titles alone, beside the text that has all words: what people search with."""


def builtin_encoders(
    decoders: DecoderPool, limits: Limits, models: Path, *, multilingual: bool = False
) -> dict[str, Encoder]:
    """Channel -> encoder: text, image, speech, sound. models: folder of exported models.

    Frames of a video go to image, its sound to speech and sound. A model is loaded when it is first needed.
    """
    from features.content.encoders.frozen import Media
    from features.content.encoders.images import EfficientNet
    from features.content.encoders.sounds import AiSFX
    from features.content.encoders.speech import Whisper
    from features.content.encoders.text import MiniLM, MultilingualE5

    media, text = Media(decoders, limits), MultilingualE5(limits) if multilingual else MiniLM(limits)
    return {
        "text": text,
        "image": EfficientNet(media, models),
        "speech": Whisper(media, text),
        "sound": AiSFX(media, models),
    }


def open_encoders(config: EncoderConfig, decoders: DecoderPool, limits: Limits, models: Path) -> dict[str, Encoder]:
    """Channel -> encoder; models: folder of exported models. Models load when they are first used.

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
