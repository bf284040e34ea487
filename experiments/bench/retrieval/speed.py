"""How well and how fast each kind of search finds: kinds, cuts, filters, and what a size costs."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from experiments.bench.retrieval.vectors import K, Material, milliseconds, one_by_one, recall, shares_allowed
from experiments.bench.runner import Bar
from features.arrays import Bools, Floats
from recsys.config import RetrieverConfig
from recsys.interfaces import Candidates
from recsys.retrieval.index import BRUTE_FORCE_MAX, Index, _inner_products, brute_force, empty_candidates, faiss

KINDS = ("ivf-flat", "ivf-pq", "hnsw", "exact")
BEST = "ivf-flat"
"""Of these at a million items: the bars are its."""

CUTS = {
    "trained": ({"dimensions": 32, "refine": 3}, {"dimensions": 24, "refine": 5}, {"dimensions": 64, "refine": 2}),
    "sampled": (
        {"dimensions": 32, "refine": 80},
        {"dimensions": 48, "refine": 40},
        {"dimensions": 64, "refine": 20},
    ),
}
"""The first of each is held against the bars; the more items, the deeper the first dimensions must be searched."""

BATCH, ROUNDS = 64, 5
SHARES = (1.0, 0.1, 0.01, 0.001, 0.0001)
Measured = tuple[dict[str, Any], list[Bar]]


def singles(queries: Floats) -> list[Floats]:
    """Each query alone."""
    return [query[None] for query in queries]


def batches(queries: Floats) -> list[Floats]:
    """Whole batches alone: queries begin anew where they are too few."""
    return list(np.resize(queries, (max(1, len(queries) // BATCH), BATCH, queries.shape[1])))


def searching(index: Index, allow: Bools | None = None) -> Callable[[Floats], Candidates]:
    """Its K best."""
    return lambda queries: index.search(queries, K, allow=allow)


def bare(index: Index) -> Callable[[Floats], Any]:
    """faiss's own search of the same structure with the same parameters; what we compare in full after it is not."""
    wide = K * index.config.refine if index.kind == "ivf-pq" else K
    return lambda queries: index._structure.search(queries, wide, params=index._plain)


def kinds(material: Material, most: int, chosen: tuple[str, ...] = KINDS) -> Measured:
    """Each kind over so many items, single queries and batches; in turns with bare faiss where it has a structure."""
    figures: dict[str, Any] = {}
    bars = []
    users = material.users
    for kind in chosen:
        n = min(most, material.graph) if kind == "hnsw" else most
        best = material.truth(n)
        index, built = material.index(n, RetrieverConfig.model_validate({"kind": kind}))
        ours = searching(index)
        few = users[:50] if kind == "exact" else users
        searches = {"ours": ours} | ({"bare": bare(index)} if index._structure is not None else {})
        alone = milliseconds(searches, singles(few), ROUNDS)
        waited = milliseconds({"ours": ours}, singles(few), ROUNDS, time.perf_counter)["ours"]
        together = milliseconds(searches, batches(few), ROUNDS)
        found = recall(one_by_one(ours, few), best[: len(few)])
        p50, p99 = np.quantile(alone["ours"], [0.5, 0.99])
        figures[f"{kind}: {n} items"] = built | {
            "recall_at_100": round(found, 4),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "p99_ms_by_the_wall": round(float(np.quantile(waited, 0.99)), 3),
            "queries_a_second": round(1000 / float(alone["ours"].mean())),
            "queries_a_second_in_batches": round(1000 * BATCH / float(together["ours"].mean())),
        }
        ratios = {
            name: float(taken["bare"].mean() / taken["ours"].mean())
            for name, taken in (("single", alone), ("batch", together))
            if "bare" in taken
        }
        figures[f"{kind}: {n} items"] |= {f"{name}_over_bare_faiss": round(r, 3) for name, r in ratios.items()}
        if kind == BEST:
            bars = [Bar(f"{kind}: recall@100", found, ">=", 0.95), Bar(f"{kind}: p99 ms", float(p99), "<=", 2)]
            bars += [Bar(f"{kind}: throughput over bare faiss, {name}", r, ">=", 0.9) for name, r in ratios.items()]
    return figures, bars


def cuts(material: Material, n: int) -> Measured:
    """First dimensions, then all, on the towers' own vectors and on n sampled ones, held against exact search.

    Asked past the rule that compares few items in full anyway (`recsys.retrieval.index.BRUTE_FORCE_MAX`).
    """
    figures: dict[str, Any] = {}
    bars = []
    for name, items in {"trained": material.items, "sampled": np.array(material.many(n)[0])}.items():
        whole, k = Index(items), min(K, len(items))
        users = material.users if name == "trained" else material.users[:50]
        best = whole.search(users, k).rows
        for cut in CUTS[name]:
            index = Index(items, RetrieverConfig.model_validate(cut))
            searches = {
                "cut": partial(index._by_structure, k=k, allow=None, there=len(items)),
                "whole": partial(brute_force, vectors=items, k=k),
            }
            taken = milliseconds(searches, singles(users), 3)
            together = milliseconds(searches, batches(users), 3)
            ratio = float(np.median(taken["cut"]) / np.median(taken["whole"]))
            found = recall(one_by_one(searches["cut"], users), best)
            label = f"{name}, {len(items)} items, {cut['dimensions']} dimensions, refine {cut['refine']}"
            figures[label] = {
                "recall_at_100": round(found, 4),
                "ms": round(float(np.median(taken["cut"])), 3),
                "whole_ms": round(float(np.median(taken["whole"])), 3),
                "time_over_whole": round(ratio, 3),
                "time_over_whole_in_batches": round(float(together["cut"].mean() / together["whole"].mean()), 3),
            }
            if cut is CUTS[name][0]:
                bars += [Bar(f"{label}: recall@100", found, ">=", 0.98), Bar(f"{label}: time", ratio, "<=", 0.5)]
    return figures, bars


def filters(material: Material, most: int, chosen: tuple[str, ...]) -> Measured:
    """Masks of every share and shape. Above 1 % the time is held against the search without a mask; up to it
    against faiss's exact search of all with the mask as its selector; of what is allowed, gathered, as a figure."""
    figures: dict[str, Any] = {}
    bars = []
    rng = np.random.default_rng(material.seed)
    users = material.users[:100]
    for kind in chosen:
        n = min(most, material.graph) if kind == "hnsw" else most
        items, components = material.many(n)
        items = np.asarray(items)
        nearness = items @ material.users.mean(axis=0)
        index = material.index(n, RetrieverConfig.model_validate({"kind": kind}))[0]
        worst: dict[str, float] = {"recall@100": 1.0, "full answers": 1.0, "times unfiltered": 0, "times exact": 0}
        for share in SHARES:
            for shape, allow in shares_allowed(components, nearness, share, rng).items():
                found, best = _filtered(index, users, allow, items)
                full = float(((found >= 0).sum(axis=1) == best.shape[1]).mean())
                searches = {"masked": searching(index, allow)}
                few = share <= 0.01
                searches["other"] = _selecting(items, allow) if few else searching(index)
                if few:
                    searches["gathering"] = _gathering(items, allow)
                taken = milliseconds(searches, singles(users), 3)
                ratio = float(np.median(taken["masked"]) / np.median(taken["other"]))
                versus = "times exact" if few else "times unfiltered"
                line = {"recall@100": recall(found, best), "full answers": full, versus: ratio}
                times = {f"{name} ms": round(float(np.median(each)), 3) for name, each in taken.items()}
                figures[f"{kind}: {share:.2%} allowed, {shape}"] = times | {
                    name: round(value, 4) for name, value in line.items()
                }
                for name, value in line.items():
                    worst[name] = (max if "times" in name else min)(worst[name], value)
        if kind == BEST:
            asked = {"recall@100": 0.95, "full answers": 1.0, "times unfiltered": 10.0, "times exact": 1.0}
            bars = [
                Bar(f"{kind}, worst mask: {name}", value, "<=" if "times" in name else ">=", asked[name])
                for name, value in worst.items()
            ]
    return figures, bars


def _filtered(index: Index, users: Floats, allow: Bools, items: Floats) -> tuple[Any, Any]:
    """Rows found one by one, cut to what there is, and the rows that are best."""
    rows = np.flatnonzero(allow)
    best = rows[Index(items[rows]).search(users, min(K, len(rows))).rows]
    return one_by_one(searching(index, allow), users)[:, : best.shape[1]], best


def _selecting(items: Floats, allow: Bools) -> Callable[[Floats], Any]:
    """Exact search over everything that the mask selects."""
    found = empty_candidates(1, min(K, int(allow.sum())))

    def search(queries: Floats) -> None:
        bits = np.packbits(allow, bitorder="little")  # kept until faiss has read it
        _inner_products(queries, items, found, faiss.IDSelectorBitmap(bits))

    return search


def _gathering(items: Floats, allow: Bools) -> Callable[[Floats], Any]:
    """Exact search over what is allowed: faiss's bare call over the vectors that the mask leaves."""
    found = empty_candidates(1, min(K, int(allow.sum())))
    return lambda queries: _inner_products(queries, items[np.flatnonzero(allow)], found, None)


def sizes(material: Material, kind: str, ns: list[int]) -> dict[str, Any]:
    """What n items cost, and what that comes to at a billion: cost = a * n^b, from three sizes or more."""
    rows = []
    for n in ns:
        index, built = material.index(n, RetrieverConfig.model_validate({"kind": kind}))
        few = material.users[:50]
        taken = milliseconds({"ours": searching(index)}, singles(few), 3)["ours"]
        found = recall(one_by_one(searching(index), few), material.truth(n)[: len(few)])
        rows.append({"items": n, "ms": round(float(np.median(taken)), 3), "recall_at_100": round(found, 4)} | built)
    figures: dict[str, Any] = {f"{kind}: {row['items']} items": row for row in rows}
    for name in ("ms", "build_seconds"):
        grown = [row for row in rows if row["items"] > BRUTE_FORCE_MAX or kind == "exact"]
        if len(grown) >= 3:
            x, y = (np.log([max(row[key], 1e-3) for row in grown]) for key in ("items", name))
            power, start = np.polyfit(x, y, 1)
            figures[f"{kind}: {name} = a * items^b"] = {
                "a": float(np.exp(start)),
                "b": round(float(power), 3),
                "at_1e9": float(np.exp(start + power * np.log(1e9))),
            }
    return figures
