"""Kinds of retrievers: the faiss structure that each adds over the vectors. The only file that imports faiss.

To add a kind: one entry in `RETRIEVER_KINDS`, and its name in `recsys.config.RetrieverConfig.kind`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from features.arrays import Floats
from features.errors import DependencyError, missing_package


def check_faiss() -> None:
    """Check that exactly one faiss wheel is installed: faiss-cpu and faiss-gpu overwrite each other's folder.

    Raises DependencyError, which says what to install or remove, when none or both are installed.
    """
    wheels = [name for name in ("faiss-cpu", "faiss-gpu") if any(metadata.distributions(name=name))]
    if not wheels:
        raise missing_package("retrieval", "faiss", "cpu` (or, with CUDA 12.6 or newer, `gpu")
    if len(wheels) > 1:
        raise DependencyError(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other: "
            "pip uninstall -y faiss-cpu faiss-gpu, then install the extra `cpu` or the extra `gpu`"
        )


check_faiss()
import faiss as _faiss  # noqa: E402  (the check gives a clearer message than ImportError)

faiss: Any = _faiss
"""Untyped: the type stubs of faiss lack half of its names."""

GRAPH_LINKS, GRAPH_BUILD_CANDIDATES = 32, 80
"""HNSW: links of each item (M), and candidates compared while the graph is built (efConstruction)."""

TRAINING_VECTORS_PER_LIST = 64
"""Vectors for each inverted list that k-means learns the centres from."""

DIMENSIONS_PER_BYTE = 4
"""Dimensions that one byte of a product-quantised vector encodes."""


@dataclass(frozen=True)
class RetrieverKind:
    """How one kind is built and searched.

    build: the faiss index over vectors (n, d), from (vectors, seed); parameters: search parameters of faiss, from
    (effort, selector of the allowed items or None); default_effort: `RetrieverConfig.effort` where it is not given;
    has_lists: inverted lists, which a filter searches list by list, else a graph; compressed: vectors are stored
    approximately, so candidates are rescored.
    """

    build: Callable[[Floats, int], Any]
    parameters: Callable[[int, Any], Any]
    default_effort: int
    has_lists: bool
    compressed: bool = False


def _build_graph(vectors: Floats, seed: int) -> Any:
    graph = faiss.IndexHNSWFlat(vectors.shape[1], GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = GRAPH_BUILD_CANDIDATES
    graph.add(vectors)
    return graph


def _build_lists(vectors: Floats, seed: int) -> Any:
    n, d = vectors.shape
    lists = _n_lists(n)
    return _trained(faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT), vectors, seed)


def _build_quantised_lists(vectors: Floats, seed: int) -> Any:
    n, d = vectors.shape
    bits = 8 if n >= 256 * 39 else 4  # faiss trains a code of b bits on at least 39 * 2^b vectors
    pieces = next(pieces for pieces in range(max(1, d // DIMENSIONS_PER_BYTE), 0, -1) if d % pieces == 0)
    centres = faiss.IndexFlatIP(d)
    index = faiss.IndexIVFPQ(centres, d, _n_lists(n), pieces, bits, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.seed = seed
    return _trained(index, vectors, seed)


def _n_lists(n: int) -> int:
    """About 4 sqrt(n) lists, a power of two, of at least 40 vectors."""
    return max(1, min(int(2 ** np.round(np.log2(4 * np.sqrt(max(n, 1))))), n // 40))


def _trained(index: Any, vectors: Floats, seed: int) -> Any:
    """The index of inverted lists with centres learnt from a sample of the vectors, and all vectors added."""
    index.cp.seed, index.cp.max_points_per_centroid = seed, TRAINING_VECTORS_PER_LIST
    index.cp.min_points_per_centroid = 1
    size = max(TRAINING_VECTORS_PER_LIST * index.nlist, 256 * 256)
    sample = np.random.default_rng(seed).permutation(len(vectors))[:size]
    index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    index.add(vectors)
    return index


def _graph_parameters(effort: int, selector: Any) -> Any:
    return faiss.SearchParametersHNSW(efSearch=effort, sel=selector)


def _list_parameters(effort: int, selector: Any) -> Any:
    return faiss.SearchParametersIVF(nprobe=effort, sel=selector)


RETRIEVER_KINDS = {
    "hnsw": RetrieverKind(_build_graph, _graph_parameters, 512, has_lists=False),
    "ivf-flat": RetrieverKind(_build_lists, _list_parameters, 64, has_lists=True),
    "ivf-pq": RetrieverKind(_build_quantised_lists, _list_parameters, 64, has_lists=True, compressed=True),
}
"""By kind; `exact` has none."""
