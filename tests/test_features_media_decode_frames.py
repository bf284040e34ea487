"""Frames of videos: what is refused before a frame is decoded, and the timetable of a stream."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import media
import numpy as np
import pytest

from features.content.media import decode as module
from features.content.media.decode import decode_video
from features.content.parts import Limits
from features.errors import ContentError

STREAM: Any = SimpleNamespace(time_base=Fraction(1, 10))


def packets(*times, corrupt=(), keys=(0,)):
    """Packets at times in tenths of a second, None: without a time."""
    return [SimpleNamespace(pts=time, is_corrupt=time in corrupt, is_keyframe=time in keys) for time in times]


def timetable(*given, limits=None):
    container: Any = SimpleNamespace(demux=lambda stream: iter(given))
    return module._timetable(container, STREAM, limits or Limits())


def test_frames_that_are_too_large_are_refused_before_the_packets_are_read(monkeypatch):
    monkeypatch.setattr(module, "_timetable", lambda *_: pytest.fail("the packets are read"))
    width, height = 64, 48
    with pytest.raises(ContentError, match=rf"frames of {width} x {height} pixels, at most 3,071 are accepted"):
        decode_video(media.video([10]), Limits(pixels=3_071), 1, 32, 8_000, 1.0)


def test_the_decoder_has_one_thread_and_the_limit_of_pixels(monkeypatch):
    seen = []
    real = module._timetable

    def recorded(container, stream, limits):
        context = stream.codec_context
        seen.append((dict(context.options), context.thread_count, str(stream.thread_type)))
        return real(container, stream, limits)

    monkeypatch.setattr(module, "_timetable", recorded)
    frames, sound = decode_video(media.video([10, 200]), Limits(pixels=100_000), 2, 32, 8_000, 1.0)
    assert (len(frames), sound) == (2, None)
    ((options, threads, kind),) = seen
    assert options == {"max_pixels": "100000"}
    assert threads == 1
    assert kind.rpartition(".")[2] in ("NONE", "0")


def test_times_ascend_and_keyframes_are_among_them():
    given = packets(0, 30, 10, None, 20, keys=(0, 20))
    assert timetable(*given) == ([0, 10, 20, 30], [0, 20])
    assert timetable(*packets(5, 10, keys=())) == ([5, 10], [5])
    assert timetable(*packets(7, keys=(7,))) == ([7], [7])


def test_a_stream_without_a_frame_or_with_a_damaged_packet_is_refused():
    with pytest.raises(ContentError) as caught:
        timetable(*packets(None, None))
    assert str(caught.value) == (
        "a video without a single frame: it is damaged, or refers to another file, which is not opened"
    )
    with pytest.raises(ContentError, match="a video that is cut short or damaged"):
        timetable(*packets(0, 10, corrupt=(10,)))


def test_too_many_packets_are_refused(monkeypatch):
    assert module.MAX_PACKETS == 1_000_000
    monkeypatch.setattr(module, "MAX_PACKETS", 2)
    assert timetable(*packets(0, 10)) == ([0, 10], [0])
    with pytest.raises(ContentError, match="a video of more than 2 frames"):
        timetable(*packets(0, 10, 20))


def test_the_length_of_a_stream_is_that_between_its_frames():
    limits = Limits(seconds=2.0)
    assert timetable(*packets(100, 120), limits=limits) == ([100, 120], [100])
    with pytest.raises(ContentError, match=r"2 s long, at most 2 s are accepted"):
        timetable(*packets(100, 121), limits=limits)


class Frames:
    """A container whose frames are at times; `sought` are the times it was moved to."""

    def __init__(self, *times):
        self.times, self.sought, self.decoded = times, [], 0

    def seek(self, time, *, stream):
        self.sought.append(time)
        self.at = time

    def decode(self, stream):
        for time in self.times:
            if time is None or time >= self.at:
                self.decoded += 1
                yield SimpleNamespace(pts=time)


def frames_at(container, targets, keys):
    return [frame.pts for frame in module._seek_each(container, STREAM, targets, keys)]


def test_each_frame_is_decoded_from_the_keyframe_before_it():
    container = Frames(*range(0, 60, 2))
    assert frames_at(container, [4, 5, 41, 58], [0, 20, 40]) == [4, 6, 42, 58]
    assert container.sought == [0, 40]  # 4 and 5 are read in one go, and so are 41 and 58
    assert frames_at(Frames(*range(10, 60, 2)), [3], [10]) == [10]  # a target before the first keyframe
    assert frames_at(Frames(0, 2, 4), [50], [0]) == [4]  # the last frame there is
    with pytest.raises(ContentError, match="a video whose frames cannot be decoded"):
        frames_at(Frames(), [0], [0])


def test_at_most_100_frames_are_decoded_from_a_keyframe_on():
    container = Frames(*range(500))
    assert frames_at(container, [300], [0]) == [99]
    assert container.decoded == 100
    assert frames_at(Frames(*range(500)), [99], [0]) == [99]


def test_extreme_rates_and_amplitudes_of_sounds():
    assert (module.SAMPLE_RATES, module.MAX_AMPLITUDE) == ((1_000, 768_000), 1_000.0)
    loud = np.full((100, 1), 1_000.0, np.float32)
    assert len(module._mono([loud], 1_000, 1_000, 1.0)) == 100
    with pytest.raises(ContentError, match="beyond 1000 times full scale"):
        module._mono([loud * 1.001], 1_000, 1_000, 1.0)
    for rate in (999, 768_001):
        with pytest.raises(ContentError, match=rf"sampled at {rate:,} Hz; 1,000 to 768,000 Hz are accepted"):
            module._mono([loud], rate, 1_000, 1.0)
    with pytest.raises(ContentError, match="a sound without a single sample"):
        module._mono([], 1_000, 1_000, 1.0)
