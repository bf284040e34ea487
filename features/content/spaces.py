"""Vector spaces, and the interface of the encoders that embed contents into them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from features.arrays import Bools, Floats
from features.content.parts import Content, Modality
from features.errors import SpaceError
from features.progress import Step

Task = Literal["document", "query", "similarity"]
"""Purpose of an embedding. Documents and queries of one model share a space; similarity may have its own."""


@dataclass(frozen=True)
class SpaceKey:
    """Names a vector space: two vectors may be compared only if their keys are equal.

    model, revision: the weights; dimension: length of a vector, after a Matryoshka cut if there is one;
    prompt: scheme of the task prompts, e.g. "retrieval"; preprocessing: which part of the content is read, and how;
    normalisation: "l2" for unit vectors.
    """

    model: str
    revision: str
    dimension: int
    prompt: str = ""
    preprocessing: str = ""
    normalisation: str = "l2"

    def __str__(self) -> str:
        fields = [f"{self.model}@{self.revision}", *(t for t in (self.prompt, self.preprocessing) if t)]
        return f"{' · '.join(fields)} · {self.dimension} {self.normalisation}"

    def cut(self, dimension: int) -> "SpaceKey":
        """The space of the first `dimension` coordinates, normalised again."""
        if not 1 <= dimension <= self.dimension:
            raise SpaceError(f"{self}: cannot be cut to {dimension} dimensions; choose 1 to {self.dimension}")
        return replace(self, dimension=dimension)


def same_space(actual: SpaceKey, expected: SpaceKey, place: str) -> None:
    """Raises SpaceError with both keys when they differ; `place` names the file or object in the message."""
    if actual != expected:
        raise SpaceError(
            f"{place}: vectors of two spaces cannot be compared.\n  found: {actual}\n  expected: {expected}"
        )


@dataclass(frozen=True, order=True)
class Failure:
    """A part that could not be read: row of its content, position of the part in the content, and reason."""

    row: int
    part: int
    reason: str


@dataclass(frozen=True)
class Embedded:
    """Vectors of n contents in one space.

    vectors: (n, d) float32, unit rows; a row is zeros where `present` is False. present: (n,) bool, False if a
    content has no part to embed or none could be read. failures: the parts that could not be read.
    """

    space: SpaceKey
    vectors: Floats
    present: Bools
    failures: tuple[Failure, ...] = ()


def absent(space: SpaceKey, n: int) -> Embedded:
    """The result for n contents that have no part to embed."""
    return Embedded(space, np.zeros((n, space.dimension), dtype=np.float32), np.zeros(n, dtype=np.bool_))


class Encoder(Protocol):
    """Embeds contents as unit vectors of one space."""

    @property
    def modalities(self) -> frozenset[Modality]:
        """The modalities that it reads; parts of other modalities are skipped."""
        ...

    @property
    def reader(self) -> str:
        """Model and settings that read the content, if the space does not name them; "" otherwise.

        Only an encoder that maps into the space of another one has it, e.g. speech recognition before a text model.
        """
        ...

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of its vectors."""
        ...

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """One vector for each content, in the same order; `progress` gets the number of contents of each step."""
        ...


def unit(vectors: Floats) -> Floats:
    """Rows (n, d) scaled to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return out


def mean_of_parts(space: SpaceKey, sums: Floats, failures: Iterable[Failure]) -> Embedded:
    """Embedded contents from the sums (n, d) of the unit vectors of their parts; a zero sum is an absent content."""
    return Embedded(space, unit(sums), np.asarray(sums.any(axis=1)), tuple(sorted(failures)))


def cut(embedded: Embedded, dimension: int) -> Embedded:
    """The first `dimension` coordinates, normalised again: Matryoshka (Kusupati et al. 2022, arXiv 2205.13147).

    Raises SpaceError when the space has fewer dimensions.
    """
    space = embedded.space.cut(dimension)
    return replace(embedded, space=space, vectors=unit(embedded.vectors[:, :dimension]))
