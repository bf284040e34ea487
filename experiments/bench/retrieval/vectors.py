"""Vectors for the benchmark of retrieval: those of trained towers, and any number of sampled items that resemble
them.

A Gaussian mixture (diagonal covariances, a component for every 32 items, at most 256) is fitted to the vectors of the
items. Its normalised samples keep the clusters and the order of the coordinates, so that they can be cut as the
towers' own vectors can. Users are not sampled: every query is the vector of a user of the data set after the last
event. All vectors and indexes are kept in the cache, under a hash of the data and the settings.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.dataset import encode_contents, load_dataset
from features.arrays import Bools, Floats, Ints
from features.content.spaces import SpaceKey, unit
from recsys.config import RetrieverConfig
from recsys.interfaces import Candidates
from recsys.retrieval.index import Index
from recsys.towers.training import fit_towers

K = 100
TOWERS = {"towers.dimension": 128, "towers.nested": (64, 32)}
COMPONENTS = 256
CHUNK = 1_000_000
FILES = (".npy", ".json", ".faiss")
"""Endings of what `Index.save` writes."""


@dataclass(frozen=True)
class VectorDataset:
    """items (n, d) and users (q, d): unit vectors of trained towers; folder: of the samples, indexes and results.

    graph: maximum number of items of a graph, which takes minutes to build.
    """

    items: Floats
    users: Floats
    folder: Path
    seed: int
    graph: int

    @property
    def space(self) -> SpaceKey:
        """The key of the towers' space, which every index in the folder has."""
        return SpaceKey("towers", self.folder.name, self.items.shape[1])

    def sampled(self, n: int) -> tuple[Floats, Ints]:
        """n sampled items (n, d), memory-mapped from the cache, and the component (n,) of each."""
        paths = self.folder / f"items-{n}.npy", self.folder / f"components-{n}.npy"
        if not paths[1].is_file():
            weights, means, deviations = self._mixture()
            rng = np.random.default_rng([self.seed, n])
            components = rng.choice(len(weights), n, p=weights)
            items = np.lib.format.open_memmap(paths[0], "w+", np.float32, (n, means.shape[1]))
            for start in range(0, n, CHUNK):
                chunk = components[start : start + CHUNK]
                noise = rng.standard_normal((len(chunk), means.shape[1]), dtype=np.float32)
                items[start : start + CHUNK] = unit(means[chunk] + noise * deviations[chunk])
            items.flush()
            np.save(paths[1], components)  # written last: its existence says that both are complete
        return np.load(paths[0], mmap_mode="r", allow_pickle=False), np.load(paths[1], allow_pickle=False)

    def _mixture(self) -> tuple[Floats, Floats, Floats]:
        """Weights (c,), means and standard deviations (c, d) of the mixture."""
        from sklearn.mixture import GaussianMixture  # its import takes a second

        count = max(1, min(COMPONENTS, len(self.items) // 32))
        model = GaussianMixture(count, covariance_type="diag", reg_covar=1e-5, random_state=self.seed, max_iter=50)
        model.fit(self.items)
        return model.weights_, model.means_.astype(np.float32), np.sqrt(model.covariances_).astype(np.float32)

    def index(self, n: int, config: RetrieverConfig) -> tuple[Index, dict[str, float]]:
        """An index of n sampled items, mapped from disk; its build_seconds (processor), its bytes_per_item."""
        name = hashlib.sha256(f"{n} {config.model_dump_json()}".encode()).hexdigest()[:12]
        path, record = self.folder / name, self.folder / f"{name}.figures"
        if not record.is_file():
            items = self.sampled(n)[0]
            started = time.process_time()
            index = Index(items, config, seed=self.seed)
            seconds = time.process_time() - started
            index.save(path, self.space)
            size = sum(path.with_suffix(end).stat().st_size for end in FILES if path.with_suffix(end).is_file())
            record.write_text(json.dumps({"build_seconds": round(seconds, 1), "bytes_per_item": round(size / n)}))
        figures: dict[str, float] = json.loads(record.read_text())
        return Index.load(path, self.space), figures

    def truth(self, n: int) -> Ints:
        """Rows (q, K) of the best of n sampled items for every user, by exact search."""
        path = self.folder / f"truth-{n}-{len(self.users)}.npy"
        if not path.is_file():
            np.save(path, Index(np.asarray(self.sampled(n)[0])).search(self.users, K).rows)
        rows: Ints = np.load(path, allow_pickle=False)
        return rows


def load_vector_dataset(config: RunConfig, passes: int, graph: int) -> VectorDataset:
    """Vectors of towers fitted on all events in so many passes, with the state of every user after the last event.

    graph: maximum number of items of a graph.
    """
    settings = config.changed({**TOWERS, "training.epochs": passes})
    dataset = load_dataset(settings)
    ingredients = [dataset.hash, settings.seed, settings.towers.model_dump(), settings.training.model_dump()]
    folder = Path(settings.cache) / "retrieval" / hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:16]
    path = folder / "towers.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        dataset = encode_contents(dataset, settings)
        log = dataset.events
        model = fit_towers(dataset.catalog, log, settings.towers, settings.training, seed=settings.seed).model
        items, users = model.item_vectors(), np.unique(log.positives().users)
        states = log.states(users, np.full(len(users), log.latest + 1))
        np.savez(path, items=items, users=model.user_vectors(states, items))
    with np.load(path, allow_pickle=False) as tables:
        return VectorDataset(tables["items"], tables["users"], folder, settings.seed, graph)


def recall(rows: Ints, truth: Ints) -> float:
    """Mean share of the true rows (q, k) in rows (q, >= k); -1 among the true rows is padding and not counted."""
    shares = [np.isin(t[t >= 0], r).mean() for r, t in zip(rows, truth, strict=True)]
    return float(np.mean(shares))


def rows_of_singles(search: Callable[[Floats], Candidates], queries: Floats) -> Ints:
    """Rows (q, k) of queries (q, d), searched one at a time, as in a service."""
    return np.concatenate([search(query[None]).rows for query in queries])


def milliseconds(
    searches: Mapping[str, Callable[[Floats], Any]],
    batches: Sequence[Floats],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Floats]:
    """Milliseconds (len(batches),) of each search: the median over rounds for each batch. Searches alternate.

    The default clock is processor time: it leaves out the wait for a core, and includes the work of other threads of
    this process.
    """
    taken = {name: np.empty((rounds, len(batches)), dtype=np.float32) for name in searches}
    for round_ in range(-1, rounds):  # round -1 warms up; the last round overwrites its times
        for name, search in searches.items():
            for i, queries in enumerate(batches):
                started = clock()
                search(queries)
                taken[name][round_, i] = 1000 * (clock() - started)
    return {name: np.median(values, axis=0) for name, values in taken.items()}


def allowed_masks(components: Ints, nearness: Floats, share: float, rng: np.random.Generator) -> dict[str, Bools]:
    """Masks (n,) that allow this share of the items: at random, in whole clusters, and those farthest from all users.

    components (n,): cluster of each item; nearness (n,): score of each item for the mean user.
    """
    n = len(components)
    count = max(1, round(share * n))
    shuffled = rng.permutation(components.max() + 1)[components]
    orders = {
        "random": rng.permutation(n),
        "clusters": np.argsort(shuffled, kind="stable"),
        "far": np.argsort(nearness, kind="stable"),
    }
    masks = {name: np.zeros(n, dtype=np.bool_) for name in orders}
    for name, order in orders.items():
        masks[name][order[:count]] = True
    return masks
