"""Decodes the bytes of sounds and videos to arrays; limits are checked before anything is decoded.

Pictures are decoded in `features.content.media.images`. The libraries used here are large and written in C, and the
bytes may be hostile. Decode untrusted files in `features.content.media.decoder_pool`, which bounds memory and time.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import chain, count
from typing import Any, NoReturn

import av
import numpy as np
import soundfile
import soxr
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from features.arrays import Floats
from features.content.media.formats import SOUNDS, VIDEOS, expect, reading
from features.content.media.images import Pixels, scaled, spread
from features.content.parts import Limits
from features.errors import ContentError, describe_url

SAMPLE_RATES = (1_000, 768_000)
"""Accepted sampling rates in Hz, minimum and maximum: extreme ratios need extremely long resampling filters."""

MAX_AMPLITUDE = 1e3
"""Full scale is 1; samples beyond this value are rejected."""

MAX_FRAMES_FROM_KEYFRAME = 100
"""Maximum number of frames that are decoded from a keyframe to a target frame."""

MAX_PACKETS = 1_000_000
"""Maximum number of packets in the video stream of one file."""

_NOT_OPENED = ": it is damaged, or refers to another file, which is not opened"
_BLOCK = 2**18  # samples of all channels decoded at once
_DEMUXERS = {"webm": "matroska"}
_SANDBOX_OPTIONS = {
    "protocol_whitelist": "none",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,wav,flac,ogg,mp3",
    "enable_drefs": "0",
    "use_absolute_path": "0",
    "threads": "1",
}
"""FFmpeg reads only the bytes that it is given: no other file, no URL, no playlist, no external media data."""

av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)


def decode_audio(data: bytes, limits: Limits, rate: int, seconds: float) -> Floats:
    """The first `seconds` of a sound (n,) float32 at `rate` Hz, the mean of its channels, full scale at 1.

    The sound is decoded block by block: blocks after `seconds` are not decoded, whatever the header says. Raises
    ContentError when the file is not a sound, is damaged, states a length beyond `limits.seconds`, has no samples, or
    has samples that are not finite or beyond MAX_AMPLITUDE.
    """
    kind = expect(data, SOUNDS, "sound")
    with reading(kind):
        if kind not in VIDEOS:
            with suppress(soundfile.LibsndfileError), soundfile.SoundFile(BytesIO(data)) as file:
                if file.frames < 2**62:  # larger values: the length is unknown
                    _check_length(file.frames / file.samplerate, limits)
                size = max(1, _BLOCK // file.channels)
                blocks = (file.read(size, dtype="float32", always_2d=True) for _ in count())
                return _mono(blocks, file.samplerate, rate, seconds)
        with _open(data, kind) as container:
            _check_container(container, limits)
            sound = _sound(container, rate, seconds)
    if sound is None:
        raise ContentError(f"the {kind} has no sound")
    return sound


def decode_video(
    data: bytes, limits: Limits, frames: int, side: int, rate: int, seconds: float
) -> tuple[Pixels, Floats | None]:
    """Up to `frames` evenly spread frames (f, h, w, 3) uint8 RGB, and the sound as `decode_audio` gives it.

    Frames whose shorter side exceeds `side` pixels are scaled down to it. The work does not grow with the length of
    the video: each frame is decoded from the keyframe before it, and if that is more than 100 frames earlier, a frame
    before the target is taken. Returns (0, side, side, 3) for a file without pictures and None for a file without
    sound. Raises ContentError when the file is not a video, is damaged, is longer or larger than the limits allow, or
    has neither pictures nor sound.
    """
    kind = expect(data, VIDEOS, "video")
    with reading(kind):
        with _open(data, kind) as container:
            _check_container(container, limits)
            frame_array = _frames(container, limits, frames, side)
        with _open(data, kind) as container:
            sound = _sound(container, rate, seconds)
    if not len(frame_array) and sound is None:
        raise ContentError(f"the {kind} has neither pictures nor sound")
    return frame_array, sound


def _refuse(url: str, *_: Any) -> NoReturn:
    raise ContentError(f"the file refers to another file, {describe_url(url)[:200]!r}, which is not opened")


def _open(data: bytes, kind: str) -> InputContainer:
    return av.open(
        BytesIO(data),
        mode="r",
        format=_DEMUXERS.get(kind, kind),
        options=_SANDBOX_OPTIONS,
        metadata_errors="replace",
        io_open=_refuse,
    )


def _check_length(length: float, limits: Limits) -> None:
    if length > limits.seconds:
        raise ContentError(f"{length:,.0f} s long, at most {limits.seconds:,.0f} s are accepted (limits.seconds)")


def _check_container(container: InputContainer, limits: Limits) -> None:
    lengths = [s.duration * s.time_base for s in container.streams if s.duration and s.time_base]
    _check_length(max([(container.duration or 0) / av.time_base, *map(float, lengths)]), limits)


def _mono(blocks: Iterable[Floats], source_rate: int, rate: int, seconds: float) -> Floats:
    """Blocks (m, channels) at `source_rate` Hz to (n,) at `rate` Hz; reads no block after `seconds`."""
    lowest, highest = SAMPLE_RATES
    if not lowest <= source_rate <= highest:
        raise ContentError(f"a sound sampled at {source_rate:,} Hz; {lowest:,} to {highest:,} Hz are accepted")
    total = remaining = math.ceil(seconds * source_rate)
    resampler = soxr.ResampleStream(source_rate, rate, 1, dtype="float32")
    chunks = []
    for block in blocks:
        if not len(block) or remaining <= 0:
            break
        block = block[:remaining]
        remaining -= len(block)
        if not (np.abs(block) <= MAX_AMPLITUDE).all():  # NaN fails the comparison too
            raise ContentError(
                f"a sound with samples that are not numbers or beyond {MAX_AMPLITUDE:g} times full scale"
            )
        mono = block.mean(axis=1, dtype=np.float32)
        chunks.append(resampler.resample_chunk(mono))
    if remaining == total:
        raise ContentError("a sound without a single sample")
    chunks.append(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    out = np.concatenate(chunks)[: max(1, round(seconds * rate))]
    return out if len(out) else mono[:1]  # a sound shorter than one sample at that rate


def _sound(container: InputContainer, rate: int, seconds: float) -> Floats | None:
    if not container.streams.audio:
        return None
    to_float = av.AudioResampler(format="fltp")
    frames = (f for raw in container.decode(container.streams.audio[0]) for f in to_float.resample(raw))
    if (first := next(frames, None)) is None:
        raise ContentError(f"a sound without a single sample{_NOT_OPENED}")
    return _mono(
        (np.asarray(f.to_ndarray(), np.float32).T for f in chain([first], frames)), first.sample_rate, rate, seconds
    )


def _frames(container: InputContainer, limits: Limits, max_frames: int, side: int) -> Pixels:
    """(f, h, w, 3), or (0, side, side, 3) if the file has no video stream; a cover picture does not count as one."""
    stream = next((s for s in container.streams.video if not s.disposition & s.disposition.attached_pic), None)
    if stream is None:
        return np.zeros((0, side, side, 3), dtype=np.uint8)
    if stream.codec_context is None:
        raise ContentError("a video with a codec that is not supported")
    _check_pixels(stream.width, stream.height, limits)
    stream.codec_context.options = {"max_pixels": str(limits.pixels)}
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    times, keys = _timetable(container, stream, limits)
    frames: list[Pixels] = []
    for frame in _seek_each(container, stream, [times[at] for at in spread(len(times), max_frames)], keys):
        _check_pixels(frame.width, frame.height, limits)
        if not frames:
            width, height = scaled(frame.width, frame.height, side)
        rgb = frame.to_ndarray(format="rgb24", width=width, height=height)
        frames.append(np.rot90(rgb, round(frame.rotation / 90)))
    return np.stack(frames)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise ContentError(
            f"video frames of {width} x {height} pixels, at most {limits.pixels:,} are accepted (limits.pixels)"
        )


def _timetable(container: InputContainer, stream: VideoStream, limits: Limits) -> tuple[list[int], list[int]]:
    """Ascending times of all frames and of the keyframes, in units of the stream; reads packets, decodes nothing."""
    times, keys = [], []
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ContentError("a video that is cut short or damaged")
        if packet.pts is not None:
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        if len(times) > MAX_PACKETS:
            raise ContentError(f"a video of more than {MAX_PACKETS:,} frames")
    if not times:
        raise ContentError(f"a video without a single frame{_NOT_OPENED}")
    times.sort()
    _check_length(float((times[-1] - times[0]) * (stream.time_base or 0)), limits)
    return times, sorted(keys) or times[:1]


def _seek_each(
    container: InputContainer, stream: VideoStream, targets: list[int], keys: list[int]
) -> Iterator[VideoFrame]:
    """The frame at each of the target times, which ascend."""
    frame, decoded = None, iter(())  # type: tuple[VideoFrame | None, Iterator[VideoFrame]]
    for time in targets:
        key = keys[max(0, bisect_right(keys, time) - 1)]
        if frame is None or frame.pts is None or key > frame.pts:
            container.seek(key, stream=stream)
            frame, decoded = None, container.decode(stream)
        for _ in range(MAX_FRAMES_FROM_KEYFRAME):
            if frame is not None and (frame.pts is None or frame.pts >= time):
                break
            if (following := next(decoded, None)) is None:
                break
            frame = following
        if frame is None:
            raise ContentError("a video whose frames cannot be decoded")
        yield frame
