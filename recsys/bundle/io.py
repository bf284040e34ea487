"""Bundles on disk: everything a training run hands to the service, in one immutable folder named by its fingerprint.

A bundle is written under a temporary name, synced, then renamed. It is read only after all checksums have been
verified. Its files are safetensors, parquet, JSON, npy and the formats of faiss and LightGBM: nothing is unpickled.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file as save_weights

from features.arrays import Keys
from features.catalog import Catalog
from features.content.spaces import Embedded, SpaceKey, same_space
from features.errors import (
    BundleError,
    FileError,
    SpaceError,
    describe_os_error,
    describe_read_error,
    describe_write_error,
)
from features.files import sync
from features.ids import IdMap
from features.schema import ITEM
from recsys.bundle.formats import (
    FORMAT,
    MANIFEST,
    checksum_of,
    current_arrays,
    current_quotas,
    current_weights,
    fingerprint_of,
    read_manifest,
)
from recsys.bundle.item_map import ItemMap
from recsys.bundle.model import Bundle
from recsys.config import TowerConfig
from recsys.content.alignment import AffineMap, Alignment
from recsys.content.content_space import ContentSpace
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import Reranker
from recsys.ranking.tfidf import WIDTH, TfidfIndex
from recsys.recommender import TwoStageRecommender
from recsys.retrieval.index import Index
from recsys.retrieval.mutable_index import MutableIndex
from recsys.retrieval.popular import Popular
from recsys.towers.model import TwoTowers

ITEMS, ARRAYS, TOWERS, VECTORS, CONTENTS, RERANKER, CONTENT, TRAINED_EVENTS, MAP = (
    "items.parquet",
    "arrays.safetensors",
    "towers.safetensors",
    "vectors",
    "contents",
    "reranker.txt",
    "content.safetensors",
    "trained_events.npy",
    "map.npy",
)
_REQUIRED = {ITEMS, ARRAYS, TOWERS} | {f"{name}.{kind}" for name in (VECTORS, CONTENTS) for kind in ("json", "npy")}
_CATALOG = ("categories", "price", "available", "published", "has_content")
_STATISTICS = ("total", "recent", "newest", "last")
_SPARSE = ("data", "indices", "indptr")
_READ_ERRORS = (
    *(AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, SpaceError, pl.exceptions.PolarsError),
)
"""Raised by readers of files that are intact, but not what the manifest declares."""

_WRITE_ERRORS = (OSError, SafetensorError, pl.exceptions.PolarsError, RuntimeError)
"""Raised by writers; a RuntimeError is of faiss."""


def save_bundle(
    root: Path,
    catalog: Catalog,
    recommender: TwoStageRecommender,
    statistics: ItemStatistics,
    facts: dict[str, Any],
    content: ContentSpace | None = None,
    trained: Keys | None = None,
    item_map: ItemMap | None = None,
) -> Path:
    """Write a bundle below root and return its folder, whose name is its fingerprint.

    facts: plain JSON for the manifest (config, hashes, code version, seed, metrics); content: the space of the
    items' contents, None where they have none; trained: the keys of the training events (`event_keys`), None where
    training cannot continue from the bundle; item_map: None for none. Where a bundle with this fingerprint exists, it
    stays as it is.

    A failure leaves nothing. A crash at any moment leaves at most a folder or link whose name starts with
    `.writing-`. It is never read, and the next call removes it if the process that made it has ended.
    Raises FileError when a file cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        folder = Path(tempfile.mkdtemp(prefix=f".writing-{os.getpid()}-", dir=root))
        try:
            files = _write_files(folder, catalog, recommender, statistics, content, trained, item_map)
            manifest = facts | files
            manifest["fingerprint"] = fingerprint_of(manifest)
            manifest["checksum"] = checksum_of(manifest)
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
            for file in folder.iterdir():
                sync(file)
            sync(folder)
            final = root / str(manifest["fingerprint"])
            shutil.rmtree(folder) if _is_intact(final) else folder.rename(final)
            sync(root)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except _WRITE_ERRORS as error:
        reason = describe_write_error(root, error)
        raise FileError(f"the bundle cannot be written: {reason}; nothing was published") from error
    return final


def _is_intact(folder: Path) -> bool:
    """Whether a complete bundle is in a folder. What is left of a damaged one is removed."""
    try:
        _verify(folder, read_manifest(folder)["files"])
    except BundleError:
        if folder.exists():
            shutil.rmtree(folder)
        return False
    return True


def _write_files(
    folder: Path,
    catalog: Catalog,
    recommender: TwoStageRecommender,
    statistics: ItemStatistics,
    content: ContentSpace | None,
    trained: Keys | None,
    item_map: ItemMap | None,
) -> dict[str, Any]:
    """Write all files but the manifest, and return what the manifest says about them."""
    catalog.frame.write_parquet(folder / ITEMS)
    save_file(_arrays(catalog, recommender, statistics), folder / ARRAYS)
    save_weights({name: t.contiguous() for name, t in recommender.towers.state_dict().items()}, folder / TOWERS)
    contents = _save_indexes(folder, catalog, recommender, content)
    if content is not None:
        save_file(_content_arrays(content), folder / CONTENT)
    if isinstance(recommender.reranker, Reranker):
        recommender.reranker.save(folder / RERANKER)
    if trained is not None:
        np.save(folder / TRAINED_EVENTS, np.sort(trained))
    if item_map is not None:
        np.save(folder / MAP, item_map.points)
    return {
        "format": FORMAT,
        "towers": recommender.towers.config.model_dump(mode="json"),
        "candidates": recommender.candidates,
        "sources": recommender.quotas.model_dump(),
        "fitted_until": recommender.fitted_until,
        "statistics_until": statistics.fitted_until,
        "popular_days": recommender.fallback.days,
        "category_names": list(catalog.category_names),
        "content": None if content is None else _content_facts(content),
        "content_dimension": contents.dimension,
        "map": None if item_map is None else item_map.method,
        "files": {
            file.name: {"sha256": _sha256(file), "bytes": file.stat().st_size} for file in sorted(folder.iterdir())
        },
    }


def _remove_abandoned(root: Path) -> None:
    """Remove the unfinished folders and links of processes that have ended."""
    for abandoned in root.glob(".writing-*"):
        if not Path(f"/proc/{abandoned.name.split('-')[1]}").exists():
            is_folder = abandoned.is_dir() and not abandoned.is_symlink()
            shutil.rmtree(abandoned) if is_folder else abandoned.unlink()


def _arrays(
    catalog: Catalog, recommender: TwoStageRecommender, statistics: ItemStatistics
) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: getattr(catalog, name) for name in _CATALOG}
    arrays |= {f"statistics.{name}": getattr(statistics, name) for name in _STATISTICS}
    arrays["popularity"] = recommender.fallback.popularity
    if isinstance(recommender.reranker, Reranker):
        features = recommender.reranker.features
        arrays |= _sparse_arrays("neighbours", features.neighbours)
        arrays |= _sparse_arrays("tfidf", features.tfidf.rows) | {"idf": features.tfidf.idf}
        arrays |= {f"reranker.{name}": values for name, values in recommender.reranker.arrays.items()}
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}


def _save_indexes(
    folder: Path, catalog: Catalog, recommender: TwoStageRecommender, content: ContentSpace | None
) -> Index:
    """Write both indexes and return that of the contents. The towers' weights must be in the folder already."""
    index = recommender.index
    if not isinstance(index, Index):
        raise TypeError(f"a bundle is saved with a built Index, given {type(index).__name__}")
    index.save(folder / VECTORS, behaviour_space(folder / TOWERS, index.dimension))
    # `retriever.dimensions` applies to the towers' vectors only; content vectors are searched in all dimensions
    contents = Index(catalog.content, index.config.model_copy(update={"dimensions": None}))
    contents.save(folder / CONTENTS, content_space(content, contents.dimension))
    return contents


def load_bundle(path: Path) -> Bundle:
    """Verify every file of a bundle, then load it.

    Raises BundleError, which names the file, when one is missing, truncated, tampered with or of another format.
    """
    manifest = read_manifest(path)
    try:
        _verify(path, manifest["files"])
        bundle = _load(path, manifest, manifest["format"])
        _ = bundle.data  # raises where the configuration of the data is not valid in this version
        return bundle
    except _READ_ERRORS as error:
        reason = "a value or a shape is not that of the manifest"
        if isinstance(error, OSError | SpaceError):
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise BundleError(f"{path}: its files do not fit together: {reason}; train again") from error


def trained_events(bundle: Bundle) -> Keys | None:
    """The keys of the events that a bundle was trained on, sorted; None where the bundle does not record them.

    Raises BundleError when they cannot be read.
    """
    if TRAINED_EVENTS not in bundle.manifest["files"]:
        return None
    file = bundle.path / TRAINED_EVENTS
    try:
        keys = np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise BundleError(
            f"{file}: cannot be read: {describe_read_error(error)}; restore it or train again"
        ) from error
    if keys.dtype != np.uint64 or keys.ndim != 1:
        raise BundleError(f"{file}: {keys.dtype} of shape {keys.shape}, not uint64 (n,); train again")
    return cast(Keys, keys)


def _verify(path: Path, files: dict[str, Any]) -> None:
    """Compare size and SHA-256 of every file with the manifest's. Raises BundleError when they differ.

    A file that a bundle needs and that the manifest does not list is an error too: it could not be verified.
    """
    if unlisted := sorted(_REQUIRED - files.keys()):
        raise BundleError(f"{path / MANIFEST}: does not list {', '.join(unlisted)}; restore it or train again")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"{file}: missing, but listed in the manifest; restore it or train again")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise BundleError(
                f"{file}: size ({file.stat().st_size} bytes) or SHA-256 is not that of the manifest "
                f"({expected['bytes']} bytes): truncated or tampered with; restore it or train again"
            )


def _load(path: Path, manifest: dict[str, Any], version: int) -> Bundle:
    arrays = current_arrays(load_file(path / ARRAYS), version)
    frame = pl.read_parquet(path / ITEMS)
    towers_config = TowerConfig.model_validate(manifest["towers"])
    index = Index.load(path / VECTORS, behaviour_space(path / TOWERS, towers_config.dimension))
    content = None
    if manifest["content"] is not None:
        content = _load_content(manifest["content"], load_file(path / CONTENT))
    contents = Index.load(path / CONTENTS, content_space(content, manifest["content_dimension"]))
    vectors = index.vectors
    catalog = Catalog(
        ids=IdMap(tuple(frame.get_column(ITEM).to_list())),
        frame=frame,
        category_names=tuple(manifest["category_names"]),
        content=contents.vectors,
        **{name: arrays[name] for name in _CATALOG},
    )
    statistics = ItemStatistics(manifest["statistics_until"], *(arrays[f"statistics.{name}"] for name in _STATISTICS))
    weights = current_weights(load_weights(path / TOWERS), version)
    towers = TwoTowers(catalog, statistics, towers_config, len(weights["users.event.weight"]))
    towers.load_state_dict(weights)
    towers.eval()
    reranker = None
    if RERANKER in manifest["files"]:
        n = len(vectors)
        tfidf = TfidfIndex(_sparse_matrix("tfidf", arrays, (n, WIDTH)), arrays["idf"])
        features = PairFeatures(catalog, vectors, statistics, tfidf, _sparse_matrix("neighbours", arrays, (n, n)))
        own = {name.removeprefix("reranker."): values for name, values in arrays.items()}
        reranker = Reranker.load(path / RERANKER, features, own)
    fitted_until = manifest["fitted_until"]
    recommender = TwoStageRecommender(
        towers=towers,
        vectors=vectors,
        index=MutableIndex(index),
        fallback=Popular(arrays["popularity"], fitted_until, manifest.get("popular_days")),
        reranker=reranker,
        candidates=manifest["candidates"],
        quotas=current_quotas(manifest),
        fitted_until=fitted_until,
    )
    item_map = None
    if MAP in manifest["files"]:
        item_map = ItemMap(np.load(path / MAP, allow_pickle=False).reshape(len(vectors), 2), manifest["map"])
    return Bundle(path, manifest, catalog, recommender, content, MutableIndex(contents), item_map)


def _sparse_arrays(name: str, matrix: sp.csr_array) -> dict[str, npt.NDArray[Any]]:
    return {f"{name}.{part}": getattr(matrix, part) for part in _SPARSE}


def _sparse_matrix(name: str, arrays: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]) -> sp.csr_array:
    return sp.csr_array(tuple(arrays[f"{name}.{part}"] for part in _SPARSE), shape=shape)


def behaviour_space(weights: Path, dimension: int) -> SpaceKey:
    """The space of the towers whose weights are in a file: vectors of other towers are in other spaces."""
    return SpaceKey("two towers", _sha256(weights)[:16], dimension)


def content_space(content: ContentSpace | None, dimension: int) -> SpaceKey:
    """The space of `Catalog.content`; a placeholder where the items have no contents."""
    return SpaceKey("no contents", "", dimension) if content is None else content.space


def _content_facts(content: ContentSpace) -> dict[str, Any]:
    alignment = content.alignment
    return {
        "space": asdict(content.space),
        "channels": list(content.channels),
        "maps": [] if alignment is None else [asdict(key) for key in alignment.maps],
        "nested": [] if alignment is None else list(alignment.nested),
    }


def _content_arrays(content: ContentSpace) -> dict[str, np.ndarray]:
    """Arrays of the content space. Channels are in half precision: they are compared only, not searched."""
    arrays: dict[str, np.ndarray] = {}
    for name, channel in content.channels.items():
        arrays[f"channel.{name}"] = channel.vectors.astype(np.float16)
        arrays[f"present.{name}"] = channel.present
    for i, affine in enumerate(content.alignment.maps.values() if content.alignment else ()):
        arrays |= {f"map.{i}.mean": affine.mean, f"map.{i}.weight": np.ascontiguousarray(affine.weight)}
    return arrays


def _load_content(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> ContentSpace:
    space, alignment = SpaceKey(**facts["space"]), None
    if facts["maps"]:
        maps = {
            SpaceKey(**key): AffineMap(arrays[f"map.{i}.mean"], arrays[f"map.{i}.weight"])
            for i, key in enumerate(facts["maps"])
        }
        alignment = Alignment(maps, tuple(facts["nested"]))
        same_space(alignment.space, space, CONTENT)
    channels = {
        name: Embedded(space, arrays[f"channel.{name}"].astype(np.float32), arrays[f"present.{name}"])
        for name in facts["channels"]
    }
    return ContentSpace(space, alignment, channels)


def _sha256(file: Path) -> str:
    """SHA-256 of a file, in hex. Cached by path, inode, size and modification time."""
    stat = file.stat()
    return _sha256_of_version(file, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(1024)
def _sha256_of_version(file: Path, *version: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
