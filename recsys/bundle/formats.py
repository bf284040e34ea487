"""Formats of bundles on disk: what each one changed, and how an older one is read.

An upgrade of the code must not need a new training. So each version reads the format before its own, too. It refuses
older formats, and names the formats that it reads.

9   names: arrays `words.*` are `tfidf.*`, the weight `turn` of the towers is `rotation`
8   the format of version 0.1.0
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from features.errors import BundleError

FORMAT = 9
"""The format that `save_bundle` writes. It rises when older versions could not read the result."""

READABLE = (8, FORMAT)

_RENAMED_ARRAYS = {"words.data": "tfidf.data", "words.indices": "tfidf.indices", "words.indptr": "tfidf.indptr"}
_RENAMED_WEIGHTS = {"turn": "rotation"}

T = TypeVar("T")


def check_format(manifest: Any, place: str) -> int:
    """The format that a manifest declares. Raises BundleError when this version does not read it."""
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version in READABLE:
        return int(version)
    if isinstance(version, int) and version > FORMAT:
        remedy = "a newer version wrote it: install that version"
    else:
        remedy = "train again"
    raise BundleError(f"{place}: format {version!r}, this version reads {', '.join(map(str, READABLE))}; {remedy}")


def current_arrays(arrays: Mapping[str, T], version: int) -> dict[str, T]:
    """The arrays of a bundle of format `version`, renamed to the names in FORMAT."""
    return {(_RENAMED_ARRAYS.get(name, name) if version < 9 else name): values for name, values in arrays.items()}


def current_weights(weights: Mapping[str, T], version: int) -> dict[str, T]:
    """The weights of the towers of a bundle of format `version`, renamed to the names in FORMAT."""
    return {(_RENAMED_WEIGHTS.get(name, name) if version < 9 else name): values for name, values in weights.items()}
