"""Vector spaces and what makes vectors of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from features.arrays import Bools, Floats
from features.content.parts import Content, Modality
from features.errors import SpaceError
from features.progress import Step

Task = Literal["document", "query", "similarity"]
"""What a content is embedded for. Documents and queries of one model meet each other; similarity is a space apart."""


@dataclass(frozen=True)
class SpaceKey:
    """Names a vector space: two vectors may be compared only if their keys are equal.

    model, revision: whose weights; dimension: length of a vector, after a Matryoshka cut where there is one;
    prompt: scheme of the task prompts, e.g. "retrieval"; preprocessing: what of the content is read and how;
    normalisation: "l2" for unit vectors.
    """

    model: str
    revision: str
    dimension: int
    prompt: str = ""
    preprocessing: str = ""
    normalisation: str = "l2"

    def __str__(self) -> str:
        told = [f"{self.model}@{self.revision}", *(t for t in (self.prompt, self.preprocessing) if t)]
        return f"{' · '.join(told)} · {self.dimension} {self.normalisation}"

    def cut(self, dimension: int) -> "SpaceKey":
        """The space of the first `dimension` coordinates, normalised anew."""
        if not 1 <= dimension <= self.dimension:
            raise SpaceError(f"{self}: cannot be cut to {dimension} dimensions; 1 to {self.dimension} can be had")
        return replace(self, dimension=dimension)


def same_space(have: SpaceKey, want: SpaceKey, place: str) -> None:
    """Raises SpaceError, printing both keys, when vectors of two spaces would meet at `place`."""
    if have != want:
        raise SpaceError(f"{place}: vectors of two spaces do not compare.\n  there: {have}\n  given: {want}")


@dataclass(frozen=True, order=True)
class Failure:
    """A part that could not be read: row of its content, place in it, and why."""

    row: int
    part: int
    reason: str


@dataclass(frozen=True)
class Embedded:
    """n contents in a space.

    vectors (n, d) float32: unit rows, zeros where present (n,) bool is False, since there was nothing to embed or
    nothing of it could be read; failures: parts that were left out.
    """

    space: SpaceKey
    vectors: Floats
    present: Bools
    failures: tuple[Failure, ...] = ()


def absent(space: SpaceKey, n: int) -> Embedded:
    """Of n contents that say nothing."""
    return Embedded(space, np.zeros((n, space.dimension), dtype=np.float32), np.zeros(n, dtype=np.bool_))


class Encoder(Protocol):
    """Contents to unit vectors of one space."""

    @property
    def modalities(self) -> frozenset[Modality]:
        """What it reads; parts of other kinds are passed over."""
        ...

    @property
    def reader(self) -> str:
        """Who reads, and how, where that is no part of the space: "" but for one that leads into another's space."""
        ...

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of its vectors."""
        ...

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """One vector for each content, in their order; progress gets how many each step has done."""
        ...


def unit(vectors: Floats) -> Floats:
    """Rows (n, d) of length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return out


def mean_of_parts(space: SpaceKey, sums: Floats, failures: Iterable[Failure]) -> Embedded:
    """Contents from the sums (n, d) of their parts' unit vectors; where a sum is zero nothing was there."""
    return Embedded(space, unit(sums), np.asarray(sums.any(axis=1)), tuple(sorted(failures)))


def cut(embedded: Embedded, dimension: int) -> Embedded:
    """The first `dimension` coordinates, normalised anew: Matryoshka (Kusupati et al. 2022, arXiv 2205.13147).

    Raises SpaceError when there are not so many.
    """
    space = embedded.space.cut(dimension)
    return replace(embedded, space=space, vectors=unit(embedded.vectors[:, :dimension]))
