"""Recall and time of each kind of index, of cuts and of filters, and costs as a function of the number of items."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from experiments.bench.retrieval.vectors import K, VectorDataset, allowed_masks, milliseconds, recall, rows_of_singles
from experiments.bench.runner import Bar
from features.arrays import Bools, Floats
from recsys.config import RetrieverConfig
from recsys.interfaces import Candidates
from recsys.retrieval.index import BRUTE_FORCE_MAX, Index, _inner_products, brute_force, empty_candidates
from recsys.retrieval.kinds import RETRIEVER_KINDS, faiss

KINDS = ("ivf-flat", "ivf-pq", "hnsw", "exact")
BEST = "ivf-flat"
"""The best of KINDS at a million items; the bars apply to it."""

CUTS = {
    "trained": ({"dimensions": 32, "refine": 3}, {"dimensions": 24, "refine": 5}, {"dimensions": 64, "refine": 2}),
    "sampled": (
        {"dimensions": 32, "refine": 80},
        {"dimensions": 48, "refine": 40},
        {"dimensions": 64, "refine": 20},
    ),
}
"""Vectors -> settings of the retriever; the bars apply to the first. More items need more candidates to rescore."""

BATCH, ROUNDS = 64, 5
SHARES = (1.0, 0.1, 0.01, 0.001, 0.0001)
Measured = tuple[dict[str, Any], list[Bar]]


def singles(queries: Floats) -> list[Floats]:
    """Each query alone."""
    return [query[None] for query in queries]


def batches(queries: Floats) -> list[Floats]:
    """Full batches of BATCH queries; where there are fewer queries, they repeat."""
    return list(np.resize(queries, (max(1, len(queries) // BATCH), BATCH, queries.shape[1])))


def searching(index: Index, allow: Bools | None = None) -> Callable[[Floats], Candidates]:
    """A search for the K best items of each query."""
    return lambda queries: index.search(queries, K, allow=allow)


def bare(index: Index) -> Callable[[Floats], Any]:
    """faiss's search of the same structure with the same parameters, without our rescoring."""
    structure = RETRIEVER_KINDS.get(index.kind)  # None: exact on a GPU
    n_candidates = K * index.config.refine if structure is not None and structure.compressed else K
    parameters = None if structure is None else structure.parameters(index._effort, None)
    return lambda queries: index._structure.search(queries, n_candidates, params=parameters)


def kinds(material: VectorDataset, n_items: int, chosen: tuple[str, ...] = KINDS) -> Measured:
    """Each kind over n_items, by single queries and by batches.

    Where the index has a faiss structure, its searches alternate with those of bare faiss. A graph has at most
    material.graph items.
    """
    figures: dict[str, Any] = {}
    bars = []
    users = material.users
    for kind in chosen:
        n = min(n_items, material.graph) if kind == "hnsw" else n_items
        truth = material.truth(n)
        index, built = material.index(n, RetrieverConfig.model_validate({"kind": kind}))
        ours = searching(index)
        queries = users[:50] if kind == "exact" else users
        searches = {"ours": ours} | ({"bare": bare(index)} if index._structure is not None else {})
        single = milliseconds(searches, singles(queries), ROUNDS)
        wall = milliseconds({"ours": ours}, singles(queries), ROUNDS, time.perf_counter)["ours"]
        batched = milliseconds(searches, batches(queries), ROUNDS)
        share = recall(rows_of_singles(ours, queries), truth[: len(queries)])
        p50, p99 = np.quantile(single["ours"], [0.5, 0.99])
        figures[f"{kind}: {n} items"] = built | {
            "recall_at_100": round(share, 4),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "p99_ms_by_the_wall": round(float(np.quantile(wall, 0.99)), 3),
            "queries_a_second": round(1000 / float(single["ours"].mean())),
            "queries_a_second_in_batches": round(1000 * BATCH / float(batched["ours"].mean())),
        }
        ratios = {
            name: float(taken["bare"].mean() / taken["ours"].mean())
            for name, taken in (("single", single), ("batch", batched))
            if "bare" in taken
        }
        figures[f"{kind}: {n} items"] |= {f"{name}_over_bare_faiss": round(r, 3) for name, r in ratios.items()}
        if kind == BEST:
            bars = [Bar(f"{kind}: recall@100", share, ">=", 0.95), Bar(f"{kind}: p99 ms", float(p99), "<=", 2)]
            bars += [Bar(f"{kind}: throughput over bare faiss, {name}", r, ">=", 0.9) for name, r in ratios.items()]
    return figures, bars


def cuts(material: VectorDataset, n: int) -> Measured:
    """A search by the first dimensions, rescored with all, against exact search.

    The vectors are those of the towers, and n sampled ones. The search bypasses the rule that few items are compared
    exactly (`recsys.retrieval.index.BRUTE_FORCE_MAX`).
    """
    figures: dict[str, Any] = {}
    bars = []
    for name, items in {"trained": material.items, "sampled": np.array(material.sampled(n)[0])}.items():
        exact, k = Index(items), min(K, len(items))
        users = material.users if name == "trained" else material.users[:50]
        truth = exact.search(users, k).rows
        for cut in CUTS[name]:
            index = Index(items, RetrieverConfig.model_validate(cut))
            searches: dict[str, Callable[[Floats], Candidates]] = {
                "cut": _by_structure(index, k),
                "whole": partial(brute_force, vectors=items, k=k),
            }
            single = milliseconds(searches, singles(users), 3)
            batched = milliseconds(searches, batches(users), 3)
            ratio = float(np.median(single["cut"]) / np.median(single["whole"]))
            share = recall(rows_of_singles(searches["cut"], users), truth)
            label = f"{name}, {len(items)} items, {cut['dimensions']} dimensions, refine {cut['refine']}"
            figures[label] = {
                "recall_at_100": round(share, 4),
                "ms": round(float(np.median(single["cut"])), 3),
                "whole_ms": round(float(np.median(single["whole"])), 3),
                "time_over_whole": round(ratio, 3),
                "time_over_whole_in_batches": round(float(batched["cut"].mean() / batched["whole"].mean()), 3),
            }
            if cut is CUTS[name][0]:
                bars += [Bar(f"{label}: recall@100", share, ">=", 0.98), Bar(f"{label}: time", ratio, "<=", 0.5)]
    return figures, bars


def filters(material: VectorDataset, n_items: int, chosen: tuple[str, ...]) -> Measured:
    """Searches with masks of every share and shape, over n_items.

    Above a share of 1 %, the time is compared with that of the search without a mask. Up to 1 % it is compared with
    faiss's exact search of all items with the mask as its selector. The time of an exact search of the gathered
    allowed items is a figure only.
    """
    figures: dict[str, Any] = {}
    bars = []
    rng = np.random.default_rng(material.seed)
    users = material.users[:100]
    for kind in chosen:
        n = min(n_items, material.graph) if kind == "hnsw" else n_items
        items, components = material.sampled(n)
        items = np.asarray(items)
        nearness = items @ material.users.mean(axis=0)
        index = material.index(n, RetrieverConfig.model_validate({"kind": kind}))[0]
        worst: dict[str, float] = {"recall@100": 1.0, "full answers": 1.0, "times unfiltered": 0, "times exact": 0}
        for share in SHARES:
            for shape, allow in allowed_masks(components, nearness, share, rng).items():
                rows, truth = _filtered(index, users, allow, items)
                full = float(((rows >= 0).sum(axis=1) == truth.shape[1]).mean())
                searches = {"masked": searching(index, allow)}
                narrow = share <= 0.01
                searches["other"] = _selecting(items, allow) if narrow else searching(index)
                if narrow:
                    searches["gathering"] = _gathering(items, allow)
                taken = milliseconds(searches, singles(users), 3)
                ratio = float(np.median(taken["masked"]) / np.median(taken["other"]))
                versus = "times exact" if narrow else "times unfiltered"
                measures = {"recall@100": recall(rows, truth), "full answers": full, versus: ratio}
                times = {f"{name} ms": round(float(np.median(each)), 3) for name, each in taken.items()}
                figures[f"{kind}: {share:.2%} allowed, {shape}"] = times | {
                    name: round(value, 4) for name, value in measures.items()
                }
                for name, value in measures.items():
                    worst[name] = (max if "times" in name else min)(worst[name], value)
        if kind == BEST:
            limits = {"recall@100": 0.95, "full answers": 1.0, "times unfiltered": 10.0, "times exact": 1.0}
            bars = [
                Bar(f"{kind}, worst mask: {name}", value, "<=" if "times" in name else ">=", limits[name])
                for name, value in worst.items()
            ]
    return figures, bars


def _by_structure(index: Index, k: int) -> Callable[[Floats], Candidates]:
    """A search of k items by the structure, whatever the number of items."""
    return lambda queries: index._by_structure(queries, k, None, len(index))


def _filtered(index: Index, users: Floats, allow: Bools, items: Floats) -> tuple[Any, Any]:
    """Rows that single queries find, and the best rows, both (q, min(K, number of allowed items))."""
    allowed = np.flatnonzero(allow)
    truth = allowed[Index(items[allowed]).search(users, min(K, len(allowed))).rows]
    return rows_of_singles(searching(index, allow), users)[:, : truth.shape[1]], truth


def _selecting(items: Floats, allow: Bools) -> Callable[[Floats], Any]:
    """faiss's exact search of all items, with the mask as its selector."""
    out = empty_candidates(1, min(K, int(allow.sum())))

    def search(queries: Floats) -> None:
        bits = np.packbits(allow, bitorder="little")  # a local, so that it lives until faiss has read it
        _inner_products(queries, items, out, faiss.IDSelectorBitmap(bits))

    return search


def _gathering(items: Floats, allow: Bools) -> Callable[[Floats], Any]:
    """Exact search of the allowed items: faiss's bare call over a copy of their vectors."""
    out = empty_candidates(1, min(K, int(allow.sum())))
    return lambda queries: _inner_products(queries, items[np.flatnonzero(allow)], out, None)


def sizes(material: VectorDataset, kind: str, ns: list[int]) -> dict[str, Any]:
    """Costs of ns items, and their extrapolation to a billion: cost = a * n^b, fitted to three sizes or more."""
    rows = []
    for n in ns:
        index, built = material.index(n, RetrieverConfig.model_validate({"kind": kind}))
        queries = material.users[:50]
        taken = milliseconds({"ours": searching(index)}, singles(queries), 3)["ours"]
        share = recall(rows_of_singles(searching(index), queries), material.truth(n)[: len(queries)])
        rows.append({"items": n, "ms": round(float(np.median(taken)), 3), "recall_at_100": round(share, 4)} | built)
    figures: dict[str, Any] = {f"{kind}: {row['items']} items": row for row in rows}
    for name in ("ms", "build_seconds"):
        fitted = [row for row in rows if row["items"] > BRUTE_FORCE_MAX or kind == "exact"]
        if len(fitted) >= 3:
            x, y = (np.log([max(row[key], 1e-3) for row in fitted]) for key in ("items", name))
            power, start = np.polyfit(x, y, 1)
            figures[f"{kind}: {name} = a * items^b"] = {
                "a": float(np.exp(start)),
                "b": round(float(power), 3),
                "at_1e9": float(np.exp(start + power * np.log(1e9))),
            }
    return figures
