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
    overlap = max(map(len, person.forms)) + 2
    with path.open("rb") as file:
        before, data = b"", file.read(CHUNK_BYTES)
        while data:
            following = file.read(CHUNK_BYTES)
            # a letter where more bytes follow or precede: what touches it is judged with the part that has them
            part = before + data + (b"x" if following else b"")
            if any(form in part for form in person.forms) and person.stands_in(part):
                return True
            before, data = b"x" + (before + data)[-overlap:], following
    return False
