"""Encoders that work with no network, one file a model: text, speech (in the text's space), pictures, sounds."""

from pathlib import Path

from features.content.parts import Limits
from features.content.media.decoder_pool import Decoders
from features.content.encoders.frozen import Media
from features.content.encoders.images import EfficientNet
from features.content.encoders.sounds import AiSFX
from features.content.encoders.speech import Whisper
from features.content.encoders.text import MiniLM, MultilingualE5
from features.content.spaces import Encoder


def builtin(decoders: Decoders, limits: Limits, models: Path, *, multilingual: bool = False) -> dict[str, Encoder]:
    """Channel -> encoder: text, image, speech, sound. models: folder that exported models are kept in.

    A video is seen by image, heard by speech and sound. Nothing is loaded before it is needed.
    """
    media, text = Media(decoders, limits), MultilingualE5(limits) if multilingual else MiniLM(limits)
    return {
        "text": text,
        "image": EfficientNet(media, models),
        "speech": Whisper(media, text),
        "sound": AiSFX(media, models),
    }


__all__ = ["AiSFX", "EfficientNet", "Media", "MiniLM", "MultilingualE5", "Whisper", "builtin"]
