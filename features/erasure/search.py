"""Search of files of any kind for the bytes of an id."""

import os
from pathlib import Path

from features.log.erasure.person import Person

CHUNK_BYTES = 16 << 20


def files_below(root: Path) -> list[Path]:
    """The regular files of a folder and its folders, or the file itself; links are not followed. Raises OSError."""
    if root.is_file():
        return [root]
    paths = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def holds(path: Path, person: Person) -> bool:
    """Whether the id stands in the bytes of a file, in any of its forms. Raises OSError."""
    overlap = max(map(len, person.forms)) + 1
    with path.open("rb") as file:
        before = b""
        while data := file.read(CHUNK_BYTES):
            if any(form in before + data for form in person.forms) and person.stands_in(before + data):
                return True
            before = (before + data)[-overlap:]
    return False
