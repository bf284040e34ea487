"""Encoders of open models, tested with tiny models of random weights; the oracle is a direct call of transformers."""

import json
import os
import shutil
import sys
from typing import Any

import media
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from features.content.encoders.frozen import Media
from features.content.encoders.hub_models import HubEncoder, image_pixels
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Audio, Content, Image, Limits, Text, Video
from features.content.spaces import unit
from features.errors import ConfigError, DependencyError, SpaceError

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "[MASK]",
    "a",
    "red",
    "cat",
    "blue",
    "dog",
    "query",
    ":",
    "title",
    "same",
]
TEXT: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
RATE = 8000


def tokenizer(longest, **more):
    tokens = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = Whitespace()
    tokens.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    names |= {"mask_token": "[MASK]", "eos_token": "[SEP]", "bos_token": "[CLS]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=longest, **names, **more)


@pytest.fixture(scope="module")
def workers():
    with DecoderPool(1, read=media.read_or_die) as decoders:
        yield Media(decoders, Limits())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "clip"
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=TEXT | ids | {"max_position_embeddings": 9, "projection_dim": 12},
        vision_config=TEXT | {"image_size": 16, "patch_size": 8, "projection_dim": 12},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pictures, tokenizer(9)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "siglip"
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = SiglipConfig(
        text_config=TEXT | ids | {"max_position_embeddings": 9, "projection_size": 16},
        vision_config=TEXT | {"image_size": 16, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(folder)
    pictures = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    SiglipProcessor(pictures, tokenizer(9, model_input_names=["input_ids"])).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["rand_trunc", "fusion"])
def clap(tmp_path_factory, request):
    torch.manual_seed(2)
    fused = {"enable_fusion": True, "fusion_type": None} if request.param == "fusion" else {}
    folder = tmp_path_factory.mktemp("models") / "clap"
    audio = {
        "window_size": 4,
        "num_mel_bins": 16,
        "spec_size": 64,
        "hidden_size": 16,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "projection_dim": 12,
    }
    text = TEXT | {"vocab_size": len(WORDS), "max_position_embeddings": 11, "pad_token_id": 0, "projection_dim": 12}
    ClapModel(ClapConfig(text_config=text, audio_config=audio | fused, projection_dim=12)).save_pretrained(folder)
    mel: dict[str, Any] = {"feature_size": 16, "hop_length": 80, "fft_window_size": 128, "frequency_max": 4000}
    sounds = ClapFeatureExtractor(sampling_rate=RATE, max_length_s=1, truncation=request.param, **mel)
    ClapProcessor(sounds, tokenizer(512)).save_pretrained(folder)
    return folder


PROMPTS = {"query": "query : ", "document": "title : ", "STS": "same : "}


def sentences(folder, prompts):
    torch.manual_seed(3)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    inner = folder / "inner"
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **TEXT)).save_pretrained(inner)
    tokenizer(16).save_pretrained(inner)
    output = folder / "sentences"
    SentenceTransformer(
        modules=[Transformer(str(inner)), Pooling(16)], prompts=prompts, device="cpu"
    ).save_pretrained(str(output))
    return output


@pytest.fixture(scope="module")
def with_prompts(tmp_path_factory):
    return sentences(tmp_path_factory.mktemp("with_prompts"), PROMPTS)


@pytest.fixture(scope="module")
def without_prompts(tmp_path_factory):
    return sentences(tmp_path_factory.mktemp("without_prompts"), None)


def random_pixels(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(*frames):
    return media.animation(frames, "PNG")


def sound(seed, seconds):
    return (np.random.default_rng(seed).standard_normal(int(seconds * RATE)) * 3000).astype("<i2")


def wav(samples):
    return media.sound(samples, RATE)


def clip_texts(folder, texts):
    model = CLIPModel.from_pretrained(folder).eval()
    inputs = tokenizer(9)(texts, padding=True, truncation=True, max_length=9, return_tensors="pt")
    with torch.no_grad():
        return unit(model.get_text_features(**inputs).pooler_output.numpy())


def clip_pictures(folder, frames):
    model = CLIPModel.from_pretrained(folder).eval()
    inputs = CLIPProcessor.from_pretrained(folder).image_processor(list(frames), return_tensors="pt")
    with torch.no_grad():
        return unit(model.get_image_features(**inputs).pooler_output.numpy())


def mean(*vectors):
    return unit(np.mean(vectors, axis=0, keepdims=True))[0]


def test_clip_embeds_texts_and_pictures_in_one_space(workers, clip):
    encoder = HubEncoder(workers, str(clip), family="clip")
    frames = [random_pixels(0), random_pixels(1, 40, 17)]
    long = " ".join(["red cat"] * 20)
    contents = [
        *(Content.of(Text(t)) for t in ("red cat", "a dog", long)),
        *(Content.of(Image(png(f))) for f in frames),
    ]
    embedded = encoder.encode(contents)
    np.testing.assert_allclose(embedded.vectors[:3], clip_texts(clip, ["red cat", "a dog", long]), atol=1e-5)
    np.testing.assert_allclose(embedded.vectors[3:], clip_pictures(clip, frames), atol=1e-5)
    assert embedded.vectors.dtype == np.float32
    assert encoder.modalities == {"text", "image"}
    assert embedded.space == encoder.space("query") == encoder.space("similarity")
    assert embedded.space.dimension == 12
    assert embedded.space.prompt == ""


def test_siglip_pads_as_in_training(workers, siglip):
    encoder = HubEncoder(workers, str(siglip), family="siglip")
    model = SiglipModel.from_pretrained(siglip).eval()
    words = tokenizer(9)(["red cat", "a"], padding="max_length", max_length=9, return_tensors="pt")
    frame = random_pixels(2)
    pixels = SiglipProcessor.from_pretrained(siglip).image_processor([frame], return_tensors="pt")
    with torch.no_grad():
        texts = unit(model.get_text_features(input_ids=words["input_ids"]).pooler_output.numpy())
        images = unit(model.get_image_features(**pixels).pooler_output.numpy())
    embedded = encoder.encode([Content.of(Text("red cat")), Content.of(Text("a")), Content.of(Image(png(frame)))])
    np.testing.assert_allclose(embedded.vectors, np.concatenate([texts, images]), atol=1e-5)


def test_clap_reads_the_first_seconds_deterministically(workers, clap):
    encoder = HubEncoder(workers, str(clap), family="clap")
    samples = [sound(0, 0.4), sound(1, 3.0)]
    contents = [Content.of(Text("red cat")), *(Content.of(Audio(wav(s))) for s in samples)]
    embedded = encoder.encode(contents)
    model, extract = ClapModel.from_pretrained(clap).eval(), ClapProcessor.from_pretrained(clap).feature_extractor
    floats = [s[:RATE].astype(np.float32) / 32768 for s in samples]
    inputs = extract(floats, sampling_rate=RATE, return_tensors="pt")
    inputs["is_longer"] = torch.zeros(2, 1, dtype=torch.bool)
    words = tokenizer(10)("red cat", return_tensors="pt")
    with torch.no_grad():
        sounds = unit(model.get_audio_features(**inputs).pooler_output.numpy())
        texts = unit(
            model.get_text_features(words["input_ids"], attention_mask=words["attention_mask"]).pooler_output.numpy()
        )
    np.testing.assert_allclose(embedded.vectors, np.concatenate([texts, sounds]), atol=1e-5)
    np.testing.assert_array_equal(encoder.encode(contents).vectors, embedded.vectors)
    assert encoder.modalities == {"text", "audio"}
    assert "1 s of sound" in embedded.space.preprocessing
    long = Content.of(Text(" ".join(["red cat"] * 50)))  # more tokens than the model has positions
    assert encoder.encode([long]).present.tolist() == [True]


def test_a_content_is_the_unit_mean_of_its_parts(workers, clip):
    frame, animated = random_pixels(3), [random_pixels(4), random_pixels(5), random_pixels(6)]
    contents = [
        Content.of(Text("red"), Image(png(frame)), Text("blue dog")),
        Content.of(Image(png(*animated)), Text("a")),
        Content.of(Audio(b"unread"), Text("cat"), Video(b"unread")),
    ]
    embedded = HubEncoder(workers, str(clip), family="clip").encode(contents)
    texts = clip_texts(clip, ["red", "blue dog", "a", "cat"])
    pictures = clip_pictures(clip, [frame, *animated])
    expected = [mean(texts[0], pictures[0], texts[1]), mean(mean(*pictures[1:]), texts[2]), texts[3]]
    np.testing.assert_allclose(embedded.vectors, expected, atol=1e-5)
    assert embedded.failures == ()


def test_unreadable_parts_are_failures_and_the_rest_is_embedded(workers, clip, monkeypatch):
    monkeypatch.setattr("features.content.encoders.hub_models.CHUNK", 7)
    contents = [
        *[Content()] * 40,
        Content.of(Image(b"<svg/>"), Text("red")),
        Content.of(Image(png(random_pixels(0))[:90])),
        Content.of(Text(" \t"), Text("")),
        Content.of(Image(png(random_pixels(0, 1, 60)))),
        Content.of(Text("x\ud800")),
        Content.of(Image(b"die"), Image(png(random_pixels(0)))),
    ]
    steps: list[int] = []
    embedded = HubEncoder(workers, str(clip), family="clip").encode(contents, progress=steps.append)
    assert embedded.present.tolist() == [False] * 40 + [True, False, False, False, True, True]
    np.testing.assert_allclose(embedded.vectors[[40, 44]], clip_texts(clip, ["red", "x?"]), atol=1e-5)
    np.testing.assert_allclose(embedded.vectors[45], clip_pictures(clip, [random_pixels(0)])[0], atol=1e-5)
    assert not embedded.vectors[~embedded.present].any()
    assert [(f.row, f.part) for f in embedded.failures] == [(40, 0), (41, 0), (43, 0), (45, 0)]
    assert "60 x 1 pixels" in embedded.failures[2].reason
    assert "ended the worker process" in embedded.failures[3].reason  # the second picture is embedded
    assert sum(steps) == 46


def test_the_worker_scales_a_large_picture_down(workers, clip):
    pixels = np.zeros((600, 3000, 3), np.uint8)
    frames = image_pixels(media.picture(pixels, "PNG"), workers.limits)
    assert frames.shape == (1, 205, 1024, 3)
    assert HubEncoder(workers, str(clip), family="clip").encode([Content.of(Image(png(pixels)))]).present.all()


@pytest.mark.parametrize("contents", [[], [Content()]])
def test_empty_contents(workers, clip, contents):
    embedded = HubEncoder(workers, str(clip), family="clip").encode(contents)
    assert embedded.vectors.shape == (len(contents), 12)
    assert not embedded.present.any()


def test_a_cut_is_renormalised_and_another_space(workers, clip):
    full, short = (
        HubEncoder(workers, str(clip), family="clip"),
        HubEncoder(workers, str(clip), family="clip", dimension=5),
    )
    contents = [Content.of(Text("red cat"))]
    assert short.space() == full.space().cut(5)
    parts = clip_texts(clip, ["red cat"])[:, :5]
    np.testing.assert_allclose(short.encode(contents).vectors, unit(parts), atol=1e-5)
    with pytest.raises(SpaceError, match="cannot be cut to 13"):
        HubEncoder(workers, str(clip), family="clip", dimension=13)


def bert(folder, texts):
    model = BertModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        inputs = tokenizer(16)(text, return_tensors="pt", truncation=True, return_token_type_ids=False)
        with torch.no_grad():
            vectors.append(model(**inputs).last_hidden_state[0].mean(dim=0).numpy())
    return unit(np.stack(vectors))


@pytest.mark.parametrize(
    ("task", "prompt", "scheme"),
    [
        ("query", "query : ", "retrieval"),
        ("document", "title : ", "retrieval"),
        ("similarity", "same : ", "similarity"),
    ],
)
def test_sentences_get_the_prompts_of_the_model(workers, with_prompts, task, prompt, scheme):
    encoder = HubEncoder(workers, str(with_prompts), family="sentence-transformers")
    embedded = encoder.encode([Content.of(Text("red cat")), Content.of(Text("blue"))], task=task)
    np.testing.assert_allclose(embedded.vectors, bert(with_prompts, [f"{prompt}red cat", f"{prompt}blue"]), atol=1e-5)
    assert embedded.space == encoder.space(task)
    assert embedded.space.prompt == scheme
    assert encoder.modalities == {"text"}


def test_a_model_without_prompts_has_one_space(workers, without_prompts):
    encoder = HubEncoder(workers, str(without_prompts), family="sentence-transformers")
    assert {encoder.space(task).prompt for task in ("query", "document", "similarity")} == {""}
    embedded = encoder.encode([Content.of(Text("red cat"))], task="query")
    np.testing.assert_allclose(embedded.vectors, bert(without_prompts, ["red cat"]), atol=1e-5)


def test_texts_that_look_like_tokens_or_addresses_are_plain_text(workers, without_prompts, tmp_path):
    trap = tmp_path / "cat.png"
    trap.write_bytes(png(random_pixels(0)))
    words = ["red [SEP] cat [PAD] dog", "http://127.0.0.1:1/red.png", str(trap)]
    embedded = HubEncoder(workers, str(without_prompts), family="sentence-transformers").encode(
        [Content.of(Text(w)) for w in words]
    )
    split = ["red [ SEP] cat [ PAD] dog", *words[1:]]
    np.testing.assert_allclose(embedded.vectors, bert(without_prompts, split), atol=1e-5)
    assert not np.allclose(embedded.vectors[0], bert(without_prompts, words[:1])[0], atol=1e-3)


def test_other_weights_or_prompts_are_another_space(workers, clip, tmp_path, monkeypatch):
    first = HubEncoder(workers, str(clip), family="clip").space()
    assert first.model == "clip"
    assert first.revision.startswith("sha256:")
    copy = tmp_path / "clip"
    shutil.copytree(clip, copy)
    assert HubEncoder(workers, str(copy), family="clip").space() == first
    monkeypatch.chdir(copy)
    assert HubEncoder(workers, ".", family="clip").space() == first
    model = CLIPModel.from_pretrained(copy)
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1
    model.save_pretrained(copy)
    other = HubEncoder(workers, str(copy), family="clip").space()
    assert (other.model, other.dimension) == (first.model, first.dimension)
    assert other != first


def test_pickled_weights_are_rejected_unread(workers, clip, tmp_path):
    copy = tmp_path / "clip"
    shutil.copytree(clip, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(SpaceError, match="convert them to safetensors"):
        HubEncoder(workers, str(copy), family="clip")


@pytest.mark.parametrize("damage", ["missing", "cut", "code"])
def test_a_damaged_folder_is_named(workers, clip, tmp_path, damage):
    copy = tmp_path / "clip"
    shutil.copytree(clip, copy)
    weights, config = copy / "model.safetensors", copy / "config.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        settings = json.loads(config.read_text()) | {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
        config.write_text(json.dumps(settings))
        (copy / "own.py").write_text("import os; os.environ['RUN_BY_A_MODEL'] = '1'")
    with pytest.raises(SpaceError) as caught:
        HubEncoder(workers, str(copy), family="clip")
    assert str(caught.value) == (
        f"{copy}: cannot be loaded as clip: its files are damaged, or not of this kind: fetch the model again, or "
        "set another `encoder.kind`"
    )
    assert "RUN_BY_A_MODEL" not in os.environ


def test_the_family_is_checked(workers, clip):
    with pytest.raises(ConfigError, match="is a clip model, but family is siglip"):
        HubEncoder(workers, str(clip), family="siglip")


def test_a_name_on_the_hub_needs_a_revision(workers, monkeypatch):
    with pytest.raises(ConfigError, match="needs a revision"):
        HubEncoder(workers, "someone/something", family="clip")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SpaceError, match=r"^someone/something@abc: cannot be fetched from .*, and name its folder$"):
        HubEncoder(workers, "someone/something", "abc", family="clip")


def test_a_missing_library_is_named(workers, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DependencyError, match=r"needs the package sentence_transformers: .* extra `native`"):
        HubEncoder(workers, str(clip), family="sentence-transformers")


def test_a_folder_without_a_model_is_told(workers, tmp_path):
    with pytest.raises(SpaceError, match=r"loaded as clip: it has no config\.json: name the folder of a model$"):
        HubEncoder(workers, str(tmp_path), family="clip")
