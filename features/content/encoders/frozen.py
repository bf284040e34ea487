"""From contents to vectors by a model that reads one kind of thing: workers decode while the model computes."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import numpy as np

from features.arrays import Floats
from features.content.media.decoder_pool import DecoderPool
from features.content.media.worker import Array, Prepare
from features.content.parts import Content, Limits, Modality, Part, Source, Text, readable
from features.content.spaces import Embedded, Failure, SpaceKey, Task, mean_of_parts, unit
from features.errors import ContentError
from features.progress import Step

Forward = Callable[[list[Array]], Floats]
"""k arrays to k vectors (k, d); a zero row where there was nothing to hear or see in one."""


THREADS = int(os.environ.get("OMP_NUM_THREADS", "0").partition(",")[0]) or len(os.sched_getaffinity(0))
"""Batches computed at a time."""

_POOL = ThreadPoolExecutor(THREADS, "model")


@dataclass(frozen=True)
class Media:
    """Decodes the pictures, sounds and videos of contents: whose workers, within which limits."""

    decoders: DecoderPool
    limits: Limits

    def embed(
        self,
        contents: Sequence[Content],
        modalities: frozenset[Modality],
        prepare: Prepare,
        forward: Forward,
        space: SpaceKey,
        *,
        batch: int,
        progress: Step | None = None,
    ) -> Embedded:
        """Unit mean of the vectors of all that a content has of those modalities; see `sum`."""
        made = self.sum(contents, modalities, prepare, forward, space.dimension, batch=batch, progress=progress)
        return mean_of_parts(space, *made)

    def sum(
        self,
        contents: Sequence[Content],
        modalities: frozenset[Modality],
        prepare: Prepare,
        forward: Forward,
        dimension: int,
        *,
        batch: int,
        progress: Step | None = None,
    ) -> tuple[Floats, list[Failure]]:
        """Sum (n, dimension) of one unit vector for each part, and the parts that cannot be read.

        prepare gives the arrays (frames, or one stretch of sound) of one part, along its first axis; none where the
        part has nothing of the kind, as a video without sound. A part is the unit mean of their unit vectors.
        batch: arrays that the model takes at a time.
        """
        sums = np.zeros((len(contents), dimension), dtype=np.float32)
        failures: list[Failure] = []
        wanted: list[tuple[int, int, Part]] = []
        sources: list[Source] = []
        for row, content in enumerate(contents):
            for at, part in readable(content, modalities, self.limits):
                if isinstance(part, ContentError):
                    failures.append(Failure(row, at, str(part)))
                elif not isinstance(part, Text):
                    wanted.append((row, at, part))
                    sources.append(part.source)
        told = 0
        waiting: list[_Piece] = []
        model = _Model(sums, forward)
        decoded = self.decoders.map(prepare, sources, self.limits, ahead=2 * batch)
        for (row, at, part), made in zip(wanted, decoded, strict=True):
            if isinstance(made, ContentError):
                failures.append(Failure(row, at, str(made)))
                continue
            arrays = [array for array in made if array is not None]
            if not arrays and part.modality != "video":
                failures.append(Failure(row, at, "nothing in it that is seen or heard"))
            waiting += [_Piece(array, row, i == len(arrays)) for i, array in enumerate(arrays, 1)]
            while len(waiting) >= batch:
                model.add(waiting[:batch])
                del waiting[:batch]
            if progress and row > told:
                progress(row - told)
                told = row
        if waiting:
            model.add(waiting)
        model.finish()
        if progress:
            progress(len(contents) - told)
        return sums, failures


class MediaEncoder(ABC):
    """An encoder of pictures or sounds; what a model adds is its key, how it is prepared for, and its forward pass.

    batch: arrays that the model takes at a time; prepare: a function of its module, since workers run it.
    """

    key: SpaceKey
    modalities: frozenset[Modality]
    reader = ""
    batch: int
    prepare: Prepare

    def __init__(self, media: Media) -> None:
        """Nothing is loaded before it is needed."""
        self._media = media
        self._lock = Lock()  # several batches may want the model first

    def space(self, task: Task = "document") -> SpaceKey:
        """One space, whatever the task."""
        return self.key

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """Unit mean of the vectors of all that a content has to see or hear."""
        return self._media.embed(
            contents,
            self.modalities,
            type(self).prepare,
            self.forward,
            self.space(task),
            batch=self.batch,
            progress=progress,
        )

    @abstractmethod
    def forward(self, arrays: list[Array]) -> Floats:
        """k arrays to vectors (k, d); zeros where there is nothing to see or hear in one."""


class _Piece(NamedTuple):
    """An array of a part of the content of a row, the last one or not; those of a part follow each other."""

    array: Array
    row: int
    last: bool


class _Model:
    """Batches through a model, as many at a time as there are cores, one thread each.

    A batch spread over all cores waits for the slowest of them, and one is decoding.
    """

    def __init__(self, sums: Floats, forward: Forward) -> None:
        self._sums, self._forward = sums, forward
        self._part = np.zeros((1, sums.shape[1]), dtype=np.float32)
        self._flying: deque[tuple[list[_Piece], Future[Floats]]] = deque()

    def add(self, pieces: list[_Piece]) -> None:
        if len(self._flying) > THREADS:  # one waits, so that no thread does
            self._land()
        self._flying.append((pieces, _POOL.submit(self._forward, [piece.array for piece in pieces])))

    def finish(self) -> None:
        while self._flying:
            self._land()

    def _land(self) -> None:
        pieces, future = self._flying.popleft()
        last = np.flatnonzero([piece.last for piece in pieces])
        starts = np.append(0, last + 1)
        starts = starts[starts < len(pieces)]
        parts = np.add.reduceat(unit(future.result()), starts)
        parts[0] += self._part[0]
        self._part[0] = parts[-1] if len(starts) > len(last) else 0  # one that goes on in the next batch
        # each part counts once, however many frames it has and however much they differ
        np.add.at(self._sums, [pieces[at].row for at in last], unit(parts[: len(last)]))
