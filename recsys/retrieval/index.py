"""FAISS behind `Retriever`: every kind of search that a configuration can name. The only file that imports faiss.

A kind is a structure over the vectors (a graph, or lists of neighbours) that looks at a part of them only. What it
finds is as good as what was asked for: where a filter leaves few items, or a structure finds too few, the items that
are allowed are compared one by one.
"""

import json
import logging
from functools import cached_property
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.content.spaces import SpaceKey, same_space
from features.errors import BundleError, ConfigError, DependencyError
from features.interactions import Ragged
from recsys.config import RetrieverConfig
from recsys.interfaces import Candidates, sort_candidates

logger = logging.getLogger("recsys.retrieval.index")


def check_faiss() -> None:
    """Exactly one faiss wheel must be installed: faiss-cpu and faiss-gpu overwrite each other's folder.

    Raises DependencyError saying what to install or remove.
    """
    wheels = [name for name in ("faiss-cpu", "faiss-gpu") if any(metadata.distributions(name=name))]
    if not wheels:
        raise DependencyError("no faiss is installed: pip install 'recsys[cpu]' (or 'recsys[gpu]' with CUDA 12.6+)")
    if len(wheels) > 1:
        raise DependencyError(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other: "
            "pip uninstall -y faiss-cpu faiss-gpu, then pip install 'recsys[cpu]' or 'recsys[gpu]'"
        )


check_faiss()
import faiss as _faiss  # noqa: E402  (the check explains what an ImportError here would not)

faiss: Any = _faiss
"""Its type stubs lack half of it."""

BRUTE_FORCE_MAX = 50_000
"""So many items, all there are or all that a filter leaves, are compared one by one: no structure is faster."""

GPU_BRUTE_FORCE_MAX = 1000
"""So many, too, are compared one by one on a GPU: lists and codes are learned from more."""

MATRIX_BATCH = 20
"""Queries for which faiss multiplies matrices: then it is worth to copy what a filter leaves."""

faiss.cvar.distance_compute_blas_threshold = MATRIX_BATCH
"""faiss 1.15 comes with 128,000: a batch of 64 then takes twelve times as long."""

DEFAULT_EFFORT = {"hnsw": 512, "ivf-flat": 64, "ivf-pq": 64}
"""What `RetrieverConfig.effort` is where it is not given."""

GRAPH_LINKS, GRAPH_BUILD_CANDIDATES = 32, 80
"""Of a graph: neighbours of each item, and candidates looked at while it is built."""

TRAINING_VECTORS_PER_LIST = 64
"""Vectors for each list that the lists' centres are learned from."""

SAMPLE_PER_LIST = 16
"""Items of a list, about, by which a filter's share of the list is estimated."""

DIMENSIONS_PER_BYTE = 4
"""Dimensions that one byte of a compressed vector stands for."""

GPU_MAX_RESULTS = 2048
"""Results that faiss gives on a GPU at most."""


class Index:
    """The items nearest to queries by inner product, over unit vectors (n, d).

    vectors: as they were given, perhaps mapped from a file; note: why the kind in use is not the one that was asked
    for, "" where it is.
    """

    def __init__(self, vectors: Floats, config: RetrieverConfig | None = None, *, seed: int = 0) -> None:
        """Build over vectors (n, d) float32. Raises ValueError when they are not finite, ConfigError when
        config.dimensions are more than d."""
        if not np.isfinite(vectors).all():
            raise ValueError(f"{(~np.isfinite(vectors)).any(1).sum()} of {len(vectors)} vectors are not finite")
        self._open(np.ascontiguousarray(vectors, dtype=np.float32), config or RetrieverConfig())
        self._place(_build(self.kind, self._short, seed) if self._structured else None)

    def _open(self, vectors: Floats, config: RetrieverConfig) -> None:
        self.vectors, self.config = vectors, config
        self.kind, self.note = config.kind.removeprefix("gpu-"), ""
        self._short = vectors
        if config.dimensions is not None and config.dimensions != vectors.shape[1]:
            if config.dimensions > vectors.shape[1]:
                raise ConfigError(
                    f"retriever.dimensions is {config.dimensions}, but vectors have {vectors.shape[1]}: take fewer"
                )
            self._short = np.ascontiguousarray(vectors[:, : config.dimensions])

    @property
    def _structured(self) -> bool:
        """Whether there is more than vectors: what is compared one by one anyway needs no structure."""
        least = GPU_BRUTE_FORCE_MAX if self.config.kind.startswith("gpu-") else BRUTE_FORCE_MAX
        return self.kind != "exact" and len(self) > least

    def _place(self, structure: Any) -> None:
        """Put what was built where it is searched: on a GPU where the kind asks for one and there is one."""
        self._built, self._structure, self._on_gpu = structure, structure, False
        lists = structure.nlist if self.kind.startswith("ivf") and structure is not None else 0
        effort = self.config.effort or max(
            DEFAULT_EFFORT.get(self.kind, 0), lists // 64
        )  # lists hold ever less of all
        self._effort = min(effort, lists) if lists else effort
        self._rescored = self._short is not self.vectors or self.kind == "ivf-pq"
        self._plain = self._parameters(self._effort, None)
        if self.config.kind.startswith("gpu-"):
            if faiss.get_num_gpus() > 0:  # without one, faiss's own call would give an empty index and no error
                if structure is None:
                    structure = faiss.IndexFlatIP(self._short.shape[1])
                    structure.add(self._short)
                elif lists:
                    structure.nprobe = self._effort
                self._gpu = faiss.StandardGpuResources()  # lives as long as what lies in it
                self._turn = Lock()  # faiss: an index on a GPU is searched by one thread at a time
                self._structure, self._on_gpu = faiss.index_cpu_to_gpu(self._gpu, 0, structure), True
            else:
                self.note = f"no GPU is here: retriever {self.config.kind} is searched as {self.kind} on the CPU"
                logger.warning(self.note)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        """Length of vectors and queries."""
        return int(self.vectors.shape[1])

    def search(
        self, queries: Floats, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """See `Retriever`. Excluded items are searched past: each query asks for as many more as it excludes.

        Raises ValueError on queries that are not finite (faiss would answer -1 without a word).
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if not np.isfinite(queries).all():
            raise ValueError("queries must be finite")
        there = len(self) if allow is None else int(np.count_nonzero(allow))
        if there == len(self):
            allow = None
        extra = 0 if exclude is None else int(exclude.lengths.max(initial=0))
        deep = min(k + extra, there)
        if deep == 0 or len(queries) == 0:
            return empty_candidates(len(queries), k)
        if (self._structure is None and not self._rescored) or (there <= BRUTE_FORCE_MAX and not self._on_gpu):
            found = brute_force(queries, self.vectors, deep, allow)
            return drop_excluded(found, exclude, k)
        found = drop_excluded(self._by_structure(queries, deep, allow, there), exclude, k)
        short = np.flatnonzero((found.rows < 0).any(1))  # as few are left of a filter, or as little was looked at
        if len(short) and there > 0:
            again = drop_excluded(
                brute_force(queries[short], self.vectors, deep, allow), None if exclude is None else exclude[short], k
            )
            found.rows[short], found.scores[short] = again.rows, again.scores
        return found

    def _by_structure(self, queries: Floats, k: int, allow: Bools | None, there: int) -> Candidates:
        """What the structure finds: k of each query or fewer, padded."""
        wide = min(k * self.config.refine, there) if self._rescored else k
        asked = queries if self._short is self.vectors else np.ascontiguousarray(queries[:, : self._short.shape[1]])
        if self._structure is None:  # the first dimensions, one by one
            found = brute_force(asked, self._short, wide, allow, in_order=False)
        elif self._on_gpu:
            found = self._by_gpu(asked, wide, allow, there)
        elif allow is None:
            parameters = self._plain if self.kind != "hnsw" else self._parameters(max(self._effort, wide), None)
            scores, rows = self._structure.search(asked, wide, params=parameters)
            found = Candidates(rows, scores)
        elif self.kind == "hnsw":
            # so much more is looked at as the filter leaves less of it
            effort = min(len(self), int(self._effort * (len(self) / there) ** 0.5) + 1)
            bits = np.packbits(allow, bitorder="little")  # kept until faiss has read it
            parameters = self._parameters(max(effort, wide), faiss.IDSelectorBitmap(bits))
            scores, rows = self._structure.search(asked, wide, params=parameters)
            found = Candidates(rows, scores)
        else:
            found = self._by_lists(asked, wide, allow, there)
        if self._rescored:
            return self._in_full(queries, found.rows, k)
        found.scores[found.rows < 0] = -np.inf
        return found

    def _by_lists(self, asked: Floats, k: int, allow: Bools, there: int) -> Candidates:
        """From as many lists, each query's nearest first, as hold enough of what a filter allows.

        A random filter leaves its share of each list, and then about effort * share^-0.75 lists are looked at. Where
        the lists nearest to a query hold less than that, what is allowed is far off, in many directions: then more of
        it is looked at as well, by the root of how many times as many lists that takes.
        """
        centres, rows, of = self._lists
        share = there / len(self)
        nearness = asked @ centres.T  # (b, lists)
        order = np.argsort(-nearness, axis=1)
        held = np.cumsum(np.bincount(of[allow[rows]], minlength=len(centres))[order], axis=1)  # of the sample
        enough = self._effort * len(rows) / len(centres) * share**0.25
        lists = (held < enough).sum(axis=1)
        further = np.maximum(1, lists * share**0.75 / self._effort) ** 0.5
        lists = np.maximum(self._effort, (held < enough * further[:, None]).sum(axis=1) + 1)
        most = min(int(lists.max()), len(centres))
        nearness = np.ascontiguousarray(np.take_along_axis(nearness, order[:, :most], 1))
        order = np.where(np.arange(most) < lists[:, None], order[:, :most], -1)
        bits = np.packbits(allow, bitorder="little")  # kept until faiss has read it
        parameters = self._parameters(most, faiss.IDSelectorBitmap(bits))
        found, at = _empty(len(asked), k), faiss.swig_ptr
        self._structure.search_preassigned_c(  # faiss's own wrapper takes no parameters
            *(len(asked), at(asked), k, at(order), at(nearness), at(found.scores), at(found.rows), False, parameters)
        )
        return found

    @cached_property
    def _lists(self) -> tuple[Floats, Ints, Ints]:
        """Centres (lists, d); rows (s,) of a sample of the items, and the list that each is in (s,)."""
        n, held = self._structure.nlist, self._structure.invlists
        step = max(1, len(self) // (SAMPLE_PER_LIST * n))
        sizes = [held.list_size(i) for i in range(n)]
        rows = [faiss.rev_swig_ptr(held.get_ids(i), size)[::step].copy() for i, size in enumerate(sizes) if size]
        of = np.repeat(np.arange(n), [-(-size // step) for size in sizes])
        return self._structure.quantizer.reconstruct_n(0, n), np.concatenate(rows), of

    def _by_gpu(self, asked: Floats, wide: int, allow: Bools | None, there: int) -> Candidates:
        """A GPU knows no filter: search deeper, and leave out what is not allowed."""
        deeper = wide if allow is None else int(1.5 * wide * len(self) / there) + 1
        with self._turn:
            scores, rows = self._structure.search(asked, min(deeper, GPU_MAX_RESULTS, len(self)))
        if allow is not None:
            rows[~allow[rows]] = -1
        return sort_candidates(rows, scores, wide)

    def _in_full(self, queries: Floats, rows: Ints, k: int) -> Candidates:
        """The k best of the rows (b, w) found for each query, by their whole vectors."""
        found = _empty(len(queries), min(k, rows.shape[1]))
        at = faiss.swig_ptr
        faiss.knn_inner_products_by_idx(
            *(at(queries), at(self.vectors), at(np.ascontiguousarray(rows))),
            *(self.dimension, len(queries), len(self), rows.shape[1], found.rows.shape[1]),
            *(at(found.scores), at(found.rows), rows.shape[1]),
        )
        found.scores[found.rows < 0] = -np.inf
        return found

    def _parameters(self, effort: int, chosen: Any) -> Any:
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=effort, sel=chosen)
        if self.kind.startswith("ivf"):
            return faiss.SearchParametersIVF(nprobe=effort, sel=chosen)
        return None

    def save(self, path: Path, space: SpaceKey) -> None:
        """Write path.npy, the vectors, path.json, their header: space and kind, and path.faiss, what was built."""
        header = {"space": vars(space), "retriever": self.config.model_dump()}
        path.with_suffix(".json").write_text(json.dumps(header))
        np.save(path.with_suffix(".npy"), self.vectors)
        if self._built is not None:
            faiss.write_index(self._built, str(path.with_suffix(".faiss")))

    @classmethod
    def load(cls, path: Path, space: SpaceKey) -> "Index":
        """Read what `save` wrote. Vectors and structure are mapped, not read: their files must not change.

        Raises BundleError when a file is no such index or truncated, SpaceError when its vectors are of another
        space. Verify a checksum before: flipped bits are not seen here.
        """
        file = path.with_suffix(".json")
        try:
            header = json.loads(file.read_text())
            there, config = SpaceKey(**header["space"]), RetrieverConfig.model_validate(header["retriever"])
            same_space(there, space, str(file))
            file = path.with_suffix(".npy")
            # copy-on-write: torch wants arrays that it may write to
            vectors = np.asarray(np.load(file, mmap_mode="c", allow_pickle=False))
            if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != space.dimension:
                raise ValueError(f"{vectors.dtype} of shape {vectors.shape}, not float32 (n, {space.dimension})")
            self = cls.__new__(cls)
            self._open(vectors, config)
            file, structure = path.with_suffix(".faiss"), None
            if self._structured:
                structure = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
                if (structure.ntotal, structure.d) != self._short.shape:
                    raise ValueError(
                        f"{structure.ntotal} vectors of {structure.d} dimensions, not {self._short.shape}"
                    )
        except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise BundleError(f"{file}: no index can be read from it: {error}") from error
        self._place(structure)
        return self


def empty_candidates(b: int, k: int) -> Candidates:
    """Padding alone."""
    return Candidates(np.full((b, k), -1, dtype=np.int64), np.full((b, k), -np.inf, dtype=np.float32))


def drop_excluded(found: Candidates, exclude: Ragged | None, k: int) -> Candidates:
    """The k first of what was found that are not excluded, padded."""
    rows, scores = found.rows, found.scores
    if exclude is not None:
        which, items = exclude.pairs()
        width = int(max(rows.max(initial=0), items.max(initial=0))) + 1
        out = np.isin(np.arange(len(rows))[:, None] * width + rows, which * width + items)
        return sort_candidates(np.where(out, -1, rows), scores, k)
    return found if rows.shape[1] == k else sort_candidates(rows, scores, k)


def _empty(b: int, k: int) -> Candidates:
    return Candidates(np.empty((b, k), dtype=np.int64), np.empty((b, k), dtype=np.float32))


def brute_force(
    queries: Floats, vectors: Floats, k: int, allow: Bools | None = None, *, in_order: bool = True
) -> Candidates:
    """The k best of vectors (n, d) for each of queries (b, d), exactly; k <= the number of allowed ones.

    in_order: whether the best has to come first; what is compared again needs no order, and gets no scores.

    For a few queries the product of matrix and vector is twice as fast as faiss, and for many faiss's of matrices.
    """
    n = len(vectors)
    found = _empty(len(queries), k)
    if len(queries) < MATRIX_BATCH and (allow is None or 2 * int(np.count_nonzero(allow)) > n):
        for i, query in enumerate(queries):
            scores = vectors @ query  # (n,)
            if allow is not None:
                scores[~allow] = -np.inf
            if in_order:
                best = np.argpartition(scores, n - k)[n - k :]
                found.rows[i] = best[np.argsort(-scores[best], kind="stable")]
                found.scores[i] = scores[found.rows[i]]
            else:  # by row: what is read again lies in order
                found.rows[i] = np.sort(np.argpartition(scores, n - k)[n - k :])
        return found
    if allow is None:
        _inner_products(queries, vectors, found, None)
        return found
    rows = np.flatnonzero(allow)
    if len(queries) < MATRIX_BATCH:
        _inner_products(queries, vectors, found, faiss.IDSelectorArray(rows))
        return found
    _inner_products(queries, vectors[rows], found, None)
    return Candidates(rows[found.rows], found.scores)


def _inner_products(queries: Floats, vectors: Floats, found: Candidates, chosen: Any) -> None:
    """Fill `found` with the best of all vectors, or of those chosen, which may lie in a mapped file."""
    at = faiss.swig_ptr
    faiss.knn_inner_product(
        *(at(queries), at(vectors), vectors.shape[1], len(queries), len(vectors), found.rows.shape[1]),
        *(at(found.scores), at(found.rows), chosen),
    )


def _build(kind: str, vectors: Floats, seed: int) -> Any:
    n, d = vectors.shape
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(d, GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = GRAPH_BUILD_CANDIDATES
        graph.add(vectors)
        return graph
    lists = max(1, min(int(2 ** np.round(np.log2(4 * np.sqrt(max(n, 1))))), n // 40))
    centres = faiss.IndexFlatIP(d)
    if kind == "ivf-flat":
        index = faiss.IndexIVFFlat(centres, d, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        bits = 8 if n >= 256 * 39 else 4  # faiss learns a code of b bits from at least 39 * 2^b vectors
        pieces = next(pieces for pieces in range(max(1, d // DIMENSIONS_PER_BYTE), 0, -1) if d % pieces == 0)
        index = faiss.IndexIVFPQ(centres, d, lists, pieces, bits, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed = seed
    index.cp.seed, index.cp.max_points_per_centroid = seed, TRAINING_VECTORS_PER_LIST
    index.cp.min_points_per_centroid = 1
    sample = np.random.default_rng(seed).permutation(n)[: max(TRAINING_VECTORS_PER_LIST * lists, 256 * 256)]
    index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    index.add(vectors)
    return index
