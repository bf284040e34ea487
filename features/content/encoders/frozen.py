"""Embeds media by a frozen model of one modality: workers decode files while the model computes."""

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
"""k arrays to vectors (k, d); a row is zeros if its array has nothing to embed, e.g. silence."""


THREADS = int(os.environ.get("OMP_NUM_THREADS", "0").partition(",")[0]) or len(os.sched_getaffinity(0))
"""Number of batches that are computed in parallel."""

_POOL = ThreadPoolExecutor(THREADS, "model")


@dataclass(frozen=True)
class Media:
    """The worker pool and the limits with which pictures, sounds and videos of contents are decoded and embedded."""

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
        """Unit mean of the unit vectors of the parts of each content in the given modalities; see `sum`."""
        sums = self.sum(contents, modalities, prepare, forward, space.dimension, batch=batch, progress=progress)
        return mean_of_parts(space, *sums)

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
        """Sums (n, dimension) of one unit vector for each part, and the parts that could not be read.

        prepare returns the arrays of one part along its first axis: frames, or one segment of sound. It returns no
        array for a part without such data, e.g. a video without sound. The vector of a part is the unit mean of the
        unit vectors of its arrays. batch: number of arrays in one forward pass.
        """
        sums = np.zeros((len(contents), dimension), dtype=np.float32)
        failures: list[Failure] = []
        media_parts: list[tuple[int, int, Part]] = []
        sources: list[Source] = []
        for row, content in enumerate(contents):
            for at, part in readable(content, modalities, self.limits):
                if isinstance(part, ContentError):
                    failures.append(Failure(row, at, str(part)))
                elif not isinstance(part, Text):
                    media_parts.append((row, at, part))
                    sources.append(part.source)
        reported = 0  # rows that `progress` has counted
        pending: list[_PartArray] = []
        model = _Model(sums, forward)
        decoded = self.decoders.map(prepare, sources, self.limits, ahead=2 * batch)
        for (row, at, part), result in zip(media_parts, decoded, strict=True):
            if isinstance(result, ContentError):
                failures.append(Failure(row, at, str(result)))
                continue
            arrays = [array for array in result if array is not None]
            if not arrays and part.modality != "video":
                failures.append(Failure(row, at, "the file has nothing to see or hear"))
            pending += [_PartArray(array, row, i == len(arrays)) for i, array in enumerate(arrays, 1)]
            while len(pending) >= batch:
                model.add(pending[:batch])
                del pending[:batch]
            if progress and row > reported:
                progress(row - reported)
                reported = row
        if pending:
            model.add(pending)
        model.finish()
        if progress:
            progress(len(contents) - reported)
        return sums, failures


class MediaEncoder(ABC):
    """Base of the encoders of pictures or sounds; a subclass adds its key, its `prepare` and its forward pass.

    batch: number of arrays in one forward pass; prepare: a function of a module, since workers unpickle it.
    """

    key: SpaceKey
    modalities: frozenset[Modality]
    reader = ""
    batch: int
    prepare: Prepare

    def __init__(self, media: Media) -> None:
        """The model is loaded at its first use."""
        self._media = media
        self._lock = Lock()  # several batches may load the model at the same time

    def space(self, task: Task = "document") -> SpaceKey:
        """The same space for every task."""
        return self.key

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """Unit mean of the vectors of the media parts of each content."""
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
        """k arrays to vectors (k, d); a row is zeros if its array has nothing to embed."""


class _PartArray(NamedTuple):
    """One array of a part of the content in a row. Arrays of a part are consecutive; `last` marks the last one."""

    array: Array
    row: int
    last: bool


class _Model:
    """Runs batches through a model: one batch for each core in parallel, each on one thread.

    A single batch on all cores would wait for the slowest core, and some cores are busy with decoding.
    """

    def __init__(self, sums: Floats, forward: Forward) -> None:
        self._sums, self._forward = sums, forward
        self._partial = np.zeros((1, sums.shape[1]), dtype=np.float32)  # sum of an incomplete part
        self._in_flight: deque[tuple[list[_PartArray], Future[Floats]]] = deque()

    def add(self, batch: list[_PartArray]) -> None:
        if len(self._in_flight) > THREADS:  # one batch is queued, so that no thread is idle
            self._collect()
        self._in_flight.append((batch, _POOL.submit(self._forward, [item.array for item in batch])))

    def finish(self) -> None:
        while self._in_flight:
            self._collect()

    def _collect(self) -> None:
        batch, future = self._in_flight.popleft()
        last = np.flatnonzero([item.last for item in batch])  # (p,): last array of each part that ends in the batch
        starts = np.append(0, last + 1)
        starts = starts[starts < len(batch)]  # (p,) or (p + 1,) if a part continues in the next batch
        parts = np.add.reduceat(unit(future.result()), starts)  # (len(starts), d)
        parts[0] += self._partial[0]
        self._partial[0] = parts[-1] if len(starts) > len(last) else 0
        # sums[row] += unit(part): each part has weight 1, whatever the number of its frames
        np.add.at(self._sums, [batch[at].row for at in last], unit(parts[: len(last)]))
