"""One honest table: every contender on the same targets, with intervals over users."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.table import Table

from experiments.splits import Split, Targets
from features.arrays import Bools, Doubles, Ints
from features.catalog import Catalog
from features.interactions import DAY
from recsys.evaluation import metrics
from recsys.evaluation.bootstrap import Interval, bootstrap, paired_bootstrap
from recsys.interfaces import Recommender

K = 10
"""Cutoff of the headline figures."""

DEPTH = 100
"""Candidates asked for: mid-ranks are exact to half of it."""

BATCH = 1024
"""States ranked at a time."""


@dataclass(frozen=True)
class Outcome:
    """What one contender did with m targets over one or several windows.

    ranks, users, items (m,): of each target; warm_user, warm_item (m,) bool: had a positive event before the cut;
    history (m,): positive events of the user before it; seconds of fitting;
    coverage, novelty (bits), diversity, popularity (percentile): means over windows or lists.
    """

    name: str
    ranks: Doubles
    users: Ints
    items: Ints
    warm_user: Bools
    warm_item: Bools
    history: Ints
    seconds: float
    coverage: float
    novelty: float
    diversity: float
    popularity: float

    def per_user(self, metric: str, keep: Bools | None = None) -> Doubles:
        """hr, ndcg or mrr at K of each user, in the order of the user rows: (u,)."""
        at = slice(None) if keep is None else keep
        return metrics.per_user(self.per_event(metric)[at], self.users[at])[0]

    def per_event(self, metric: str) -> Doubles:
        """hr, ndcg or mrr at K of each target: (m,); average precision at K is mrr, since there is one target."""
        return {"hr": metrics.hit, "ndcg": metrics.ndcg, "mrr": metrics.reciprocal_rank}[metric](
            self.ranks, K, depth=DEPTH
        )


def evaluate(
    name: str,
    recommender: Recommender,
    split: Split,
    catalog: Catalog,
    targets: Targets,
    *,
    repeats: bool,
    seconds: float,
) -> Outcome:
    """Rank the full catalogue for every state of `targets`; items seen are excluded unless repeats are allowed.

    The full catalogue is what was published by then (`published_batches`).
    """
    ranks, rows = rank_targets(recommender, targets, catalog, repeats=repeats)
    counts = np.bincount(split.train.positives().items, minlength=len(catalog))
    active = np.bincount(split.train.positives().users, minlength=split.train.n_users) > 0
    return Outcome(
        name=name,
        ranks=ranks,
        users=targets.users,
        items=targets.item,
        warm_user=active[targets.users],
        warm_item=counts[targets.item] > 0,
        history=targets.states.positives().lengths[targets.state],
        seconds=seconds,
        coverage=metrics.coverage(rows, len(catalog)),
        novelty=_mean(metrics.novelty(rows, counts)),
        diversity=_mean(metrics.diversity(rows, catalog.content)) if catalog.has_content.any() else float("nan"),
        popularity=_mean(metrics.popularity_percentile(rows, counts)),
    )


def headline_metrics(
    recommender: Recommender, targets: Targets, catalog: Catalog, *, repeats: bool
) -> dict[str, float]:
    """ndcg_at_10 and hr_at_10, means over users: what passes are chosen by."""
    ranks, _ = rank_targets(recommender, targets, catalog, repeats=repeats)
    figures = {"ndcg_at_10": metrics.ndcg(ranks, K, depth=DEPTH), "hr_at_10": metrics.hit(ranks, K, depth=DEPTH)}
    return {name: float(metrics.per_user(of, targets.users)[0].mean()) for name, of in figures.items()}


def rank_targets(
    recommender: Recommender, targets: Targets, catalog: Catalog, *, repeats: bool, allow: Bools | None = None
) -> tuple[Doubles, Ints]:
    """Ranks (m,) of m targets in lists of DEPTH, inf where not among them, and the first K rows (b, K) of each state.

    allow (n,): what may be listed of what was published by then, None for all of it; items seen are left out unless
    repeats are allowed.
    """
    states = targets.states
    ranks, lists = np.full(len(targets), np.inf), np.full((len(states), K), -1, dtype=np.int64)
    place = np.full(len(states), -1)
    for rows, there in published_batches(states.as_of, catalog):
        part = states[rows].compact()
        found = recommender.recommend(
            part,
            DEPTH,
            allow=there if allow is None else there & allow,
            exclude=None if repeats else part.seen_items(),
        )
        place[rows] = np.arange(len(rows))
        asked = np.flatnonzero(place[targets.state] >= 0)
        ranks[asked] = metrics.target_ranks(found, place[targets.state[asked]], targets.item[asked])
        lists[rows] = found.rows[:, :K]
        place[rows] = -1
    return ranks, lists


def published_batches(as_of: Ints, catalog: Catalog) -> Iterator[tuple[Ints, Bools]]:
    """Of b states, BATCH at most: their rows, and the items (n,) that there were to recommend when they were asked.

    What is published later nobody could have shown. To the day: an item is there from the beginning of its day on, so
    that there are not as many parts as moments. What is available today says nothing of then, and is not asked.
    """
    day_ends = (as_of // DAY + 1) * DAY - 1
    edition = np.searchsorted(np.sort(catalog.published), day_ends, side="right")  # number of items
    order: Ints = np.argsort(edition, kind="stable")
    for alike in np.split(order, np.flatnonzero(np.diff(edition[order])) + 1):
        for at in range(0, len(alike), BATCH):
            yield alike[at : at + BATCH], catalog.published_by(int(day_ends[alike[0]]))


def _mean(values: Doubles) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def join_windows(windows: Sequence[Outcome]) -> Outcome:
    """One contender's windows as one outcome: targets side by side, so that users are averaged once over all."""
    first = windows[0]

    def stack(pick: Callable[[Outcome], np.ndarray]) -> Any:
        return np.concatenate([pick(w) for w in windows])

    def mean(pick: Callable[[Outcome], float]) -> float:
        return float(np.mean([pick(w) for w in windows]))

    return Outcome(
        first.name,
        stack(lambda w: w.ranks),
        stack(lambda w: w.users),
        stack(lambda w: w.items),
        stack(lambda w: w.warm_user),
        stack(lambda w: w.warm_item),
        stack(lambda w: w.history),
        sum(w.seconds for w in windows),
        mean(lambda w: w.coverage),
        mean(lambda w: w.novelty),
        mean(lambda w: w.diversity),
        mean(lambda w: w.popularity),
    )


@dataclass(frozen=True)
class Comparison:
    """The table: outcomes over the same targets; `ours` is the row that the others are compared with."""

    title: str
    placement: str
    note: str
    hashes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    ours: str
    seed: int

    def __post_init__(self) -> None:
        first = self.outcomes[0]
        for other in self.outcomes[1:]:
            if not (np.array_equal(first.users, other.users) and np.array_equal(first.items, other.items)):
                raise ValueError(f"{first.name} and {other.name} were evaluated on different targets")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dict a contender: figures, intervals, and the paired difference ours minus it in NDCG@10."""
        ours = next(o for o in self.outcomes if o.name == self.ours)
        out = []
        for o in self.outcomes:
            row: dict[str, Any] = {"name": o.name}
            for metric in ("hr", "ndcg"):
                row[f"{metric}_at_{K}"] = interval_dict(bootstrap(o.per_user(metric), seed=self.seed))
            if o is not ours:
                difference = paired_bootstrap(ours.per_user("ndcg"), o.per_user("ndcg"), seed=self.seed)
                row[f"ours_minus_ndcg_at_{K}"] = interval_dict(difference)
            row |= {
                f"mrr_at_{K}": float(o.per_user("mrr").mean()),
                "coverage": o.coverage,
                "novelty_bits": o.novelty,
                "diversity": o.diversity,
                "popularity_percentile": o.popularity,
                "fit_seconds": round(o.seconds, 1),
            }
            slices = {
                "warm": o.warm_user & o.warm_item,
                "cold_user": ~o.warm_user,
                "cold_item": ~o.warm_item,
            }
            for part, keep in slices.items():
                row[f"hr_at_{K}_{part}"] = float(o.per_user("hr", keep).mean()) if keep.any() else None
            out.append(row)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; null where a figure does not exist, as the interval of a single user."""
        o = self.outcomes[0]
        return {
            "title": self.title,
            "placement": self.placement,
            "note": self.note,
            "split_hashes": list(self.hashes),
            "users": len(np.unique(o.users)),
            "events": len(o.users),
            "events_cold_user": int((~o.warm_user).sum()),
            "events_cold_item": int((~o.warm_item).sum()),
            "ours": self.ours,
            "rows": _finite(self.rows),
        }

    def render(self) -> Table:
        """For a rich console."""
        facts = self.to_dict()
        head = (
            f"{self.title}\n{self.note}\nsplit {', '.join(self.hashes)} · {facts['users']:,} users · "
            f"{facts['events']:,} test events ({facts['events_cold_user']:,} of users, "
            f"{facts['events_cold_item']:,} of items never seen before the cut)"
        )
        table = Table(
            title=head, caption=f"in brackets: 95 % interval over users; Δ: {self.ours} minus the row, paired"
        )
        parts = {"warm": "warm\nHR", "cold_user": "cold-user\nHR", "cold_item": "cold-item\nHR"}
        for column in ("", "HR@10", "NDCG@10", "Δ NDCG@10", *parts.values(), "cover-\nage", "popu-\nlarity", "fit s"):
            table.add_column(column, justify="right" if column else "left")
        for row in self.rows:
            difference = row.get(f"ours_minus_ndcg_at_{K}")
            hits = [row[f"hr_at_{K}_{part}"] for part in parts]
            table.add_row(
                row["name"],
                _show(row[f"hr_at_{K}"]),
                _show(row[f"ndcg_at_{K}"]),
                _show(difference, "+") if difference else "",
                *("" if hit is None else f"{hit:.4f}" for hit in hits),
                f"{row['coverage']:.3f}",
                f"{row['popularity_percentile']:.2f}",
                f"{row['fit_seconds']:.1f}",
                style="bold" if row["name"] == self.ours else None,
            )
        return table


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def interval_dict(i: Interval) -> dict[str, float]:
    """Plain values of an interval."""
    return {"mean": i.mean, "low": i.low, "high": i.high}


def _show(i: dict[str, float], sign: str = "") -> str:
    return f"{i['mean']:{sign}.4f} [{i['low']:{sign}.4f}, {i['high']:{sign}.4f}]"
