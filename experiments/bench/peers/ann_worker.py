"""hnswlib, ScaNN and usearch for `recsys bench retrieval`, each in its own environment; imports none of our packages.

`python -P ann_worker.py NAME FOLDER`, as `experiments/bench/retrieval/peers.py` calls it; NAME is hnswlib, scann or
usearch. It reads unit vectors, FOLDER/items.npy (n, d) and FOLDER/users.npy (q, d), and writes FOLDER/NAME.npz: rows
(q, 100), milliseconds (q,) of each query, and seconds of the build. Times are processor times of one thread. The
settings are those that reach a recall@100 of .95 on a million vectors of 128 dimensions, or come nearest below 2 ms.
"""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

K = 100
ROUNDS = 3


def hnswlib(items: Any) -> Callable[[Any], Any]:
    """A search in a graph with 32 links a node, as our hnsw index has."""
    index = import_module("hnswlib").Index(space="ip", dim=items.shape[1])
    index.init_index(len(items), M=32, ef_construction=80, random_seed=0)
    index.set_num_threads(1)
    index.add_items(items, num_threads=1)
    index.set_ef(512)
    return lambda query: index.knn_query(query[None], K, num_threads=1)[0][0]


def usearch(items: Any) -> Callable[[Any], Any]:
    """A search in a graph with 32 links a node, as our hnsw index has."""
    index = import_module("usearch.index").Index(
        ndim=items.shape[1], metric="ip", dtype="f32", connectivity=32, expansion_add=80, expansion_search=512
    )
    index.add(np.arange(len(items)), items, threads=1)
    return lambda query: index.search(query, K, threads=1).keys


def scann(items: Any) -> Callable[[Any], Any]:
    """A search with the settings that ScaNN's documentation advises: leaves in proportion to the square root of the
    number of items, codes of two dimensions, 1,000 candidates scored in full."""
    leaves = max(1, min(int(4 * len(items) ** 0.5), len(items) // 40))
    build = (
        import_module("scann").scann_ops_pybind.builder(np.asarray(items), K, "dot_product").set_n_training_threads(1)
    )
    build = build.tree(leaves, max(1, leaves * 64 // 4096), training_sample_size=min(len(items), 250_000))
    index = build.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(1000).build()
    return lambda query: index.search(query)[0]


def main(name: str, folder: Path) -> None:
    """Build the index, search once for each user and round, and write the results."""
    items, users = (
        np.load(folder / "items.npy", mmap_mode="r", allow_pickle=False),
        np.load(folder / "users.npy", allow_pickle=False),
    )
    started = time.process_time()
    search = {"hnswlib": hnswlib, "usearch": usearch, "scann": scann}[name](np.asarray(items))
    seconds = time.process_time() - started
    taken = np.empty((ROUNDS, len(users)))
    for round_ in range(-1, ROUNDS):  # round -1 warms up; the last round overwrites its times
        for i, query in enumerate(users):
            started = time.process_time()
            search(query)
            taken[round_, i] = 1000 * (time.process_time() - started)
    rows = np.full((len(users), K), -1, dtype=np.int64)
    for i, query in enumerate(users):
        result = search(query)
        rows[i, : len(result)] = result
    np.savez(folder / f"{name}.npz", rows=rows, milliseconds=np.median(taken, axis=0), seconds=seconds)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
