"""A Debian package with a few stamps, as tuxpaint-stamps-default has hundreds."""

import io
import tarfile
from pathlib import Path

STAMPS = "usr/share/tuxpaint/stamps"
NAME = "tuxpaint-stamps-default_1.0_all"


def archive(files: dict[str, bytes]) -> bytes:
    """A tar file, compressed by xz."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def deb(path: Path, files: dict[str, bytes]) -> Path:
    """Write a .deb whose data are these files: an ar archive of three members (deb(5))."""
    control = archive({"control": b"Package: tuxpaint-stamps-default\nVersion: 1.0\n"})
    members = {"debian-binary": b"2.0\n", "control.tar.xz": control, "data.tar.xz": archive(files)}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
            file.write(data + b"\n" * (len(data) % 2))
    return path
