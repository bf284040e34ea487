"""Decoding of media: correct values from valid files, clear errors and bounded work for hostile ones."""

import socket
import struct
import tracemalloc
from contextlib import suppress
from io import BytesIO

import av
import media
import numpy as np
import pytest
import soundfile
from PIL import Image, ImageFile

from features.content.media.decode import decode_audio, decode_video
from features.content.media.formats import sniff
from features.content.media.images import decode_image, spread
from features.content.parts import Limits
from features.errors import ContentError

LIMITS = Limits()
CENTRES = (0, [16, 16, 48, 48], [24, 72, 24, 72])  # of the quarters in media.quadrants()
COLOURS = media.QUADRANTS.reshape(4, 3).astype(int)
GREYS = [[76] * 3, [150] * 3, [29] * 3, [226] * 3]  # ITU-R BT.601, as Pillow converts
VALID = {
    "jpeg": media.picture(),
    "png": media.picture(form="PNG"),
    "webp": media.picture(form="WEBP", lossless=True),
    "gif": media.picture(form="GIF"),
    "wav": media.sound(),
    "flac": media.sound(form="FLAC"),
    "ogg": media.sound(form="OGG"),
    "mp3": media.sound(form="MP3"),
    "mp4": media.video([10, 20], media.sine()),
    "webm": media.video([10, 20], media.sine(), "webm"),
}


def hear(data, rate=16_000, seconds=10.0, limits=LIMITS):
    return decode_audio(data, limits, rate, seconds)


def watch(data, frames=8, side=32, rate=16_000, seconds=10.0, limits=LIMITS):
    return decode_video(data, limits, frames, side, rate, seconds)


@pytest.mark.parametrize("kind", VALID)
def test_formats_are_recognised_by_their_first_bytes(kind):
    assert sniff(VALID[kind]) == kind


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<?xml version='1.0'?>\n<!-- x --><svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\xef\xbb\xbf  <!DOCTYPE html><html>", "an HTML page"),
        (b"<rss/>", "XML"),
        (b"%PDF-1.7", "a PDF"),
        (b"#EXTM3U\nhttp://127.0.0.1/x.ts", "a playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd", "a playlist"),
        (b"PK\x03\x04", "a zip"),
        (b"II*\x00", "a TIFF"),
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"\0\0\0\x18ftypavif", "an AVIF"),
        (b"RIFF\0\0\0\0AVI ", "unknown, starting with 52 49 46 46"),
        (b"RIFFftypmp42", "text"),
        (b"RF64ftyp\0\0\0\0", "unknown, starting with 52 46 36 34 66 74 79 70"),
        (b"\xff\xf1\x00\x80", "unknown"),  # AAC in ADTS
        (b"hello", "text"),
        (b"\x00\x01", "unknown, starting with 00 01"),
    ],
)
def test_unsupported_formats_are_named(data, message):
    for decode in (sniff, lambda d: decode_image(d, LIMITS), hear, watch):
        with pytest.raises(ContentError, match=message):
            decode(data)


def test_a_format_of_another_modality_is_rejected():
    with pytest.raises(ContentError, match="the file is wav, not a picture; supported formats: jpeg, png, webp, gif"):
        decode_image(VALID["wav"], LIMITS)
    with pytest.raises(ContentError, match="the file is png, not a sound"):
        hear(VALID["png"])
    with pytest.raises(ContentError, match="the file is mp3, not a video"):
        watch(VALID["mp3"])


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif"])
def test_pictures(kind):
    pixels = decode_image(VALID[kind], LIMITS)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 64, 96, 3)
    np.testing.assert_allclose(pixels[CENTRES].astype(int), COLOURS, atol=2)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (media.picture(form="JPEG", mode="CMYK"), COLOURS),
        (media.picture(form="JPEG", mode="L"), GREYS),
        (media.picture(form="PNG", mode="P"), COLOURS),
        (media.picture(form="PNG", mode="L"), GREYS),
        (media.picture(form="PNG", mode="LA"), GREYS),
        (media.picture(form="PNG", mode="RGBA"), COLOURS),
        (media.picture(np.uint16(media.quadrants()[..., 0]) * 257, "PNG"), [[255] * 3, [0] * 3, [0] * 3, [255] * 3]),
        (media.picture(media.quadrants()[..., 1] > 0, "PNG"), [[0] * 3, [255] * 3, [0] * 3, [255] * 3]),
    ],
    ids=["cmyk", "grey jpeg", "palette", "grey", "grey alpha", "alpha", "16 bit", "1 bit"],
)
def test_colours_are_correct(data, expected):
    np.testing.assert_allclose(decode_image(data, LIMITS)[CENTRES].astype(int), expected, atol=2)


def test_16_bits_and_transparency():
    assert decode_image(media.png(3, 1, 16, 0, [struct.pack(">3H", 65_535, 32_768, 257)]), LIMITS)[
        0, 0, :, 0
    ].tolist() == [
        255,
        128,
        1,
    ]
    assert decode_image(media.png(1, 1, 16, 2, [struct.pack(">3H", 65_535, 32_768, 0)]), LIMITS).tolist() == [
        [[[255, 128, 0]]]
    ]
    half_black = media.png(2, 1, 8, 4, [bytes([0, 128, 200, 0])])
    assert decode_image(half_black, LIMITS)[0, 0].tolist() == [[127] * 3, [255] * 3]
    clear_red = media.picture(form="PNG", mode="P", transparency=0)
    index = Image.open(BytesIO(clear_red)).getpixel((24, 16))
    clear_red = media.picture(form="PNG", mode="P", transparency=index)
    assert decode_image(clear_red, LIMITS)[CENTRES].tolist() == [[255] * 3, *COLOURS[1:].tolist()]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_set_upright_by_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {1: "rgby", 2: "grYb", 3: "ybgr", 4: "byrg", 5: "rbgy", 6: "bryg", 7: "ygbr", 8: "gyrb"}[orientation]
    colours = dict(zip("rgby", COLOURS.tolist(), strict=True))
    pixels = decode_image(media.picture(exif=exif), LIMITS, side=64)
    height, width = (64, 96) if orientation < 5 else (96, 64)
    assert pixels.shape == (1, height, width, 3)
    quarters = pixels[0, [height // 4] * 2 + [3 * height // 4] * 2, [width // 4, 3 * width // 4] * 2]
    np.testing.assert_allclose(quarters.astype(int), [colours[c] for c in upright.lower()], atol=2)


def test_damaged_exif_does_not_reject_a_picture():
    assert decode_image(media.picture(exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), LIMITS).shape == (1, 64, 96, 3)


@pytest.mark.parametrize(
    ("side", "shape"), [(None, (64, 96)), (64, (64, 96)), (16, (16, 24)), (7, (7, 10)), (100, (64, 96))]
)
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_shorter_side(kind, side, shape):
    pixels = decode_image(VALID[kind], LIMITS, side)
    assert pixels.shape == (1, *shape, 3)
    height, width = shape
    np.testing.assert_allclose(
        pixels[0, [height // 4, height - 1 - height // 4], [width // 4, width - 1 - width // 4]].astype(int),
        COLOURS[[0, 3]],
        atol=12,
    )


@pytest.mark.parametrize(
    ("side", "longest", "shape"),
    [(None, 48, (32, 48)), (None, 96, (64, 96)), (16, 48, (16, 24)), (32, 24, (16, 24)), (None, 1, (1, 1))],
)
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_longer_side(kind, side, longest, shape):
    assert decode_image(VALID[kind], LIMITS, side, longest).shape == (1, *shape, 3)


def test_a_large_jpeg_is_decoded_at_reduced_size():
    grey = media.picture(np.full((4000, 6000), 128, dtype=np.uint8))
    with Image.open(BytesIO(grey)) as image:
        image.draft(None, (336, 224))
        assert image.size == (750, 500)  # draft mode decodes this size instead of 6000 x 4000
    assert decode_image(grey, LIMITS, 224)[0, 100, 100].tolist() == [128] * 3


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda picture: loaded.append(picture))
    for width, height in ((30_000, 30_000), (11_000, 11_000)):
        data = media.png(width, height, depth=1)
        assert len(data) < 120_000
        with pytest.raises(ContentError, match=rf"{width * height} pixels\), at most 40,000,000 pixels are accepted"):
            decode_image(data, LIMITS, 224)
    assert loaded == []
    monkeypatch.undo()
    exact = media.png(100, 70)
    assert decode_image(exact, Limits(pixels=7000)).shape == (1, 70, 100, 3)
    with pytest.raises(ContentError, match=r"7000 pixels.*at most 6,999 pixels are accepted"):
        decode_image(exact, Limits(pixels=6999))
    assert Image.MAX_IMAGE_PIXELS not in (6999, None)


def test_a_line_is_not_enlarged():
    assert decode_image(media.png(100_000, 1), LIMITS, 224).shape == (1, 1, 100_000, 3)
    assert decode_image(media.png(100_000, 1), LIMITS, longest=1024).shape == (1, 1, 1024, 3)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif"])
def test_truncated_pictures_are_errors(kind):
    noisy = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    data = media.picture(noisy, kind.upper())
    for length in (len(data) // 2, len(data) // 4, 20):
        with pytest.raises(ContentError, match=f"the {kind} cannot be decoded: it is damaged"):
            decode_image(data[:length], LIMITS)


def test_damage_anywhere_is_an_error_or_a_picture():
    rng = np.random.default_rng(0)
    for kind in ("jpeg", "png", "webp", "gif"):
        for _ in range(60):
            data = bytearray(VALID[kind])
            for at in rng.integers(8, len(data), 5):
                data[at] = rng.integers(256)
            with suppress(ContentError):
                assert decode_image(bytes(data), Limits(pixels=1_000_000), 32).shape[3] == 3


def test_animations_are_spread_evenly():
    assert spread(1, 8) == [0]
    assert spread(8, 8) == list(range(8))
    assert spread(16, 8) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert spread(10, 4) == [1, 3, 6, 8]
    frames = [np.full((4, 6, 3), 10 * i, dtype=np.uint8) for i in range(16)]
    for form, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        pixels = decode_image(media.animation(frames, form, **options), LIMITS)
        assert pixels.shape == (8, 4, 6, 3)
        np.testing.assert_allclose(pixels[:, 2, 2, 0].astype(int), [10, 30, 50, 70, 90, 110, 130, 150], atol=1)


def test_too_many_frames():
    with pytest.raises(ContentError, match="the gif has 10,000 frames, at most 1,000 are accepted"):
        decode_image(media.endless_gif(10_000), LIMITS)
    assert decode_image(media.endless_gif(1_000), LIMITS).shape == (8, 1, 1, 3)


def test_larger_frames_of_an_animation_are_rejected():
    with pytest.raises(ContentError, match="3600000000 pixels"):
        decode_image(media.endless_gif(3, last_size=(60_000, 60_000)), LIMITS)


@pytest.mark.parametrize(
    ("form", "subtype", "atol"),
    [
        ("WAV", "PCM_16", 0.001),
        ("WAV", "FLOAT", 0.001),
        ("WAV", "PCM_U8", 0.02),
        ("FLAC", None, 0.001),
        ("OGG", "VORBIS", 0.02),
        ("OGG", "OPUS", 0.03),
        ("MP3", None, 0.02),
    ],
)
def test_sounds_are_resampled(form, subtype, atol):
    samples = hear(media.sound(media.sine(48_000, 1.0), 48_000, form, subtype))
    assert samples.dtype == np.float32
    assert abs(len(samples) - 16_000) <= 1
    np.testing.assert_allclose(samples[1000:-1000], media.sine(16_000)[1000 : len(samples) - 1000], atol=atol)


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_sound_of_a_video_file(form):
    samples = hear(media.video([], media.sine(48_000, 2.0), form, rate=48_000), seconds=1.5)
    assert samples.shape == (24_000,)
    spectrum = np.abs(np.fft.rfft(samples[4000:20_000]))
    assert spectrum.argmax() == 440
    assert spectrum[440] * 2 / 16_000 == pytest.approx(0.5, abs=0.05)


def test_channels_are_averaged():
    eight = np.tile(np.arange(8, dtype=np.float32) / 10, (100, 1))
    np.testing.assert_allclose(hear(media.sound(eight, subtype="FLOAT")), np.full(100, 0.35), rtol=1e-6)
    opposite = np.stack([media.sine(), -media.sine()], axis=1)
    np.testing.assert_allclose(hear(media.sound(opposite, subtype="FLOAT")), np.zeros(16_000), atol=1e-7)


def test_silence_and_very_short_sounds():
    np.testing.assert_array_equal(hear(media.sound(np.zeros(800))), np.zeros(800))
    np.testing.assert_array_equal(hear(media.sound(np.array([0.5]))), [0.5])
    np.testing.assert_array_equal(hear(media.sound(np.array([0.5]), rate=48_000)), [0.5])
    with pytest.raises(ContentError, match="without a single sample"):
        hear(media.sound(np.zeros(0)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1001.0])
def test_invalid_samples_are_rejected(value):
    samples = np.zeros(10_000, dtype=np.float32)
    samples[9_000] = value
    data = media.sound(samples, subtype="FLOAT")
    with pytest.raises(ContentError, match="samples that are not numbers or beyond 1000 times full scale"):
        hear(data)
    assert hear(data, seconds=0.5).shape == (8_000,)  # samples after `seconds` are not read


def test_hours_of_silence_are_not_decoded(monkeypatch):
    read = []
    original = soundfile.SoundFile.read

    def reading(file, size, **options):
        read.append(size)
        return original(file, size, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", reading)
    data = media.silent_flac(3 * 3600)
    assert len(data) < 300_000
    with pytest.raises(ContentError, match=r"10,800 s long, at most 3,600 s are accepted \(limits\.seconds\)"):
        hear(data)
    unknown = bytearray(data)
    unknown[21] &= 0xF0  # STREAMINFO: the number of samples is unknown
    unknown[22:26] = bytes(4)
    for form in (data, bytes(unknown)):
        tracemalloc.start()
        read.clear()
        assert not hear(form, seconds=30.0, limits=Limits(seconds=1e5)).any()
        assert 30 * 8_000 <= sum(read) < 90 * 8_000  # one or two blocks of the three hours
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        tracemalloc.stop()


def test_extreme_sample_rates():
    data = bytearray(media.sound())
    for rate in (1, 2**31 - 1):
        data[24:28] = struct.pack("<I", rate)
        with pytest.raises(ContentError, match=f"sampled at {rate:,} Hz|cannot be decoded"):
            hear(bytes(data), limits=Limits(seconds=1e6))


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "mp4", "webm"])
def test_damaged_sounds_are_errors_or_sounds(kind):
    rng = np.random.default_rng(0)
    with pytest.raises(ContentError):
        hear(VALID[kind][:40])
    for _ in range(25):
        data = bytearray(VALID[kind])
        for at in rng.integers(12, len(data), 5):
            data[at] = rng.integers(256)
        with suppress(ContentError):
            assert np.isfinite(hear(bytes(data))).all()


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_videos(form):
    frames, samples = watch(media.video(range(0, 240, 6), media.sine(16_000, 4.0), form), side=36, seconds=2.0)
    assert frames.shape == (8, 36, 48, 3)
    np.testing.assert_allclose(frames[:, 18, 24, 1].astype(int), np.arange(8) * 30 + 12, atol=3)
    assert samples is not None
    assert samples.shape == (32_000,)
    assert np.abs(np.fft.rfft(samples[8_000:24_000])).argmax() == 440


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_videos_without_sound_or_pictures(form):
    frames, samples = watch(media.video([50, 100, 150], None, form))
    np.testing.assert_allclose(
        frames[:, 9, 9, 0].astype(int), [50, 100, 150], atol=3
    )  # no more frames than the video has
    assert samples is None
    frames, samples = watch(media.video([], media.sine(), form))
    assert frames.shape == (0, 32, 32, 3)
    assert samples is not None
    assert abs(len(samples) - 16_000) < 1_500
    with pytest.raises(ContentError, match=f"the {form} has no sound"):
        hear(media.video([50], None, form))


def test_a_cover_picture_is_not_a_video():
    frames, samples = watch(media.sound_with_cover(media.sine()))
    assert frames.shape == (0, 32, 32, 3)
    assert samples is not None


@pytest.mark.parametrize(("degrees", "nearest"), [(134, 90), (136, 180)])
def test_a_rotation_is_rounded_to_a_right_angle(degrees, nearest):
    shown = [watch(media.rotated_video(media.quadrants(), angle), frames=1)[0][0] for angle in (degrees, nearest)]
    np.testing.assert_array_equal(*shown)


def test_a_rotated_video_is_set_upright():
    for degrees, quarters in ((90, [1, 3, 0, 2]), (180, [3, 2, 1, 0]), (-90, [2, 0, 3, 1])):
        (frame,), _ = watch(media.rotated_video(media.quadrants(), degrees), frames=1)
        height, width = frame.shape[:2]
        assert (height, width) == ((32, 48) if degrees == 180 else (48, 32))
        pixels = frame[[height // 4] * 2 + [3 * height // 4] * 2, [width // 4, 3 * width // 4] * 2]
        np.testing.assert_allclose(pixels.astype(int), COLOURS[quarters], atol=12)


@pytest.mark.parametrize("gop", [12, 2_000])
@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_frames_are_reached_through_keyframes(form, gop):
    levels = np.arange(1_000) // 4
    frames, _ = watch(media.video(levels, None, form, gop=gop, fps=25), side=48)
    expected = levels[spread(1_000, 8)]
    if gop == 12:
        np.testing.assert_allclose(frames[:, 9, 9, 0].astype(int), expected, atol=3)
    else:  # each frame is at most 100 frames after the previous one
        assert (np.diff(frames[:, 9, 9, 0].astype(int)) >= 20).all()


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_a_video_of_four_hours(form):
    data = media.video([10, 20, 30], None, form, fps=1, times=[0, 7_200, 14_400])
    with pytest.raises(ContentError, match=r"14,40\d s long, at most 3,600 s are accepted"):
        watch(data)
    frames, _ = watch(data, limits=Limits(seconds=20_000))
    np.testing.assert_allclose(frames[:, 9, 9, 0].astype(int), [10, 20, 30], atol=3)


def test_video_frames_that_are_too_large():
    with pytest.raises(ContentError, match="video frames of 64 x 48 pixels, at most 3,000 are accepted"):
        watch(media.video([1, 2]), limits=Limits(pixels=3_000))


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_damaged_videos_are_errors_or_videos(form):
    rng = np.random.default_rng(0)
    valid = media.video(range(0, 200, 10), media.sine(), form)
    with pytest.raises(ContentError):
        watch(valid[:200])
    for _ in range(25):
        data = bytearray(valid)
        for at in rng.integers(12, len(data), 8):
            data[at] = rng.integers(256)
        with suppress(ContentError):
            assert watch(bytes(data))[0].shape[3] == 3


def test_no_other_file_is_opened(tmp_path, capfd):
    valid = media.video(range(0, 200, 10), media.sine())
    secret = tmp_path / "x"
    secret.write_bytes(valid)
    data = media.with_external_data(valid, b"alis", str(secret))
    opened = []

    def record(url, *_):
        opened.append(url)
        raise OSError

    unsafe_options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with suppress(OSError):
        av.open(BytesIO(data), mode="r", format="mp4", options=unsafe_options, io_open=record)
    assert str(secret) in opened  # the file refers to it, and FFmpeg opens it with unsafe options
    capfd.readouterr()
    with pytest.raises(ContentError, match=r"refers to another file.* which is not opened"):
        watch(data)
    with pytest.raises(ContentError, match=r"refers to another file.* which is not opened"):
        hear(data)
    assert capfd.readouterr() == ("", "")  # FFmpeg prints nothing


def test_no_url_in_a_container_is_fetched():
    valid = media.video(range(0, 200, 10), media.sine())
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        for data in (
            media.with_external_data(valid, b"url ", url),
            media.with_external_data(valid, b"alis", url),
            f"#EXTM3U\n#EXTINF:1,\n{url}\n".encode(),
            f"ffconcat version 1.0\nfile {url}\n".encode(),
            b"\0\0\0\x18ftypisom\0\0\0\0isomisom" + f"#EXTM3U\n{url}\n".encode(),
            f"<MPD><BaseURL>{url}</BaseURL></MPD>".encode(),
        ):
            for decode in (watch, hear):
                try:
                    decode(data)
                except ContentError:
                    pass
                else:
                    assert b"url " + bytes(4) + b"http" in data  # FFmpeg ignores this reference
        with pytest.raises(TimeoutError):
            server.accept()
