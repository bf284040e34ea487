"""From contents to vectors by a model that reads one kind of thing: workers decode while the model computes."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np

from features.content import Content, Limits, Modality, Text
from features.decoders import Decoders
from features.errors import ContentError
from features.progress import Step
from features.spaces import Embedded, Failure, Floats, SpaceKey, Task, unit
from features.worker import Array, Prepare

Forward = Callable[[list[Array]], Floats]
"""k arrays of one shape to k vectors (k, d); a zero row where there was nothing to hear or see in one."""


THREADS = int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))
"""Batches computed at a time."""

_POOL = ThreadPoolExecutor(THREADS, "model")


@dataclass(frozen=True)
class Media:
    """Decodes the pictures, sounds and videos of contents: whose workers, within which limits."""

    decoders: Decoders
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
        """Unit mean of the unit vectors of all that a content has of those modalities.

        prepare gives the arrays (frames, or one stretch of sound) of one part, along its first axis; none where the
        part has nothing of the kind, as a video without sound. batch: arrays that the model takes at a time.
        """
        sums = np.zeros((len(contents), space.dimension), dtype=np.float32)
        failures: list[Failure] = []
        wanted: list[tuple[int, int]] = []
        sources = []
        for row, content in enumerate(contents):
            for at, part in enumerate(content.parts):
                if isinstance(part, Text) or part.modality not in modalities:
                    continue
                if at >= self.limits.parts:
                    failures.append(Failure(row, at, f"more than {self.limits.parts} parts in one content"))
                    continue
                wanted.append((row, at))
                sources.append(part.source)
        told = 0
        waiting: list[Piece] = []
        model = _Model(sums, forward)
        for (row, at), made in zip(
            wanted, self.decoders.map(prepare, sources, self.limits, ahead=2 * batch), strict=True
        ):
            if isinstance(made, ContentError):
                failures.append(Failure(row, at, str(made)))
                continue
            if not len(made) and contents[row].parts[at].modality != "video":
                failures.append(Failure(row, at, "nothing in it that is seen or heard"))
            waiting += [(row, len(made), array) for array in made if array is not None]
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
        return Embedded(space, unit(sums), np.abs(sums).sum(1) > 0, tuple(sorted(failures, key=_place)))


class MediaEncoder(ABC):
    """An encoder of pictures or sounds; what a model adds is its key, how it is prepared for, and its forward pass.

    batch: arrays that the model takes at a time; prepare: a function of its module, since workers run it.
    """

    key: SpaceKey
    modalities: frozenset[Modality]
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


Piece = tuple[int, int, Array]
"""Row of the content, arrays of the part, one of them."""


class _Model:
    """Batches through a model, as many at a time as there are cores, one thread each.

    A batch spread over all cores waits for the slowest of them, and one is decoding.
    """

    def __init__(self, sums: Floats, forward: Forward) -> None:
        self._sums, self._forward = sums, forward
        self._flying: deque[tuple[list[Piece], Future[Floats]]] = deque()

    def add(self, pieces: list[Piece]) -> None:
        if len(self._flying) > THREADS:  # one waits, so that no thread does
            self._land()
        self._flying.append((pieces, _POOL.submit(self._forward, [array for _, _, array in pieces])))

    def finish(self) -> None:
        while self._flying:
            self._land()

    def _land(self) -> None:
        pieces, future = self._flying.popleft()
        shares = np.array([1 / n for _, n, _ in pieces], dtype=np.float32)  # each part counts once, however long
        np.add.at(self._sums, [row for row, _, _ in pieces], unit(future.result()) * shares[:, None])


def _place(failure: Failure) -> tuple[int, int]:
    return failure.row, failure.part
