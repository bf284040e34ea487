"""What a table file really is: its bytes against the format that its suffix names.

Users rename files, and editors choose encodings. A file of another format is named as what it is, with the remedy.
"""

import codecs
import mmap
import zipfile
from pathlib import Path

from features.errors import DataError
from features.files import not_a_file

HEAD = 4096
"""Number of first bytes that tell a format."""

CHUNK = 1 << 20
"""Number of bytes that are decoded at a time."""

AROUND = 20
"""Number of bytes of context that a message shows on each side of a byte that is no UTF-8."""

WANTED = {
    ".parquet": "write the table as parquet",
    ".csv": "save it as CSV in UTF-8",
    ".jsonl": "write one JSON object a line, in UTF-8",
    ".ndjson": "write one JSON object a line, in UTF-8",
}
"""Suffix -> what a file with this suffix has to be, as a remedy."""

ENCODINGS = {
    codecs.BOM_UTF32_LE: "text in UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "text in UTF-32",
    codecs.BOM_UTF16_LE: "text in UTF-16 (Excel calls it Unicode text)",
    codecs.BOM_UTF16_BE: "text in UTF-16 (Excel calls it Unicode text)",
}
"""Byte order mark -> encoding."""

COMPRESSED = {
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x04\x22\x4d\x18": "an lz4 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
}
"""First bytes -> archive that may contain the table."""

FORMATS = {
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (xls) or another Office document",
    b"ARROW1": "an Arrow file (feather)",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"FEA1": "an Arrow file (feather, version 1)",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"RDX": "an R workspace",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"\x7fELF": "a program",
    b"{\\rtf": "an RTF document",
}
"""First bytes -> format."""

MARKUP = {b"<!doctype html": "a web page (HTML)", b"<html": "a web page (HTML)", b"<?xml": "an XML document"}
"""First bytes in lower case, after blanks -> format."""

PARQUET = (b"PAR1", b"PARE")
LFS = b"version https://git-lfs.github.com/spec"


def check_format(path: Path) -> None:
    """Compare a file with its suffix: .parquet, .csv, .jsonl or .ndjson. Text is read through to its end.

    Raises DataError, with the remedy, when the file is something else, is empty, or is not text in UTF-8.
    """
    if path.suffix != ".parquet":
        check_text(path)
        return
    head = _head(path)
    if not head.startswith(PARQUET):
        _check_other(path, head)
        raise DataError(
            f"{path} is no parquet file, it begins with {head[:16]!r}: {WANTED['.parquet']}, or correct its suffix"
        )


def check_text(path: Path) -> None:
    """Raises DataError, with the remedy, when a file is empty or is not text in UTF-8 with line feeds."""
    head = _head(path)
    if head.startswith(PARQUET):
        raise DataError(f"{path} is a parquet file: rename it to {path.with_suffix('.parquet').name}")
    _check_other(path, head)
    _check_text(path, head.removeprefix(codecs.BOM_UTF8).lstrip())


def _head(path: Path) -> bytes:
    if wrong := not_a_file(path):
        raise DataError(f"{path}: {wrong}")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); write at least a header and one row")
    return head


def _wanted(path: Path) -> str:
    return WANTED.get(path.suffix, "write it as text in UTF-8")


def _check_other(path: Path, head: bytes) -> None:
    """Raises DataError where the head shows a format other than parquet and text in UTF-8."""
    if head.startswith(LFS):
        raise DataError(f"{path} is the pointer of a file in Git LFS: fetch the file with `git lfs pull`")
    if archive := _starting(head, COMPRESSED):
        raise DataError(f"{path} is {archive}: unpack it, then {_wanted(path)}")
    if what := _format(path, head):
        raise DataError(f"{path} is {what}: {_wanted(path)}")


def _starting(head: bytes, names: dict[bytes, str]) -> str | None:
    return next((name for magic, name in names.items() if head.startswith(magic)), None)


def _format(path: Path, head: bytes) -> str | None:
    """The name of a format other than parquet and text in UTF-8; None where the head shows none."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(path)
    if head[8:12] == b"DUCK":
        return "a DuckDB database"
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    known = _starting(text, MARKUP) or _starting(head, ENCODINGS) or _starting(head, FORMATS)
    return known or _wide(head)


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark: nearly every second byte, or three of four, are zero."""
    quarters = [head[k::4].count(0) / max(1, len(head[k::4])) for k in range(4)]
    if sum(share > 0.9 for share in quarters) == 3:
        return "text in UTF-32"
    for zero, other in ((0, 1), (1, 0)):
        halves = [head[k::2].count(0) / max(1, len(head[k::2])) for k in (zero, other)]
        if halves[0] > 0.5 and halves[1] < 0.1:
            return "text in UTF-16 (Excel calls it Unicode text)"
    return None


def _zip(path: Path) -> str:
    """What a zip archive holds: office programs store their documents in this format."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        names = []
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook (xlsx, which is a zip archive)"
    if "content.xml" in names:
        return "an OpenDocument spreadsheet (ods, which is a zip archive)"
    return f"a zip archive{' of ' + ', '.join(names[:3]) if names else ''}"


def _check_text(path: Path, text: bytes) -> None:
    """Raises DataError where a text file is not UTF-8, holds NUL bytes, or lacks line feeds.

    text: the first bytes, without blanks and byte order mark.
    """
    wanted = _wanted(path)
    if not text and path.stat().st_size <= HEAD:
        raise DataError(f"{path} holds only blanks; {wanted}")
    if path.suffix == ".csv" and text.startswith((b"{", b"[{")):
        raise DataError(f"{path} is JSON: rename it to {path.with_suffix('.jsonl').name}, one object a line")
    if path.suffix in (".jsonl", ".ndjson") and text.startswith(b"[") and text[1:].lstrip()[:1] in (b"{", b"]", b""):
        raise DataError(
            f"{path} is one JSON array: {wanted}, e.g. with pandas: "
            f'pd.read_json("{path.name}").to_json("{path.name}", orient="records", lines=True)'
        )
    _check_encoding(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if path.suffix not in (".jsonl", ".ndjson") and (at := data.find(b"\x00")) >= 0:
            line = data[:at].count(b"\n") + 1
            raise DataError(f"{path} holds NUL bytes, the first in line {line:,}: it is damaged; write it again")
        if data.find(b"\n") < 0 and data.find(b"\r") >= 0 and data[:].rstrip().find(b"\r") >= 0:
            raise DataError(f"{path} ends its lines with carriage returns alone: save it with line feeds (Unix)")


def _check_encoding(path: Path) -> None:
    """Raises DataError, with line and context, at the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = lines = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = done - pending + error.start
                lines += chunk[: max(0, error.start - pending)].count(b"\n")
                raise DataError(_not_utf8(path, at, lines + 1)) from None
            if not chunk:
                return
            done += len(chunk)
            lines += chunk.count(b"\n")


def _not_utf8(path: Path, at: int, line: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, at - AROUND))
        before = file.read(min(at, AROUND))
        after = file.read(AROUND)
    around = before.rpartition(b"\n")[2] + after.partition(b"\n")[0]
    guess = around.decode("cp1252", "replace").strip()
    return (
        f"{path} is not UTF-8: line {line:,} has the byte 0x{after[0]:02X} "
        f"(read as Windows-1252, the text is {guess!r}); save it as UTF-8, e.g. "
        f"`iconv -f WINDOWS-1252 -t UTF-8`"
    )
