"""FAISS behind `Retriever`: every kind of search that a configuration can name.

Every kind but `exact` adds a structure over the vectors (`kinds.RETRIEVER_KINDS`). A search then compares a part of
the vectors only. Brute force over the allowed items replaces the structure where a filter allows few items, and
answers the queries for which the structure finds fewer than k.
"""

import json
import logging
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.content.spaces import SpaceKey, same_space
from features.errors import BundleError, ConfigError, describe_read_error
from features.interactions import Ragged
from recsys.config import RetrieverConfig
from recsys.interfaces import Candidates, in_slices, sort_candidates
from recsys.retrieval.kinds import RETRIEVER_KINDS, faiss

logger = logging.getLogger("recsys.retrieval.index")


BRUTE_FORCE_MAX = 50_000
"""Up to this many items (in all, or allowed by a filter) are searched by brute force: no structure is faster."""

GPU_BRUTE_FORCE_MAX = 1000
"""Up to this many items are searched by brute force on a GPU: training lists and codes takes more vectors."""

MATRIX_BATCH = 20
"""From this many queries on, faiss multiplies matrices. Copying the allowed vectors is then worth its cost."""

faiss.cvar.distance_compute_blas_threshold = MATRIX_BATCH
"""The default of faiss 1.15 is 128,000, with which a batch of 64 queries takes twelve times as long."""

SAMPLE_PER_LIST = 16
"""Approximate number of items sampled for each list; the sample estimates how many of a list a filter allows."""

GPU_MAX_RESULTS = 2048
"""Largest k of a faiss search on a GPU."""


class _ShapeError(ValueError):
    """An array that is not the one that a file of an index has. Its text is ours."""


class Index:
    """Finds the items of largest inner product with queries, over unit vectors (n, d).

    vectors: the vectors as given, possibly mapped from a file; note: why another kind than the configured one is in
    use, "" where the configured one is.
    """

    def __init__(self, vectors: Floats, config: RetrieverConfig | None = None, *, seed: int = 0) -> None:
        """Build over vectors (n, d) float32.

        Raises ValueError when a vector is not finite, ConfigError when config.dimensions is more than d.
        """
        if not np.isfinite(vectors).all():
            raise ValueError(f"{(~np.isfinite(vectors)).any(1).sum()} of {len(vectors)} vectors are not finite")
        self._configure(np.ascontiguousarray(vectors, dtype=np.float32), config or RetrieverConfig())
        self._attach(RETRIEVER_KINDS[self.kind].build(self._searched, seed) if self._needs_structure else None)

    def _configure(self, vectors: Floats, config: RetrieverConfig) -> None:
        self.vectors, self.config = vectors, config
        self.kind, self.note = config.kind.removeprefix("gpu-"), ""
        self._searched = vectors  # (n, config.dimensions or d)
        if config.dimensions is not None and config.dimensions != vectors.shape[1]:
            if config.dimensions > vectors.shape[1]:
                raise ConfigError(
                    f"retriever.dimensions is {config.dimensions}, but vectors have {vectors.shape[1]}: lower it"
                )
            self._searched = np.ascontiguousarray(vectors[:, : config.dimensions])

    @property
    def _needs_structure(self) -> bool:
        """Whether the kind adds a structure to the vectors: up to a size, brute force searches every kind."""
        brute_force_max = GPU_BRUTE_FORCE_MAX if self.config.kind.startswith("gpu-") else BRUTE_FORCE_MAX
        return self.kind != "exact" and len(self) > brute_force_max

    def _attach(self, structure: Any) -> None:
        """Set the structure that is searched; copy it to the GPU where the kind asks for one and one is available."""
        self._built, self._structure, self._on_gpu = structure, structure, False
        kind = RETRIEVER_KINDS.get(self.kind)  # None: exact
        lists = structure.nlist if kind is not None and kind.has_lists and structure is not None else 0
        # the more lists there are, the smaller the share of the items that one list holds
        effort = self.config.effort or max(0 if kind is None else kind.default_effort, lists // 64)
        self._effort = min(effort, lists) if lists else effort
        self._rescored = self._searched is not self.vectors or (kind is not None and kind.compressed)
        if self.config.kind.startswith("gpu-"):
            if faiss.get_num_gpus() > 0:  # without a GPU, index_cpu_to_gpu returns an empty index and no error
                if structure is None:
                    structure = faiss.IndexFlatIP(self._searched.shape[1])
                    structure.add(self._searched)
                elif lists:
                    structure.nprobe = self._effort
                self._gpu = faiss.StandardGpuResources()  # must outlive the index on the GPU
                self._gpu_lock = Lock()  # faiss: one thread at a time may search an index on a GPU
                self._structure, self._on_gpu = faiss.index_cpu_to_gpu(self._gpu, 0, structure), True
            else:
                self.note = f"no GPU is available: retriever {self.config.kind} runs as {self.kind} on the CPU"
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
        """See `Retriever`. A search of k + e items, e the most that one query excludes, drops the excluded ones.

        Raises ValueError on queries that are not finite (faiss returns -1 for them, without an error).
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)  # (b, d)
        if not np.isfinite(queries).all():
            raise ValueError(f"{(~np.isfinite(queries)).any(1).sum()} of {len(queries)} queries are not finite")
        n_allowed = len(self) if allow is None else int(np.count_nonzero(allow))
        if n_allowed == len(self):
            allow = None
        n_excluded = 0 if exclude is None else int(exclude.lengths.max(initial=0))
        depth = min(k + n_excluded, n_allowed)
        if depth == 0 or len(queries) == 0:
            return empty_candidates(len(queries), k)
        if (self._structure is None and not self._rescored) or (n_allowed <= BRUTE_FORCE_MAX and not self._on_gpu):
            found = brute_force(queries, self.vectors, depth, allow)
            return drop_excluded(found, exclude, k)
        found = drop_excluded(self._by_structure(queries, depth, allow, n_allowed), exclude, k)  # (b, k)
        underfilled = np.flatnonzero((found.rows < 0).any(1))  # queries with fewer than k: few allowed or compared
        if len(underfilled) and n_allowed > 0:
            exact = brute_force(queries[underfilled], self.vectors, depth, allow)
            exact = drop_excluded(exact, None if exclude is None else exclude[underfilled], k)
            found.rows[underfilled], found.scores[underfilled] = exact.rows, exact.scores
        return found

    def _by_structure(self, queries: Floats, k: int, allow: Bools | None, n_allowed: int) -> Candidates:
        """The items that the structure finds: (b, k), or fewer, padded."""
        n_candidates = min(k * self.config.refine, n_allowed) if self._rescored else k
        cut = queries  # (b, config.dimensions or d)
        if self._searched is not self.vectors:
            cut = np.ascontiguousarray(queries[:, : self._searched.shape[1]])
        if self._structure is None:  # brute force over the first dimensions
            found = brute_force(cut, self._searched, n_candidates, allow, in_order=False)
        elif self._on_gpu:
            found = self._by_gpu(cut, n_candidates, allow, n_allowed)
        elif not RETRIEVER_KINDS[self.kind].has_lists:
            found = self._by_graph(cut, n_candidates, allow, n_allowed)
        elif allow is None:
            scores, rows = self._structure.search(cut, n_candidates, params=self._parameters(self._effort, None))
            found = Candidates(rows, scores)
        else:
            found = self._by_lists(cut, n_candidates, allow, n_allowed)
        if self._rescored:
            return self._rescore(queries, found.rows, k)
        found.scores[found.rows < 0] = -np.inf
        return found

    def _by_graph(self, queries: Floats, k: int, allow: Bools | None, n_allowed: int) -> Candidates:
        """Search a graph, comparing at least as many candidates as are asked for: (b, k)."""
        if allow is None:
            parameters = self._parameters(max(self._effort, k), None)
        else:
            # the fewer items a filter allows, the more candidates: effort * sqrt(n / allowed)
            effort = min(len(self), int(self._effort * (len(self) / n_allowed) ** 0.5) + 1)
            bits = np.packbits(allow, bitorder="little")  # referenced until faiss has read it
            parameters = self._parameters(max(effort, k), faiss.IDSelectorBitmap(bits))
        scores, rows = self._structure.search(queries, k, params=parameters)
        return Candidates(rows, scores)

    def _by_lists(self, queries: Floats, k: int, allow: Bools, n_allowed: int) -> Candidates:
        """Search inverted lists, each query's nearest first, until they hold enough allowed items: (b, k).

        e = effort, f = n_allowed / n, s = sampled items, L = lists. A query searches lists until they hold
        t = e (s / L) f^0.25 allowed items of the sample. A random filter allows f s / L of them in each list, so a
        query searches e f^-0.75 lists. Where its nearest m > e f^-0.75 lists are needed to hold t, the allowed items
        are far from the query, in many directions: t is then multiplied by sqrt(m f^0.75 / e).
        """
        centres, sample, list_of_sample = self._lists  # (L, d), (s,), (s,)
        share = n_allowed / len(self)  # f
        nearness = queries @ centres.T  # (b, L)
        order = np.argsort(-nearness, axis=1)  # (b, L)
        allowed_in_list = np.bincount(list_of_sample[allow[sample]], minlength=len(centres))  # (L,)
        # (b, L): allowed items of the sample in a query's nearest list, nearest two, ...
        allowed_so_far = np.cumsum(allowed_in_list[order], axis=1)
        target = self._effort * len(sample) / len(centres) * share**0.25  # t
        lists = (allowed_so_far < target).sum(axis=1)  # (b,): m
        expansion = np.maximum(1, lists * share**0.75 / self._effort) ** 0.5  # (b,)
        lists = np.maximum(self._effort, (allowed_so_far < target * expansion[:, None]).sum(axis=1) + 1)  # (b,)
        n_lists = min(int(lists.max()), len(centres))
        nearness = np.ascontiguousarray(np.take_along_axis(nearness, order[:, :n_lists], 1))  # (b, n_lists)
        order = np.where(np.arange(n_lists) < lists[:, None], order[:, :n_lists], -1)  # -1: not searched
        bits = np.packbits(allow, bitorder="little")  # referenced until faiss has read it
        parameters = self._parameters(n_lists, faiss.IDSelectorBitmap(bits))
        found, pointer = _empty(len(queries), k), faiss.swig_ptr
        self._structure.search_preassigned_c(  # faiss's own wrapper takes no parameters
            *(len(queries), pointer(queries), k, pointer(order), pointer(nearness)),
            *(pointer(found.scores), pointer(found.rows), False, parameters),
        )
        return found

    @cached_property
    def _lists(self) -> tuple[Floats, Ints, Ints]:
        """Centres (L, d) of the lists; rows (s,) of a sample of the items; the list (s,) of each sampled item."""
        n_lists, lists = self._structure.nlist, self._structure.invlists
        step = max(1, len(self) // (SAMPLE_PER_LIST * n_lists))  # every step-th item of a list is sampled
        sizes = [lists.list_size(i) for i in range(n_lists)]
        rows = [faiss.rev_swig_ptr(lists.get_ids(i), size)[::step].copy() for i, size in enumerate(sizes) if size]
        list_of_row = np.repeat(np.arange(n_lists), [-(-size // step) for size in sizes])  # ceil(size / step) rows
        return self._structure.quantizer.reconstruct_n(0, n_lists), np.concatenate(rows), list_of_row

    def _by_gpu(self, queries: Floats, k: int, allow: Bools | None, n_allowed: int) -> Candidates:
        """Search on the GPU: (b, k). faiss has no filter there: search deeper, then drop what is not allowed."""
        depth = k if allow is None else int(1.5 * k * len(self) / n_allowed) + 1
        with self._gpu_lock:
            scores, rows = self._structure.search(queries, min(depth, GPU_MAX_RESULTS, len(self)))
        if allow is not None:
            rows[~allow[rows]] = -1
        return sort_candidates(rows, scores, k)

    def _rescore(self, queries: Floats, rows: Ints, k: int) -> Candidates:
        """The k best of rows (b, w), by inner products of queries (b, d) with all d dimensions."""
        found = _empty(len(queries), min(k, rows.shape[1]))
        pointer = faiss.swig_ptr
        faiss.knn_inner_products_by_idx(
            *(pointer(queries), pointer(self.vectors), pointer(np.ascontiguousarray(rows))),
            *(self.dimension, len(queries), len(self), rows.shape[1], found.rows.shape[1]),
            *(pointer(found.scores), pointer(found.rows), rows.shape[1]),
        )
        found.scores[found.rows < 0] = -np.inf
        return found

    def _parameters(self, effort: int, selector: Any) -> Any:
        """Search parameters of faiss. selector: the allowed items, None for all."""
        return RETRIEVER_KINDS[self.kind].parameters(effort, selector)

    def save(self, path: Path, space: SpaceKey) -> None:
        """Write path.npy (vectors), path.json (their space and the configuration) and path.faiss (the structure)."""
        header = {"space": vars(space), "retriever": self.config.model_dump()}
        path.with_suffix(".json").write_text(json.dumps(header))
        np.save(path.with_suffix(".npy"), self.vectors)
        if self._built is not None:
            faiss.write_index(self._built, str(path.with_suffix(".faiss")))

    @classmethod
    def load(cls, path: Path, space: SpaceKey) -> "Index":
        """Read what `save` wrote. Vectors and structure are memory-mapped: their files must not change.

        Raises BundleError when a file is truncated or not such an index, SpaceError when its vectors are in another
        space. Verify checksums first: this method does not detect flipped bits.
        """
        file = path.with_suffix(".json")
        try:
            header = json.loads(file.read_text())
            saved_space, config = SpaceKey(**header["space"]), RetrieverConfig.model_validate(header["retriever"])
            same_space(saved_space, space, str(file))
            file = path.with_suffix(".npy")
            # copy-on-write: torch needs writable arrays
            vectors = np.asarray(np.load(file, mmap_mode="c", allow_pickle=False))
            if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != space.dimension:
                raise _ShapeError(f"{vectors.dtype} of shape {vectors.shape}, not float32 (n, {space.dimension})")
            self = cls.__new__(cls)
            self._configure(vectors, config)
            file, structure = path.with_suffix(".faiss"), None
            if self._needs_structure:
                structure = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
                if (structure.ntotal, structure.d) != self._searched.shape:
                    raise _ShapeError(
                        f"{structure.ntotal} vectors of {structure.d} dimensions, not {self._searched.shape}"
                    )
        except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError) as error:
            why = str(error) if isinstance(error, _ShapeError) else describe_read_error(error)
            raise BundleError(f"{file}: no index can be read from it: {why}; train again") from error
        self._attach(structure)
        return self


def empty_candidates(b: int, k: int) -> Candidates:
    """(b, k) candidates, all padding."""
    return Candidates(np.full((b, k), -1, dtype=np.int64), np.full((b, k), -np.inf, dtype=np.float32))


def drop_excluded(found: Candidates, exclude: Ragged | None, k: int) -> Candidates:
    """The first k candidates of each query that it does not exclude, padded: (b, k)."""
    if exclude is None:
        return found if found.rows.shape[1] == k else sort_candidates(found.rows, found.scores, k)
    excluded = in_slices(exclude, np.arange(len(found))[:, None], found.rows)
    return found.where((found.rows >= 0) & ~excluded, k)


def _empty(b: int, k: int) -> Candidates:
    """(b, k) candidates, uninitialised: faiss writes into them."""
    return Candidates(np.empty((b, k), dtype=np.int64), np.empty((b, k), dtype=np.float32))


def brute_force(
    queries: Floats, vectors: Floats, k: int, allow: Bools | None = None, *, in_order: bool = True
) -> Candidates:
    """The k vectors (n, d) of largest inner product with each of queries (b, d), exactly: (b, k).

    k is at most the number of allowed vectors. in_order False: candidates that are rescored later come by row, and
    their scores are undefined.

    For few queries numpy's product is twice as fast as faiss. For many, faiss is faster.
    """
    n = len(vectors)
    found = _empty(len(queries), k)
    if len(queries) < MATRIX_BATCH and (allow is None or 2 * int(np.count_nonzero(allow)) > n):
        products = (vectors @ queries.T).T.copy()  # (b, n): the vectors are read from memory once
        for i, scores in enumerate(products):
            if allow is not None:
                scores[~allow] = -np.inf
            best = np.argpartition(scores, n - k)[n - k :]  # (k,), in no order
            if in_order:
                found.rows[i] = best[np.argsort(-scores[best], kind="stable")]
                found.scores[i] = scores[found.rows[i]]
            else:  # by row: rescoring then reads the vectors in order
                found.rows[i] = np.sort(best)
        return found
    if allow is None:
        _inner_products(queries, vectors, found, None)
        return found
    rows = np.flatnonzero(allow)  # (allowed,)
    if len(queries) < MATRIX_BATCH:
        _inner_products(queries, vectors, found, faiss.IDSelectorArray(rows))
        return found
    _inner_products(queries, vectors[rows], found, None)
    return Candidates(rows[found.rows], found.scores)


def _inner_products(queries: Floats, vectors: Floats, found: Candidates, selector: Any) -> None:
    """Write the best of all vectors, or of the selected ones, into `found`. vectors may be a memory map."""
    pointer = faiss.swig_ptr
    faiss.knn_inner_product(
        *(pointer(queries), pointer(vectors), vectors.shape[1], len(queries), len(vectors), found.rows.shape[1]),
        *(pointer(found.scores), pointer(found.rows), selector),
    )
