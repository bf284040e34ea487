"""How media are collected into batches: order, weights, progress and parts without data, with decoded arrays."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from features.content.encoders.frozen import Media
from features.content.parts import Audio, Content, Image, Limits, Modality, Text, Video
from features.errors import ContentError

MEDIA: frozenset[Modality] = frozenset({"image", "audio", "video"})
PREPARE: Any = "prepare"


class Decoded:
    """Decoders whose sources are the names of prepared results."""

    def __init__(self, **results):
        self.results, self.asked = results, []

    def map(self, prepare, sources, limits, *, ahead):
        self.asked.append((prepare, limits, ahead))
        for source in sources:
            yield self.results[source.decode()]


def vector(x, y):
    return np.array([x, y], np.float32)


def summed(decoders, contents, batch=2, **more):
    """(sums, failures, sizes of the batches)"""
    batches = []

    def forward(arrays):
        batches.append(len(arrays))
        return np.stack(arrays)

    media = Media(decoders, Limits())
    sums, failures = media.sum(contents, MEDIA, PREPARE, forward, 2, batch=batch, **more)
    return sums, [(f.row, f.part, f.reason) for f in failures], batches


def test_batches_are_full_but_the_last_and_a_part_is_the_unit_mean_of_its_arrays():
    decoders = Decoded(a=(vector(2, 0),), b=(vector(0, 1), vector(3, 0), vector(0, 4)), c=(vector(0, 5),))
    contents = [Content.of(Image(b"a")), Content.of(Text("x"), Video(b"b"), Image(b"c")), Content()]
    sums, failures, batches = summed(decoders, contents)
    length = (1 + 4) ** 0.5  # (0, 1) + (1, 0) + (0, 1)
    np.testing.assert_allclose(sums, [[1, 0], [1 / length, 2 / length + 1], [0, 0]], rtol=1e-6)
    assert (failures, batches) == ([], [2, 2, 1])
    assert decoders.asked == [("prepare", Limits(), 4)]  # twice the batch is decoded ahead


def test_a_file_without_data_is_a_failure_unless_it_is_a_video():
    decoders = Decoded(empty=(None,), sound=(None, vector(0, 1)), broken=ContentError("no"))
    contents = [
        Content.of(Video(b"empty"), Image(b"empty"), Audio(b"empty")),
        Content.of(Video(b"sound"), Image(b"broken")),
    ]
    sums, failures, batches = summed(decoders, contents)
    nothing = "the file has nothing to see or hear"
    assert failures == [(0, 1, nothing), (0, 2, nothing), (1, 1, "no")]
    np.testing.assert_array_equal(sums, [[0, 0], [0, 1]])
    assert batches == [1]


def test_parts_beyond_the_limits_are_failures_and_are_not_decoded():
    decoders: Any = Decoded(a=(vector(1, 0),))
    media = Media(decoders, Limits(parts=1))
    contents = [Content.of(Image(b"a"), Image(b"never decoded"))]
    sums, failures = media.sum(contents, MEDIA, PREPARE, np.stack, 2, batch=2)
    assert [(f.row, f.part) for f in failures] == [(0, 1)]
    assert sums.tolist() == [[1, 0]]


def test_progress_counts_the_contents_that_are_decoded():
    decoders = Decoded(a=(vector(1, 0),))
    steps: list[int] = []
    one = Content.of(Image(b"a"))
    summed(decoders, [one, Content(), one, Content.of(Image(b"a"), Image(b"a")), Content()], progress=steps.append)
    assert steps == [2, 1, 2]  # when the third and the fourth content begin, and at the end
    steps.clear()
    summed(decoders, [one], progress=steps.append)
    assert steps == [1]
    steps.clear()
    summed(SimpleNamespace(map=lambda *_, **__: iter(())), [Content(), Content()], progress=steps.append)
    assert steps == [2]
