"""What retrieval is measured on: vectors of trained towers, and any number of items that resemble them.

A Gaussian mixture (diagonal covariances, a component for every 32 items, at most 256) is fitted to the vectors of the
items; its samples, normalised, keep their clusters and the order of the coordinates, so that they can be cut as the
towers' own. Users are never sampled: every query is the vector of a real one at the end of the data. All is kept in
the cache, under what it was made of.
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
class Material:
    """items (n, d) and users (q, d): unit vectors of trained towers; folder: of all that is made of them.

    graph: most items of a graph, which takes minutes to build.
    """

    items: Floats
    users: Floats
    folder: Path
    seed: int
    graph: int

    @property
    def space(self) -> SpaceKey:
        """Of every index in the folder."""
        return SpaceKey("towers", self.folder.name, self.items.shape[1])

    def many(self, n: int) -> tuple[Floats, Ints]:
        """n sampled items (n, d), and the component (n,) that each comes from; mapped from the cache."""
        paths = self.folder / f"items-{n}.npy", self.folder / f"components-{n}.npy"
        if not paths[1].is_file():
            weights, means, deviations = self._mixture()
            rng = np.random.default_rng([self.seed, n])
            components = rng.choice(len(weights), n, p=weights)
            items = np.lib.format.open_memmap(paths[0], "w+", np.float32, (n, means.shape[1]))
            for begin in range(0, n, CHUNK):
                of = components[begin : begin + CHUNK]
                noise = rng.standard_normal((len(of), means.shape[1]), dtype=np.float32)
                items[begin : begin + CHUNK] = unit(means[of] + noise * deviations[of])
            items.flush()
            np.save(paths[1], components)  # last: it says that both are whole
        return np.load(paths[0], mmap_mode="r", allow_pickle=False), np.load(paths[1], allow_pickle=False)

    def _mixture(self) -> tuple[Floats, Floats, Floats]:
        """Weights (c,), means and deviations (c, d)."""
        from sklearn.mixture import GaussianMixture  # a second to import

        count = max(1, min(COMPONENTS, len(self.items) // 32))
        model = GaussianMixture(count, covariance_type="diag", reg_covar=1e-5, random_state=self.seed, max_iter=50)
        model.fit(self.items)
        return model.weights_, model.means_.astype(np.float32), np.sqrt(model.covariances_).astype(np.float32)

    def index(self, n: int, config: RetrieverConfig) -> tuple[Index, dict[str, float]]:
        """Over n sampled items, as a service loads it; its processor seconds to build, its bytes per item on disk."""
        name = hashlib.sha256(f"{n} {config.model_dump_json()}".encode()).hexdigest()[:12]
        path, note = self.folder / name, self.folder / f"{name}.figures"
        if not note.is_file():
            items = self.many(n)[0]
            began = time.process_time()
            index = Index(items, config, seed=self.seed)
            seconds = time.process_time() - began
            index.save(path, self.space)
            size = sum(path.with_suffix(end).stat().st_size for end in FILES if path.with_suffix(end).is_file())
            note.write_text(json.dumps({"build_seconds": round(seconds, 1), "bytes_per_item": round(size / n)}))
        figures: dict[str, float] = json.loads(note.read_text())
        return Index.load(path, self.space), figures

    def truth(self, n: int) -> Ints:
        """Rows (q, K) of the best of n sampled items for every user."""
        path = self.folder / f"truth-{n}-{len(self.users)}.npy"
        if not path.is_file():
            np.save(path, Index(np.asarray(self.many(n)[0])).search(self.users, K).rows)
        rows: Ints = np.load(path, allow_pickle=False)
        return rows


def material(config: RunConfig, passes: int, graph: int) -> Material:
    """Towers fitted on all events in so many passes, and the state of every user at their end."""
    settings = config.changed({**TOWERS, "training.epochs": passes})
    dataset = load_dataset(settings)
    made_of = [dataset.hash, settings.seed, *(part.model_dump() for part in (settings.towers, settings.training))]
    folder = Path(settings.cache) / "retrieval" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
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
        return Material(tables["items"], tables["users"], folder, settings.seed, graph)


def recall(found: Ints, best: Ints) -> float:
    """Mean share of best (q, k) in found (q, >= k); -1 is found by nobody."""
    shares = [np.isin(b[b >= 0], f).mean() for f, b in zip(found, best, strict=True)]
    return float(np.mean(shares))


def one_by_one(search: Callable[[Floats], Candidates], queries: Floats) -> Ints:
    """Rows (q, k) of single queries, as they are asked in a service."""
    return np.concatenate([search(query[None]).rows for query in queries])


def milliseconds(
    searches: Mapping[str, Callable[[Floats], Any]],
    asked: Sequence[Floats],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Floats]:
    """(q,) of each search: the median of `rounds` for each of what is asked, all searches in turns.

    By the processor's time unless another clock is given: what a search waits for a core is not counted, what other
    threads of this process do for it is.
    """
    taken = {name: np.empty((rounds, len(asked)), dtype=np.float32) for name in searches}
    for turn in range(-1, rounds):  # the first, at -1, warms up and is written over
        for name, search in searches.items():
            for at, queries in enumerate(asked):
                began = clock()
                search(queries)
                taken[name][turn, at] = 1000 * (clock() - began)
    return {name: np.median(values, axis=0) for name, values in taken.items()}


def shares_allowed(components: Ints, nearness: Floats, share: float, rng: np.random.Generator) -> dict[str, Bools]:
    """Masks (n,) that allow this share: at random, whole clusters, and what is farthest from all users."""
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
