"""Formats of bundles on disk: what each one changed, and how an older one is read.

A service must be able to take a new version of the code without a training. So each version reads the format before
its own as well, and an older format is refused with the version that reads it.

9   names: arrays `words.*` are `tfidf.*`, the weight `turn` of the towers is `rotation`
8   the format of version 0.1.0
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from features.errors import BundleError

FORMAT = 9
"""What `save_bundle` writes. It rises when an older version could not read what is written."""

READABLE = (8, FORMAT)

_RENAMED_ARRAYS = {"words.data": "tfidf.data", "words.indices": "tfidf.indices", "words.indptr": "tfidf.indptr"}
_RENAMED_WEIGHTS = {"turn": "rotation"}

T = TypeVar("T")


def check_format(manifest: Any, place: str) -> int:
    """The format that a manifest declares. Raises BundleError where this version does not read it."""
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found in READABLE:
        return int(found)
    if isinstance(found, int) and found > FORMAT:
        remedy = "a newer version wrote it: install that version"
    else:
        remedy = "train again"
    raise BundleError(f"{place}: format {found!r}, this version reads {', '.join(map(str, READABLE))}; {remedy}")


def current_arrays(arrays: Mapping[str, T], version: int) -> dict[str, T]:
    """Arrays of a bundle of format `version`, under the names of FORMAT."""
    return {(_RENAMED_ARRAYS.get(name, name) if version < 9 else name): values for name, values in arrays.items()}


def current_weights(weights: Mapping[str, T], version: int) -> dict[str, T]:
    """Weights of the towers of a bundle of format `version`, under the names of FORMAT."""
    return {(_RENAMED_WEIGHTS.get(name, name) if version < 9 else name): values for name, values in weights.items()}
