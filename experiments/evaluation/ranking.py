"""Offline evaluation: outcomes of all models on the same targets, compared in one table with intervals over users."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from rich.table import Table

from experiments.evaluation.choice import Choice, describe_choices
from experiments.splits import Split, Targets, check_histories
from features.arrays import Bools, Doubles, Ints
from features.catalog import Catalog
from features.errors import LeakError
from features.ids import mix_keys
from features.instants import DAY
from features.interactions import UserStates
from recsys.evaluation import metrics
from recsys.evaluation.bootstrap import Interval, bootstrap, paired_bootstrap
from recsys.interfaces import Candidates, Recommender
from recsys.ranking.exploration import Draws
from recsys.ranking.slate import item_groups, recommend_slates
from recsys.ranking.slate_rules import SlateRules

K = 10
"""Cutoff k of the headline metrics."""

DEPTH = 100
"""Length of the lists; mid-ranks are exact up to half of it."""

SLATE = 20
"""How many first items of a list a rule of exploration takes for the slate: what the service shows by default."""

LISTS = ("coverage", "novelty", "diversity", "popularity", "cold_share")
"""Figures of the lists among the fields of `Outcome`."""

RulesAt = Callable[[int], Callable[[bool], SlateRules]]
"""Time (µs) -> whether a user is without positive events -> the rules."""

BATCH = 1024
"""Maximum number of states in one call of a recommender."""


@dataclass(frozen=True)
class Outcome:
    """Results of one model on m targets of one or several windows.

    ranks, users, items (m,): rank, user row and item row of each target; times (m,): µs, the moment of its state;
    warm_user, warm_item (m,) bool: the user or the item has a positive event before the cut;
    history (m,): number of positive events of the user before the target; seconds: time of fitting;
    coverage, novelty (bits), diversity, popularity (percentile): means over windows or lists.
    choices: of a baseline, how its settings were chosen in each window; cold_share: share of cold items among the
    first K of the lists.
    """

    name: str
    ranks: Doubles
    users: Ints
    items: Ints
    times: Ints
    warm_user: Bools
    warm_item: Bools
    history: Ints
    seconds: float
    coverage: float
    novelty: float
    diversity: float
    popularity: float
    choices: tuple[Choice, ...] = ()
    cold_share: float = float("nan")

    @property
    def of_lists(self) -> dict[str, float]:
        """The figures of the lists, by name."""
        return {name: getattr(self, name) for name in LISTS}

    def per_user(self, metric: str, keep: Bools | None = None) -> Doubles:
        """hr, ndcg or mrr at K of each user, in the order of the user rows: (u,). keep (m,): targets that count."""
        chosen = slice(None) if keep is None else keep
        return metrics.per_user(self.per_event(metric)[chosen], self.users[chosen])[0]

    def per_event(self, metric: str) -> Doubles:
        """hr, ndcg or mrr at K of each target: (m,). With one relevant item, mrr equals average precision."""
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
    allow: Bools | None = None,
    rules: RulesAt | None = None,
) -> Outcome:
    """Rank all items for every state of `targets`; seen items are excluded unless repeats are allowed.

    All items are those published at the time of the state, see `published_batches`; allow (n,) restricts them
    further. rules: see `rank_targets`. Raises LeakError when a history holds what comes later, or a list an item that
    is published later.
    """
    check_histories(targets, split.cut)
    ranks, rows = rank_targets(recommender, targets, catalog, repeats=repeats, allow=allow, rules=rules)
    counts = np.bincount(split.train.positives().items, minlength=len(catalog))
    active = np.bincount(split.train.positives().users, minlength=split.train.n_users) > 0
    return Outcome(
        name=name,
        ranks=ranks,
        users=targets.users,
        items=targets.item,
        times=targets.states.as_of[targets.state],
        warm_user=active[targets.users],
        warm_item=counts[targets.item] > 0,
        history=targets.states.positives().lengths[targets.state],
        seconds=seconds,
        coverage=metrics.coverage(rows, len(catalog)),
        novelty=_mean(metrics.novelty(rows, counts)),
        diversity=_mean(metrics.diversity(rows, catalog.content)) if catalog.has_content.any() else float("nan"),
        popularity=_mean(metrics.popularity_percentile(rows, counts)),
        cold_share=_mean((counts[rows[rows >= 0]] == 0).astype(np.float64)),
    )


def headline_metrics(
    recommender: Recommender, targets: Targets, catalog: Catalog, *, repeats: bool
) -> dict[str, float]:
    """ndcg_at_10 and hr_at_10, means over users. Training selects the number of epochs by them."""
    ranks, _ = rank_targets(recommender, targets, catalog, repeats=repeats)
    figures = {"ndcg_at_10": metrics.ndcg(ranks, K, depth=DEPTH), "hr_at_10": metrics.hit(ranks, K, depth=DEPTH)}
    return {name: float(metrics.per_user(values, targets.users)[0].mean()) for name, values in figures.items()}


def rank_targets(
    recommender: Recommender,
    targets: Targets,
    catalog: Catalog,
    *,
    repeats: bool,
    allow: Bools | None = None,
    rules: RulesAt | None = None,
) -> tuple[Doubles, Ints]:
    """Ranks (m,) of m targets in slates of DEPTH items, and the first K item rows (b, K) of the slate of each state.

    The rank is inf where the slate lacks the target. Only published items are listed; allow (n,) restricts them
    further. Seen items are excluded unless repeats are allowed. rules: of a shop, which then choose the items, and
    their places. Where they explore, each slate has one draw: its seed follows from the time and the row of the user,
    and rows from the seed of the run.
    """
    states, groups = targets.states, item_groups(catalog)
    ranks, lists = np.full(len(targets), np.inf), np.full((len(states), K), -1, dtype=np.int64)
    row_in_batch = np.full(len(states), -1)  # (b,); -1: the state is not in the batch
    for rows, published in published_batches(states.as_of, catalog):
        batch = states[rows].compact()
        allowed = published if allow is None else published & allow
        seen = None if repeats else batch.seen_items()
        ruling = None if rules is None else rules(int(batch.as_of.max()))
        draws = None if rules is None else Draws.of(_seeds(batch), SLATE)
        candidates = recommend_slates(
            recommender, batch, DEPTH, groups, ruling, allow=allowed, exclude=seen, draws=draws
        )
        candidates = candidates if rules is None else _by_place(candidates)
        _check_listed(recommender, candidates.rows, allowed, int(batch.as_of[0]), catalog)
        row_in_batch[rows] = np.arange(len(rows))
        chosen = np.flatnonzero(row_in_batch[targets.state] >= 0)
        ranks[chosen] = metrics.target_ranks(candidates, row_in_batch[targets.state[chosen]], targets.item[chosen])
        lists[rows] = candidates.rows[:, :K]
        row_in_batch[rows] = -1
    return ranks, lists


def _check_listed(recommender: Recommender, rows: Ints, allowed: Bools, as_of: int, catalog: Catalog) -> None:
    """Raise LeakError when lists (b, k) have an item that could not be recommended on the day of `as_of` (µs)."""
    listed = rows[rows >= 0]
    if (wrong := listed[~allowed[listed]]).size:
        row, day = int(wrong[0]), as_of // DAY
        published = int(catalog.published[row]) // DAY
        reason = f"was published on {np.datetime64(published, 'D')}" if published > day else "was not allowed"
        name, item, listed_on = type(recommender).__name__, catalog.ids.ids[row], np.datetime64(day, "D")
        raise LeakError(
            f"leak: {name} lists the item {item!r}, which {reason}, on {listed_on}: return only items of `allow`"
        )


def _by_place(slates: Candidates) -> Candidates:
    """The slates (b, k), with scores by the places of the items where rules have put one below a lower score."""
    rises = np.asarray(slates.scores[:, 1:] > slates.scores[:, :-1]).any(axis=1, keepdims=True)  # (b, 1)
    places = np.where(slates.rows < 0, -np.inf, -np.arange(slates.rows.shape[1]))
    return replace(slates, scores=np.where(rises, places, slates.scores).astype(np.float32))


def _seeds(states: UserStates) -> Ints:
    """(b,) int64: the seed of the draw for each state."""
    keys = mix_keys(mix_keys(states.users.astype(np.uint64)) ^ states.as_of.astype(np.uint64))
    return (keys >> np.uint64(1)).astype(np.int64)


def published_batches(as_of: Ints, catalog: Catalog) -> Iterator[tuple[Ints, Bools]]:
    """Batches of at most BATCH of b states: rows of the states, and a mask (n,) of the items published by their time.

    An item that is published later could not be recommended. An item counts as published from the beginning of its
    day, so that all states of a day share a mask. Availability is not used: its value at the time is unknown.
    """
    day_ends = (as_of // DAY + 1) * DAY - 1
    n_published = np.searchsorted(np.sort(catalog.published), day_ends, side="right")  # (b,)
    order: Ints = np.argsort(n_published, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(n_published[order])) + 1):  # states with the same mask
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH], catalog.published_by(int(day_ends[group[0]]))


def _mean(values: Doubles) -> float:
    """The mean of the values that are not NaN; NaN where there is none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def join_windows(windows: Sequence[Outcome]) -> Outcome:
    """The outcomes of one model in several windows as one: targets concatenated, seconds summed, others averaged."""
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
        stack(lambda w: w.times),
        stack(lambda w: w.warm_user),
        stack(lambda w: w.warm_item),
        stack(lambda w: w.history),
        sum(w.seconds for w in windows),
        mean(lambda w: w.coverage),
        mean(lambda w: w.novelty),
        mean(lambda w: w.diversity),
        mean(lambda w: w.popularity),
        tuple(choice for w in windows for choice in w.choices),
        mean(lambda w: w.cold_share),
    )


@dataclass(frozen=True)
class Comparison:
    """Outcomes of several models on the same targets; `ours` names the one that the others are compared with."""

    title: str
    placement: str
    note: str
    hashes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    ours: str
    seed: int

    @property
    def settings(self) -> dict[str, str]:
        """Name of each baseline -> how its settings were chosen, as one clause."""
        return {o.name: describe_choices(o.choices) for o in self.outcomes if o.choices}

    def __post_init__(self) -> None:
        first = self.outcomes[0]
        for other in self.outcomes[1:]:
            if not (np.array_equal(first.users, other.users) and np.array_equal(first.items, other.items)):
                raise ValueError(f"{first.name} and {other.name} were evaluated on different targets")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dict for each model: metrics, intervals, and the paired difference in NDCG@10, ours minus the model."""
        ours = next(o for o in self.outcomes if o.name == self.ours)
        out = []
        for outcome in self.outcomes:
            row: dict[str, Any] = {"name": outcome.name}
            for metric in ("hr", "ndcg"):
                row[f"{metric}_at_{K}"] = interval_dict(bootstrap(outcome.per_user(metric), seed=self.seed))
            if outcome is not ours:
                difference = paired_bootstrap(ours.per_user("ndcg"), outcome.per_user("ndcg"), seed=self.seed)
                row[f"ours_minus_ndcg_at_{K}"] = interval_dict(difference)
            row |= {
                f"mrr_at_{K}": float(outcome.per_user("mrr").mean()),
                "coverage": outcome.coverage,
                "novelty_bits": outcome.novelty,
                "diversity": outcome.diversity,
                "popularity_percentile": outcome.popularity,
                "fit_seconds": round(outcome.seconds, 1),
            }
            segments = {
                "warm": outcome.warm_user & outcome.warm_item,
                "cold_user": ~outcome.warm_user,
                "cold_item": ~outcome.warm_item,
            }
            for segment, keep in segments.items():
                row[f"hr_at_{K}_{segment}"] = float(outcome.per_user("hr", keep).mean()) if keep.any() else None
            if outcome.choices:
                row["settings"] = [choice.to_dict() for choice in outcome.choices]
            out.append(row)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; null where a figure is undefined, e.g. the interval of a single user."""
        first = self.outcomes[0]
        return {
            "title": self.title,
            "placement": self.placement,
            "note": self.note,
            "split_hashes": list(self.hashes),
            "users": len(np.unique(first.users)),
            "events": len(first.users),
            "events_cold_user": int((~first.warm_user).sum()),
            "events_cold_item": int((~first.warm_item).sum()),
            "ours": self.ours,
            "rows": finite(self.rows),
        }

    def render(self) -> Table:
        """The table for a rich console."""
        facts = self.to_dict()
        head = (
            f"{self.title}\n{self.note}\nsplit {', '.join(self.hashes)} · {facts['users']:,} users · "
            f"{facts['events']:,} test events ({facts['events_cold_user']:,} of cold users, "
            f"{facts['events_cold_item']:,} of cold items: without a positive event before the cut)"
        )
        caption = [f"in brackets: 95 % interval over users; Δ: paired difference, {self.ours} minus the row"]
        caption += [f"{name}: {text}" for name, text in self.settings.items()]
        table = Table(title=head, caption="\n".join(caption), caption_justify="left" if self.settings else "center")
        segments = {"warm": "warm\nHR", "cold_user": "cold-user\nHR", "cold_item": "cold-item\nHR"}
        for column in (
            "",
            "HR@10",
            "NDCG@10",
            "Δ NDCG@10",
            *segments.values(),
            "cover-\nage",
            "popu-\nlarity",
            "fit s",
        ):
            table.add_column(column, justify="right" if column else "left")
        for row in self.rows:
            difference = row.get(f"ours_minus_ndcg_at_{K}")
            hits = [row[f"hr_at_{K}_{segment}"] for segment in segments]
            table.add_row(
                row["name"],
                show_interval(row[f"hr_at_{K}"]),
                show_interval(row[f"ndcg_at_{K}"]),
                show_interval(difference, "+") if difference else "",
                *("" if hit is None else f"{hit:.4f}" for hit in hits),
                f"{row['coverage']:.3f}",
                f"{row['popularity_percentile']:.2f}",
                f"{row['fit_seconds']:.1f}",
                style="bold" if row["name"] == self.ours else None,
            )
        return table


def finite(value: Any) -> Any:
    """The value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def interval_dict(interval: Interval) -> dict[str, float]:
    """An interval as plain values for JSON."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def show_interval(interval: Mapping[str, float], sign: str = "") -> str:
    """A mean with its bounds for a table. sign: "+" shows that of positive numbers, too."""
    return f"{interval['mean']:{sign}.4f} [{interval['low']:{sign}.4f}, {interval['high']:{sign}.4f}]"
