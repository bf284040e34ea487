"""Media files for tests: valid ones of known content, and hostile ones."""

import gc
import os
import resource
import signal
import struct
import time
import zlib
from fractions import Fraction
from io import BytesIO
from multiprocessing.connection import Connection
from typing import cast

import av
import numpy as np
import soundfile
from PIL import Image

from features.content.media.fetch import read
from features.errors import ContentError

QUADRANTS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], dtype=np.uint8)
"""Red, green; blue, yellow."""


def quadrants(height=64, width=96):
    """Pixels (h, w, 3) of red, green, blue and yellow quarters."""
    return QUADRANTS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def picture(pixels=None, form="JPEG", mode=None, **options):
    """A picture file of pixels (h, w, ...), converted to a Pillow mode."""
    image = Image.fromarray(quadrants() if pixels is None else pixels)
    if mode:
        image = image.convert(mode)
    out = BytesIO()
    image.save(out, form, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}) | options)
    return out.getvalue()


def animation(frames, form="GIF", **options):
    """An animated picture of frames (h, w, 3)."""
    images = [Image.fromarray(f) for f in frames]
    out = BytesIO()
    images[0].save(out, form, save_all=True, append_images=images[1:], **options)
    return out.getvalue()


def png(width, height, depth=8, colour=0, rows=None, extra=b""):
    """A PNG, written without Pillow; without `rows` it is black, and its pixels are never all in memory."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    packer, body = zlib.compressobj(9), bytearray()
    for row in [bytes(-(-width * depth * channels // 8))] * height if rows is None else rows:
        body += packer.compress(b"\0" + row)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), extra, chunk(b"IDAT", bytes(body + packer.flush())), chunk(b"IEND", b"")]
    )


def endless_gif(frames, size=(1, 1), last_size=None):
    """A GIF of many one-pixel frames; the last frame has the size `last_size`."""
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + bytes(6)

    def frame(width, height):
        return b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"

    return head + frame(1, 1) * (frames - 1) + frame(*(last_size or (1, 1))) + b"\x3b"


def sine(rate=16_000, seconds=1.0, hertz=440.0):
    """A sine wave (n,) float32 at half of full scale."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def sound(samples=None, rate=16_000, form="WAV", subtype=None):
    """A sound file of samples (n,) or (n, channels)."""
    out = BytesIO()
    soundfile.write(out, sine(rate) if samples is None else samples, rate, format=form, subtype=subtype)
    return out.getvalue()


def silent_flac(seconds, rate=8_000):
    """A small file of a long silence."""
    out = BytesIO()
    with soundfile.SoundFile(out, "w", rate, 1, format="FLAC") as file:
        for _ in range(seconds // 60):
            file.write(np.zeros(rate * 60, dtype=np.int16))
    return out.getvalue()


def rotated_video(pixels, degrees):
    """An MP4 of three equal frames (h, w, 3) with a display rotation."""
    out = BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def sound_with_cover(samples, rate=16_000):
    """An MP4 of a sound with a cover picture."""
    out = BytesIO()
    with av.open(out, "w", format="mp4") as container:
        sound_stream = container.add_stream("aac", rate=rate)
        cover_stream = container.add_stream("mjpeg", rate=1)
        cover_stream.height, cover_stream.width = quadrants().shape[:2]
        cover_stream.pix_fmt = "yuvj420p"
        cover_stream.disposition = av.stream.Disposition.attached_pic
        cover_frame = av.VideoFrame.from_ndarray(quadrants(), "rgb24").reformat(format="yuvj420p")
        sound_frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        cover_frame.pts, sound_frame.pts, sound_frame.sample_rate = 0, 0, rate
        for packet in [
            *sound_stream.encode(sound_frame),
            *sound_stream.encode(),
            *cover_stream.encode(cover_frame),
            *cover_stream.encode(),
        ]:
            container.mux(packet)
    return out.getvalue()


def read_or_die(source, limits):
    """Reads a source; the source b"die" kills the process that reads it."""
    data = read(source, limits)
    if data == b"die":
        os.kill(os.getpid(), signal.SIGKILL)
    return data


def run_command(data, limits):
    """Carries out a command in a worker; other data are returned as an array."""
    command, _, argument = data.decode().partition(" ")
    if command == "sleep":
        time.sleep(float(argument))
    elif command == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif command == "eat":
        return np.ones(int(argument), dtype=np.uint8)
    elif command == "fail":
        raise ContentError(argument)
    elif command == "stumble":
        raise KeyError(argument)
    elif command == "stall":  # a response that starts and never ends
        for pipe in (o for o in gc.get_objects() if isinstance(o, Connection)):
            os.write(pipe.fileno(), struct.pack(">i", 50) + b"{")
        time.sleep(60)
    elif command == "shout":
        os.write(2, argument.encode())
    elif command == "words":
        return np.array(["words"])
    elif command == "several":
        return np.array(7), None, np.zeros((0, 2), ">i4"), np.arange(6, dtype=">f4").reshape(2, 3).T
    elif command == "self":
        core, address_space = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_CORE, resource.RLIMIT_AS))
        return np.array([core, address_space, os.getpid(), int(os.environ["OMP_NUM_THREADS"])])
    return np.frombuffer(data, dtype=np.uint8)


def video(levels=(), samples=None, form="mp4", size=(64, 48), fps=10, times=None, gop=12, rate=16_000, options=None):
    """A video with one grey frame for each level, at times in units of 1/fps s, and samples (n,) at `rate` Hz."""
    codecs = {"mp4": ("mpeg4", "aac"), "webm": ("libvpx", "libopus")}[form]
    out = BytesIO()
    with av.open(out, "w", format=form, options=options or {}) as container:
        picture_stream = sound_stream = None
        if len(levels):
            picture_stream = cast(av.VideoStream, container.add_stream(codecs[0], rate=fps))
        if samples is not None:
            sound_stream = cast(av.AudioStream, container.add_stream(codecs[1], rate=rate))
            sound_stream.codec_context.layout = "mono"
        if picture_stream is not None:
            picture_stream.width, picture_stream.height = size
            picture_stream.pix_fmt = "yuv420p"
            picture_stream.codec_context.gop_size = gop
            picture_stream.codec_context.time_base = Fraction(1, fps)
            picture_stream.bit_rate = 500_000
            for at, level in enumerate(levels):
                frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), level, dtype=np.uint8), "rgb24")
                frame.pts, frame.time_base = (times[at] if times else at), Fraction(1, fps)
                container.mux(picture_stream.encode(frame))
            container.mux(picture_stream.encode())
        if sound_stream is not None:
            sound_frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
            sound_frame.sample_rate, sound_frame.pts = rate, 0
            container.mux(sound_stream.encode(sound_frame))
            container.mux(sound_stream.encode())
    return out.getvalue()


def with_external_data(mp4, kind, location):
    """The MP4 with a reference to its samples in another location: a path (kind b"alis") or a URL (kind b"url ")."""
    local_reference = struct.pack(">I4sI", 12, b"url ", 1)
    assert local_reference in mp4
    path = location.encode()
    record = path + b"\0"
    if kind == b"alis":
        # QuickTime's alias record: 150 bytes with an unknown number of directory levels between the files (-1), then
        # tagged items, of which 2 and 18 are paths from the root
        record = bytes(10) + b"\x01v".ljust(28, b"\0") + bytes(12) + b"\x01x".ljust(64, b"\0")
        record += bytes(16) + struct.pack(">hh", -1, -1) + bytes(16)
        for item in (2, 18):
            record += struct.pack(">hh", item, len(path)) + path + bytes(len(path) % 2)
        record += struct.pack(">hh", -1, 0)
    return _replaced(mp4, local_reference, struct.pack(">I4sI", 12 + len(record), kind, 0) + record)


def _replaced(mp4, old, new):
    """The MP4 with every copy of a leaf box replaced and the sizes of the enclosing boxes corrected."""
    containers = {b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"}

    def boxes(data):
        out, at = bytearray(), 0
        while at < len(data):
            size, name = struct.unpack_from(">I4s", data, at)
            box = data[at : at + size]
            if box == old:
                box = new
            elif name in containers:
                skip = 16 if name == b"dref" else 8
                inner = boxes(box[skip:])
                box = struct.pack(">I", len(inner) + skip) + box[4:skip] + inner
            out += box
            at += size
        return bytes(out)

    return boxes(mp4)
