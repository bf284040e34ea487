"""A bundle: everything a run leaves for the service, in one immutable, fingerprinted folder.

Written under a temporary name, synced, renamed; read only after every checksum has held. Safetensors, parquet, JSON,
faiss's and LightGBM's own formats: nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file as save_weights

from features.catalog import Catalog
from features.errors import BundleError
from features.ids import IdMap
from features.interactions import Bools, Ints, Ragged
from features.schema import ITEM, DataConfig
from features.spaces import Embedded, SpaceKey, same_space
from recsys.alignment import Alignment, Map
from recsys.baselines.popular import Popular
from recsys.candidates import Candidates, Floats
from recsys.content_space import ContentSpace
from recsys.index import ExactIndex
from recsys.recommender import TwoStage, side_by_side, widened
from recsys.reranker import PairFeatures, Reranker
from recsys.settings import TowerConfig
from recsys.statistics import ItemStatistics
from recsys.towers import TwoTowers

FORMAT = 4
"""Rises when an older version could not read what is written."""

MANIFEST, ITEMS, ARRAYS, TOWERS, INDEX, RERANKER, CONTENT = (
    "manifest.json",
    "items.parquet",
    "arrays.safetensors",
    "towers.safetensors",
    "index.faiss",
    "reranker.txt",
    "content.safetensors",
)
_CATALOG = ("categories", "price", "available", "published", "has_content")
_STATISTICS = ("total", "recent", "newest", "last")
_SPARSE = ("data", "indices", "indptr")
_UNFIT = (
    *(AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, pl.exceptions.PolarsError),
)
"""What reading raises of parts that are whole, and are not what the manifest says."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    manifest: format, fingerprint, config, hashes of data and split, code version, seed, metrics, and the SHA-256 of
    every file.
    """

    path: Path
    manifest: dict[str, Any]
    catalog: Catalog
    recommender: TwoStage
    content: ContentSpace | None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything in the manifest, and by it over every file."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def data(self) -> DataConfig:
        """What events mean, and which placements there are."""
        return DataConfig.model_validate(self.manifest["config"]["data"])

    @cached_property
    def popular(self) -> Ints:
        """(n,) int64 rows, the most popular first."""
        return np.argsort(-self.recommender.fallback.popularity, kind="stable").astype(np.int64)

    def similar(self, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Candidates:
        """The k items nearest to each of rows (b,), themselves left out unless `exclude` says otherwise."""
        own = Ragged(rows, np.arange(len(rows)), np.arange(1, len(rows) + 1)) if exclude is None else exclude
        asked = widened(self.recommender.vectors[rows], self.recommender.index)
        return self.recommender.index.search(asked, k, allow=allow, exclude=own)

    def search(self, content: Floats, k: int, *, allow: Bools | None = None) -> Candidates:
        """The k items nearest to each of some contents (b, m) of the bundle's space; those without any last."""
        nothing = np.zeros((len(content), self.recommender.vectors.shape[1]), dtype=np.float32)
        return self.recommender.index.search(side_by_side(nothing, content), k, allow=allow)


def save_bundle(
    root: Path,
    catalog: Catalog,
    recommender: TwoStage,
    statistics: ItemStatistics,
    facts: dict[str, Any],
    content: ContentSpace | None = None,
) -> Path:
    """Write a bundle below root and return its folder, named by its fingerprint.

    facts: what the manifest records beside the files (config, hashes, code version, seed, metrics), as plain JSON;
    content: where the items' contents lie, None where they have none.
    A crash at any moment leaves at most a folder or link whose name begins with `.writing-`: it is never read, and
    the next call removes it when the process that made it is gone.
    """
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".writing-*"):
        if not Path(f"/proc/{left.name.split('-')[1]}").exists():
            left.unlink() if left.is_symlink() else shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=f".writing-{os.getpid()}-", dir=root))
    reranker = recommender.reranker
    catalog.frame.write_parquet(folder / ITEMS)
    arrays = {name: getattr(catalog, name) for name in _CATALOG}
    arrays |= {f"statistics.{name}": getattr(statistics, name) for name in _STATISTICS}
    arrays["popularity"] = recommender.fallback.popularity
    if isinstance(reranker, Reranker):
        arrays |= {f"neighbours.{name}": getattr(reranker.features.neighbours, name) for name in _SPARSE}
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / ARRAYS)
    save_weights({name: t.contiguous() for name, t in recommender.towers.state_dict().items()}, folder / TOWERS)
    ExactIndex(side_by_side(recommender.vectors, catalog.content)).save(folder / INDEX)
    if content is not None:
        save_file(_content_arrays(content), folder / CONTENT)
    if isinstance(reranker, Reranker):
        reranker.save(folder / RERANKER)
    manifest = facts | {
        "format": FORMAT,
        "towers": recommender.towers.config.model_dump(),
        "candidates": recommender.candidates,
        "fitted_until": recommender.fitted_until,
        "statistics_until": statistics.fitted_until,
        "category_names": list(catalog.category_names),
        "content": None if content is None else _content_facts(content),
        "files": {
            file.name: {"sha256": _sha256(file), "bytes": file.stat().st_size} for file in sorted(folder.iterdir())
        },
    }
    manifest["fingerprint"] = _fingerprint(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)
    final = root / str(manifest["fingerprint"])
    if final.exists():  # the same bytes were written before
        shutil.rmtree(folder)
    else:
        folder.rename(final)
    _sync(root)
    return final


def publish(bundle: Path) -> None:
    """Point `current` beside the bundle at it, in one step."""
    link = bundle.parent / f".writing-{os.getpid()}-current"
    link.unlink(missing_ok=True)
    link.symlink_to(bundle.name)
    link.replace(bundle.parent / "current")
    _sync(bundle.parent)


def current(root: Path) -> Path:
    """The folder that root/current points at. Raises BundleError when there is none."""
    link = root / "current"
    if not link.is_symlink():
        raise BundleError(f"{link}: no bundle is published there; run `recsys train CONFIG` first")
    return root / link.readlink()


def load_bundle(path: Path) -> Bundle:
    """Verify every file and load.

    Raises BundleError naming the file that is missing, truncated, tampered with or of another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST}: cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise BundleError(f"{path / MANIFEST}: format {found!r}, this version reads {FORMAT}; train again")
    if manifest.get("fingerprint") != _fingerprint(manifest):
        raise BundleError(f"{path / MANIFEST}: does not match its own fingerprint {manifest.get('fingerprint')!r}")
    try:
        _verify(path, manifest["files"])
        return _load(path, manifest)
    except _UNFIT as error:
        raise BundleError(f"{path}: its parts do not fit together: {error!r}; train again") from error


def _verify(path: Path, files: dict[str, Any]) -> None:
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"{file}: missing, though the manifest lists it")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise BundleError(
                f"{file}: {file.stat().st_size} bytes with another SHA-256 than the manifest's "
                f"({expected['bytes']} bytes): truncated or tampered with; restore it or train again"
            )


def _load(path: Path, manifest: dict[str, Any]) -> Bundle:
    arrays = load_file(path / ARRAYS)
    frame = pl.read_parquet(path / ITEMS)
    towers_config = TowerConfig.model_validate(manifest["towers"])
    index = ExactIndex.load(path / INDEX)
    stored, d = index.vectors, towers_config.dimension
    if stored.shape[1] <= d:
        raise ValueError(f"vectors of {stored.shape[1]} dimensions in the index, {d} by the towers alone")
    vectors, content_vectors = np.ascontiguousarray(stored[:, :d]), np.ascontiguousarray(stored[:, d:])
    catalog = Catalog(
        ids=IdMap(tuple(frame.get_column(ITEM).to_list())),
        frame=frame,
        category_names=tuple(manifest["category_names"]),
        content=content_vectors,
        **{name: arrays[name] for name in _CATALOG},
    )
    statistics = ItemStatistics(manifest["statistics_until"], *(arrays[f"statistics.{name}"] for name in _STATISTICS))
    weights = load_weights(path / TOWERS)
    towers = TwoTowers(catalog, statistics, towers_config)
    towers.load_state_dict(weights)
    towers.eval()
    reranker = None
    if RERANKER in manifest["files"]:
        neighbours = sp.csr_array(tuple(arrays[f"neighbours.{name}"] for name in _SPARSE), shape=(len(vectors),) * 2)
        reranker = Reranker.load(path / RERANKER, PairFeatures(catalog, vectors, statistics, neighbours))
    fitted_until = manifest["fitted_until"]
    recommender = TwoStage(
        towers=towers,
        vectors=vectors,
        index=index,
        fallback=Popular(arrays["popularity"], fitted_until),
        reranker=reranker,
        candidates=manifest["candidates"],
        fitted_until=fitted_until,
    )
    content = None
    if manifest["content"] is not None:
        content = _content(manifest["content"], load_file(path / CONTENT))
    return Bundle(path, manifest, catalog, recommender, content)


def _content_facts(content: ContentSpace) -> dict[str, Any]:
    alignment = content.alignment
    return {
        "space": asdict(content.space),
        "channels": list(content.channels),
        "maps": [] if alignment is None else [asdict(key) for key in alignment.maps],
        "nested": [] if alignment is None else list(alignment.nested),
    }


def _content_arrays(content: ContentSpace) -> dict[str, np.ndarray]:
    """Channels in half precision: they are compared with each other, not searched."""
    arrays: dict[str, np.ndarray] = {}
    for name, channel in content.channels.items():
        arrays[f"channel.{name}"] = channel.vectors.astype(np.float16)
        arrays[f"present.{name}"] = channel.present
    for i, one in enumerate(content.alignment.maps.values() if content.alignment else ()):
        arrays |= {f"map.{i}.mean": one.mean, f"map.{i}.weight": np.ascontiguousarray(one.weight)}
    return arrays


def _content(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> ContentSpace:
    space, alignment = SpaceKey(**facts["space"]), None
    if facts["maps"]:
        maps = {
            SpaceKey(**key): Map(arrays[f"map.{i}.mean"], arrays[f"map.{i}.weight"])
            for i, key in enumerate(facts["maps"])
        }
        alignment = Alignment(maps, tuple(facts["nested"]))
        same_space(alignment.space, space, CONTENT)
    channels = {
        name: Embedded(space, arrays[f"channel.{name}"].astype(np.float32), arrays[f"present.{name}"])
        for name in facts["channels"]
    }
    return ContentSpace(space, alignment, channels)


def _fingerprint(manifest: dict[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
