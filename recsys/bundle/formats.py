"""Formats of bundles on disk: what each one changed, and how an older one is read.

An upgrade of the code must not need a new training. So each version reads older formats, too (READABLE). It refuses
all others, and names the formats that it reads.

11  `sources`, the quotas of the sources of candidates; before, those in QUOTAS_BEFORE_11
10  the fingerprint covers what is served, `checksum` the whole manifest; `trained_events.npy`
9   names: arrays `words.*` are `tfidf.*`, the weight `turn` of the towers is `rotation`
8   the format of version 0.1.0
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from features.errors import BundleError, describe_read_error
from features.files import not_a_file
from recsys.config import SourceQuotas

MANIFEST = "manifest.json"
"""Name of the file of a bundle that describes the others."""

FORMAT = 11
"""The format that `save_bundle` writes. It rises when older versions could not read the result."""

READABLE = (8, 9, 10, FORMAT)

SERVED = (
    *("format", "files", "towers", "candidates", "fitted_until", "statistics_until"),
    *("category_names", "content", "content_dimension"),
)
"""Keys of a manifest that its fingerprint covers, besides `sources` and the parts of `config` that are served."""

SERVED_DATA = ("source", "path", "log", "events", "extra_columns")
"""Keys of `config.data` that the fingerprint covers: the service reads the tables at `path`, and `log`. Relative
paths stay equal where a whole project is moved."""

KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("config", "files", "towers"), (dict,)),
    **dict.fromkeys(("candidates", "fitted_until", "statistics_until", "content_dimension"), (int,)),
    "category_names": (list,),
    "content": (dict, type(None)),
}
"""Keys that every manifest has, whatever its format -> the types of their values."""

NAMES = {dict: "named values", int: "a whole number", list: "a list"}
"""Type of a value -> its name in messages."""

QUOTAS_BEFORE_11 = {"recent": 0.7, "long_term": 0.3, "neighbours": 0, "fresh": 0, "trending": 0, "popular": 0}
"""`sources` of a bundle of an earlier format."""

_RENAMED_ARRAYS = {"words.data": "tfidf.data", "words.indices": "tfidf.indices", "words.indptr": "tfidf.indptr"}
_RENAMED_WEIGHTS = {"turn": "rotation"}

T = TypeVar("T")


def check_format(manifest: Any, place: str) -> int:
    """The format that a manifest declares. Raises BundleError when this version does not read it."""
    if not isinstance(manifest, dict):
        raise BundleError(f"{place}: not the manifest of a bundle; restore it or train again")
    version = manifest.get("format")
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


def current_quotas(manifest: Mapping[str, Any]) -> SourceQuotas:
    """The quotas of the sources of candidates of a bundle of any format that is read."""
    return SourceQuotas.model_validate(manifest["sources"] if manifest["format"] >= 11 else QUOTAS_BEFORE_11)


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """16 hex digits that name what a bundle serves: the SHA-256 of the manifest's keys that serving depends on.

    Two trainings of the same tables with the same result have one fingerprint, whatever time they took. Before
    format 10 it covers every key but itself, seconds and paths among them.
    """
    if manifest.get("format") in (8, 9):
        return _sha256({key: value for key, value in manifest.items() if key != "fingerprint"})[:16]
    config = manifest["config"]
    data = config.get("data", {})
    served: dict[str, Any] = {key: manifest[key] for key in SERVED}
    if manifest["format"] >= 11:
        served["sources"] = manifest["sources"]
    served |= {key: data.get(key) for key in SERVED_DATA}
    served["placements"] = list(data.get("placements", {}).items())  # their order counts: the first is the default
    served |= {key: config.get(key) for key in ("encoder", "limits")}
    return _sha256(served)[:16]


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """64 hex digits: the SHA-256 of a manifest, its own checksum left out."""
    return _sha256({key: value for key, value in manifest.items() if key != "checksum"})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. The files that it lists are not verified.

    Raises BundleError when it is missing, damaged or of a format that this version does not read.
    """
    path = folder / MANIFEST
    if wrong := not_a_file(path):
        raise BundleError(f"{path}: cannot be read: {wrong}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {describe_read_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path}: cannot be read: {describe_read_error(error)}; restore it or train again"
        ) from error
    check_manifest(manifest, str(path))
    return cast(dict[str, Any], manifest)


def check_manifest(manifest: Any, place: str) -> int:
    """The format of a manifest. Raises BundleError when it is not whole, or of a format that is not read."""
    version = check_format(manifest, place)
    for key, kinds in (KINDS if version < 11 else KINDS | {"sources": (dict,)}).items():
        if key not in manifest or type(manifest[key]) not in kinds:
            given = json.dumps(manifest[key])[:40] if key in manifest else "missing"
            raise BundleError(f"{place}: {key!r} is {given}, not {NAMES[kinds[0]]}; restore it or train again")
    try:
        name, checksum = fingerprint_of(manifest), checksum_of(manifest)
    except (AttributeError, TypeError) as error:
        raise BundleError(f"{place}: not the manifest of a bundle; restore it or train again") from error
    if manifest.get("fingerprint") != name:
        raise BundleError(
            f"{place}: does not match its own fingerprint {manifest.get('fingerprint')!r}; restore it or train again"
        )
    if version >= 10 and manifest.get("checksum") != checksum:
        raise BundleError(f"{place}: does not match its own checksum; restore it or train again")
    return version


def _sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
