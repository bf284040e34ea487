"""Downloads whose connection breaks: tries, waits and what is said at the end."""

import hashlib
import http.client
from pathlib import Path

import pytest

from features.errors import SourceError
from features.tables.sources import download as module
from features.tables.sources.download import download

ERRORS = {
    http.client.IncompleteRead(b"ab", 5): "it cut the connection off, or does not speak HTTP",
    http.client.BadStatusLine("x"): "it cut the connection off, or does not speak HTTP",
    ConnectionResetError("reset"): "it cut the connection off",
    TimeoutError("slow"): "there was no answer in time",
}
"""What breaks -> the words for it."""


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_connection_that_breaks_is_tried_again_after_doubled_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)

    def broken(url: str, part: Path) -> None:
        part.write_bytes(b"x" * 1_234)
        raise error

    monkeypatch.setattr(module, "_continue", broken)
    file = tmp_path / "sub" / "folder" / "a.zip"
    with pytest.raises(SourceError) as caught:
        download("http://a.example/a.zip", file, md5="0")
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert str(caught.value) == (
        f"http://a.example/a.zip: {ERRORS[error]} (5 attempts, 1,234 bytes kept in {file}.part). Check the "
        "connection and run again to resume, or put the file there by hand"
    )


def test_without_a_byte_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(url: str, part: Path) -> None:
        raise ConnectionRefusedError("no")

    monkeypatch.setattr(module, "_continue", refused)
    with pytest.raises(SourceError, match=r"nothing listens there: .* \(1 attempts, 0 bytes kept in "):
        download("http://a.example/a.zip", tmp_path / "a.zip", md5="0", attempts=1)


def test_the_last_try_may_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [0]
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)

    def sometimes(url: str, part: Path) -> None:
        tries[0] += 1
        if tries[0] < 3:
            raise http.client.RemoteDisconnected("gone")
        part.write_bytes(b"data")

    monkeypatch.setattr(module, "_continue", sometimes)
    md5 = hashlib.md5(b"data").hexdigest()
    found = download("http://a.example/a.zip", tmp_path / "a.zip", md5=md5, attempts=3, wait=0.5)
    assert found.read_bytes() == b"data"
    assert waits == [0.5, 1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert module.TIMEOUT == 30.0


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_checksum_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked = []

    def urlopen(url: str, *, timeout: float) -> None:
        asked.append((url, timeout))
        raise error

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    with pytest.raises(SourceError) as caught:
        module.published_md5("http://a.example/a.zip")
    assert asked == [("http://a.example/a.zip.md5", 30.0)]
    assert str(caught.value) == (
        f"http://a.example/a.zip.md5 cannot be read: {ERRORS[error]}. Is there internet? Check and run again"
    )
