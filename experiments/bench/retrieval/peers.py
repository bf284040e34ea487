"""Figures of other libraries on the same items and users; each runs in its own environment."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.peers.environment import environment, quietly
from experiments.bench.retrieval.vectors import VectorDataset, recall
from features.errors import DependencyError

WORKER = Path(__file__).parents[1] / "peers" / "ann_worker.py"
PINS = {"scann": "scann==1.4.2", "usearch": "usearch==2.26.6", "hnswlib": "hnswlib==0.8.0"}
GRAPHS = {"usearch", "hnswlib"}


def measure_peers(material: VectorDataset, n: int) -> dict[str, Any]:
    """Figures of each library over n items, or the reason why it could not be measured.

    Missing environments are installed by pip.
    """
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "users.npy", material.users)
        for library, pin in PINS.items():
            count = min(n, material.graph) if library in GRAPHS else n
            truth = material.truth(count)
            (folder / "items.npy").unlink(missing_ok=True)
            (folder / "items.npy").symlink_to((material.folder / f"items-{count}.npy").resolve())
            label = f"{pin}: {count} items"
            try:
                python = environment(material.folder.parent / library, pin)
                quietly([str(python), "-P", str(WORKER), library, name])
            except DependencyError as error:
                figures[label] = {"not_measured": str(error)}
                continue
            with np.load(folder / f"{library}.npz", allow_pickle=False) as results:
                p50, p99 = np.quantile(results["milliseconds"], [0.5, 0.99])
                figures[label] = {
                    "recall_at_100": round(recall(results["rows"], truth), 4),
                    "p50_ms": round(float(p50), 3),
                    "p99_ms": round(float(p99), 3),
                    "queries_a_second": round(1000 / float(results["milliseconds"].mean())),
                    "build_seconds": round(float(results["seconds"]), 1),
                }
    return figures
