"""HTTP downloads that resume after a cut connection and are compared with a published checksum."""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from features.errors import SourceError, describe_connection_error

CHUNK = 1 << 20
TIMEOUT = 30.0
RANGE_NOT_SATISFIABLE = 416
"""HTTP status of a Range request that starts at or after the end of the file."""


class _CutOffError(ConnectionError):
    """An answer that is not the rest of the file. Its text is ours."""


def download(url: str, path: Path, *, md5: str | None, attempts: int = 5, wait: float = 1.0) -> Path:
    """Download `url` to `path` through `<path>.part`, which a later call continues.

    md5: as published; None: none is, and a file that is there is taken as it is. attempts: maximum number of
    connections; wait: seconds before the second one, doubled before each further one.
    Raises SourceError when the server refuses, the connection fails or the MD5 differs (then the part is deleted).
    """
    if path.is_file() and md5 in (None, _md5(path)):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    for attempt in range(attempts):
        try:
            _continue(url, part)
            break
        except urllib.error.HTTPError as error:
            error.close()
            raise SourceError(f"{url}: the server answers {error.code}; check the address") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == attempts - 1:
                received = part.stat().st_size if part.exists() else 0
                why = str(error) if isinstance(error, _CutOffError) else describe_connection_error(error)
                raise SourceError(
                    f"{url}: {why} ({attempts} attempts, {received:,} bytes kept in {part}). Check the connection "
                    "and run again to resume, or put the file there by hand"
                ) from error
            time.sleep(wait * 2**attempt)
    if md5 is not None and (actual := _md5(part)) != md5:
        part.unlink()
        raise SourceError(f"{url}: MD5 is {actual}, published is {md5}; the file was deleted, run again")
    os.replace(part, path)
    return path


def published_md5(url: str) -> str:
    """The MD5 in the file `<url>.md5`, where GroupLens publishes it. Raises SourceError."""
    try:
        with urllib.request.urlopen(f"{url}.md5", timeout=TIMEOUT) as response:
            text = response.read(4096).decode("ascii", "replace")
    except (OSError, http.client.HTTPException) as error:
        why = describe_connection_error(error)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            why = f"the server answers {error.code}"
        raise SourceError(f"{url}.md5 cannot be read: {why}. Is there internet? Check and run again") from error
    if (match := re.search(r"\b[0-9a-f]{32}\b", text.lower())) is None:
        raise SourceError(f"{url}.md5 holds no MD5: {text[:80]!r}")
    return match.group()


def _continue(url: str, part: Path) -> None:
    """Append the missing bytes to the part. When the server ignores the Range header, the part is rewritten."""
    size = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "recsys"} | ({"Range": f"bytes={size}-"} if size else {})  # some refuse urllib's
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == RANGE_NOT_SATISFIABLE and size:
            error.close()
            return
        raise
    with response, _progress() as progress:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {size}-")
        if response.status == 206 and not resumed:
            raise _CutOffError(f"requested byte {size:,} on, received {response.headers.get('Content-Range')!r}")
        size = size if resumed else 0
        length = response.headers.get("Content-Length")
        total = size + int(length) if length else None
        task = progress.add_task(url.rsplit("/", 1)[-1], total=total, completed=size)
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
                size += len(chunk)
        if total is not None and size < total:
            raise _CutOffError(f"cut off after {size:,} of {total:,} bytes")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
