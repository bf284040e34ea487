"""Errors of the operating system: path, reason and remedy in one line."""

import errno
import http.client
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

from features.errors import describe_connection_error, describe_os_error, describe_url


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "out/x: No space left on device; free space on its disk"),
        (errno.EROFS, "out/x: Read-only file system; its file system is read-only: choose another folder"),
        (errno.EPIPE, "out/x: Broken pipe"),
    ],
)
def test_path_reason_and_remedy(number: int, expected: str) -> None:
    assert describe_os_error(OSError(number, os.strerror(number), "out/x")) == expected


def test_an_error_without_a_number_keeps_its_text() -> None:
    assert describe_os_error(OSError("the wheel is broken")) == "the wheel is broken"


def test_the_command_shows_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    code = "import recsys.cli.main as m, pathlib; m.app = lambda **_: pathlib.Path('out/x').mkdir(); m.main()"
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.replace("\n", " ").startswith("error: out/x: Not a directory; a file stands where a folder")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass@host:80/a/b.png?token=s#f", "https://host:80/a/b.png"),
        ("https://host/a@b.png?mail=a@b", "https://host/a@b.png"),
        ("redis://[::1]:6379/0?password=s", "redis://[::1]:6379/0"),
        ("unix:///run/redis.sock?password=s", "unix:///run/redis.sock"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("mlruns", "mlruns"),
        ("user:pass@host:6379", "host:6379"),
        ("redis://:pa#ss@host:1/0", "redis://…"),
        ("redis://user:12/34@host/0", "redis://…"),
        ("redis://user:p@ss/word@host/0", "redis://…"),
        ("redis://user?word@host/0", "redis://…"),
        ("redis://:password", "redis://…"),
        ("a://b://c:d@e", "a://…"),
        ("pass:word", "a URL that cannot be read"),
    ],
)
def test_of_a_url_only_scheme_host_port_and_path_are_shown(url: str, shown: str) -> None:
    assert describe_url(url) == shown


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "its host has no address: check the name and the network"),
        (ConnectionRefusedError(111, "x"), "nothing listens there: start the server, or check the address"),
        (TimeoutError("slow"), "there was no answer in time"),
        (
            ssl.SSLCertVerificationError(1, "x"),
            "its certificate is not trusted, or is of another name: check the address",
        ),
        (ssl.SSLError(1, "x"), "it does not speak TLS there: check the address"),
        (http.client.BadStatusLine("x"), "it cut the connection off, or does not speak HTTP"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "Network is unreachable"),
        (ValueError("of a library"), "the connection failed or was cut off"),
        (urllib.error.URLError(ConnectionResetError(104, "x")), "it cut the connection off"),
    ],
)
def test_a_failed_connection_is_told_in_plain_words(error: Exception, words: str) -> None:
    assert describe_connection_error(error) == words
    wrapped = RuntimeError("of a library")
    wrapped.__cause__ = error
    assert describe_connection_error(wrapped) == words
