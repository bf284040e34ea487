"""Other libraries on the same items and users, each in an environment of its own, for the record."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.peers.environment import environment, quietly
from experiments.bench.retrieval.vectors import Material, recall
from features.errors import DependencyError

WORKER = Path(__file__).parents[1] / "peers" / "ann_worker.py"
PINS = {"scann": "scann==1.4.2", "usearch": "usearch==2.26.6", "hnswlib": "hnswlib==0.8.0"}
GRAPHS = {"usearch", "hnswlib"}


def rivals(material: Material, n: int) -> dict[str, Any]:
    """Figures of each over n items, or why there are none; what is not there yet is installed by pip."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "users.npy", material.users)
        for rival, pin in PINS.items():
            count = min(n, material.graph) if rival in GRAPHS else n
            best = material.truth(count)
            (folder / "items.npy").unlink(missing_ok=True)
            (folder / "items.npy").symlink_to((material.folder / f"items-{count}.npy").resolve())
            label = f"{pin}: {count} items"
            try:
                python = environment(material.folder.parent / rival, pin)
                quietly([str(python), "-P", str(WORKER), rival, name])
            except DependencyError as error:
                figures[label] = {"not_measured": str(error)}
                continue
            with np.load(folder / f"{rival}.npz", allow_pickle=False) as told:
                p50, p99 = np.quantile(told["milliseconds"], [0.5, 0.99])
                figures[label] = {
                    "recall_at_100": round(recall(told["rows"], best), 4),
                    "p50_ms": round(float(p50), 3),
                    "p99_ms": round(float(p99), 3),
                    "queries_a_second": round(1000 / float(told["milliseconds"].mean())),
                    "build_seconds": round(float(told["seconds"]), 1),
                }
    return figures
