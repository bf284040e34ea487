"""Rules as a slate applies them: a shop's rules, compiled for one catalogue, choose among one user's candidates."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import polars as pl

from features.arrays import Bools, Doubles, Floats, Ints
from features.catalog import Catalog, type_name
from features.errors import DataError
from features.instants import DAY
from features.schema import CATEGORIES
from recsys.interfaces import SOURCES, Candidates
from recsys.ranking.exploration import Drawn, Draws, Value, deal, draw
from recsys.ranking.rules import Explore, Rotation, Rule, Rules

CANDIDATES = 500
"""Candidates that rules choose from; more where these do not fill a slate."""


MayShow = Callable[[int, Ints], Bools]
"""(state, rows (p,)) -> whether the state may be shown each item: (p,) bool."""


@dataclass(frozen=True)
class Losses:
    """What the products that one user was shown lose. products (m,): of `item_groups`, ascending; by (m,) float64."""

    products: Ints
    by: Doubles

    @classmethod
    def of(cls, rotation: Rotation, shown: Ints, times: Ints, touched: Ints, touches: Ints, now: int) -> "Losses":
        """The losses at `now` (µs).

        shown (m,): products that were shown at times (m,), of which those before `now` count; touched (e,): products
        of the user's events at touches (e,). All times are µs.
        """
        span = rotation.days * DAY
        counts = (times < now) & (now - times < span)
        products, at = np.unique(shown[counts], return_inverse=True)
        newest = np.zeros(len(products), dtype=np.int64)
        np.maximum.at(newest, at, times[counts])
        losses = cls(products, rotation.by * (1 - (now - newest) / span))
        place, known = losses._places(touched)
        is_since = touches[known] >= newest[place[known]]
        losses.by[place[known][is_since]] = 0
        return losses

    def _places(self, products: Ints) -> tuple[Ints, Bools]:
        """The place of each of products (w,) among those that lose, and whether it is among them."""
        place = np.searchsorted(self.products, products)
        known = place < len(self.products)
        known[known] = self.products[place[known]] == products[known]
        return place, known

    def among(self, products: Ints) -> Doubles:
        """What each of products (w,) loses: (w,)."""
        place, known = self._places(products)
        out = np.zeros(len(products))
        out[known] = self.by[place[known]]
        return out


@dataclass(frozen=True)
class SlateRules:
    """The rules of a request over n items.

    allowed (n,) bool: items that `only` and `exclude` leave. pins: position, from 1 -> row. caps: for each its codes
    (n, w), -1 = no value, and how often one may occur. boost (n,): added to standardised scores. minimum: of the
    score. fresh (n,) bool and share: new items and their share. vectors: (n, d) of unit rows each, compared by their
    mean cosine; weight: of diversity. rotation, rotation_name: a rule of rotation and its name; losses: what it takes
    from standardised scores, None where it is not applied. explore, explore_name: a rule of exploration and its name.
    notes: rules that cannot be applied, and why.
    """

    allowed: Bools
    pins: dict[int, int] = field(default_factory=dict)
    caps: tuple[tuple[Ints, int], ...] = ()
    boost: Doubles | None = None
    minimum: float = -np.inf
    fresh: Bools | None = None
    share: float = 0.0
    vectors: tuple[Floats, ...] = ()
    weight: float = 0.0
    rotation: Rotation | None = None
    rotation_name: str = ""
    losses: Losses | None = None
    explore: Explore | None = None
    explore_name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def reorders(self) -> bool:
        """Whether the slate may be another one than the best candidates that are allowed, apart from exploration."""
        rotates = self.losses is not None and self.losses.by.any()
        changes = (self.pins, self.caps, self.vectors, self.boost is not None, self.fresh is not None, rotates)
        return any(map(bool, changes)) or self.minimum > -np.inf

    def after(self, shown: int) -> "SlateRules":
        """The rules of a page that follows `shown` items of a list: positions of rules are those in the list."""
        explore = self.explore and self.explore.after(shown)
        pins = {position - shown: row for position, row in self.pins.items() if position > shown}
        return replace(self, pins=pins, explore=explore)

    def choose(
        self,
        found: Candidates,
        groups: Ints,
        k: int,
        may_show: MayShow,
        ended: Bools,
        draws: Draws | None = None,
    ) -> Candidates:
        """The slates of b states: (b, k). found (b, c): candidates, best first; groups (n,): of `item_groups`; ended
        (b,) bool: whether there are no more candidates; draws: of the b states, without them nothing is explored.

        A pin is left out where its item may not be shown, is a variant of an earlier pin, or is above a cap. A pin
        beyond k is held back for the page that has its position; it ends a slate that is not filled without it.
        """
        positions = sorted(self.pins)
        pinned = np.array([self.pins[position] for position in positions], dtype=np.int64)
        extended, width = _with_pins(found, pinned), found.rows.shape[1]
        orders = np.full((len(found), k), -1, dtype=np.int64)
        for state, order in enumerate(orders):
            rows, scores = extended.rows[state], extended.scores[state]
            usable = (rows >= 0) & np.isfinite(scores) & self.allowed[rows]
            usable[:width] &= scores[:width] >= self.minimum
            usable[width:] &= may_show(state, pinned)
            filling = _Filling(self, rows, scores, groups, usable, width)
            places = {p: at for at, p in enumerate(positions, width) if p <= k and filling.take(at)}
            later = [at for at, p in enumerate(positions, width) if p > k and filling.hold(at)]
            candidates = np.flatnonzero(usable[:width])
            chosen = filling.fill(k, places)
            if ended[state]:
                chosen += [at for at in later if filling.take(at)][: k - len(chosen)]
            if self.explore is not None and draws is not None:
                slate, seed = chosen[: draws.length], int(draws.seeds[state])
                pins = {*places.values(), *later}
                slate, drawn = filling.explore(self.explore, slate, candidates, pins, seed)
                chosen = slate + [at for at in chosen[draws.length or k :] if at not in slate]
                draws.drawn[int(draws.states[state])] = drawn
            order[: len(chosen)] = chosen
        return extended.take(orders)


class _Filling:
    """One slate while it is filled: which of w items are still usable. The first `width` are candidates, the others
    pins."""

    def __init__(
        self, rules: SlateRules, rows: Ints, scores: Floats, groups: Ints, usable: Bools, width: int
    ) -> None:
        """rows, scores, usable (w,); `usable` is changed."""
        self.rules, self.rows, self.groups, self.usable = rules, rows, groups[rows], usable
        self.is_candidate = np.arange(len(rows)) < width
        self.values = _standardised(scores, usable)
        if rules.boost is not None:
            self.values += rules.boost[rows]
        if rules.losses is not None:
            self.values -= rules.losses.among(self.groups)
        self.codes = [codes[rows] for codes, _ in rules.caps]  # (w, c) each
        self.counts = [np.zeros(int(codes.max(initial=-1)) + 1, dtype=np.int64) for codes, _ in rules.caps]
        self.vectors = [half[rows] for half in rules.vectors]  # (w, d) each
        self.nearest = np.full(len(rows), -1.0)  # the largest cosine with an item of the slate

    def take(self, at: int) -> bool:
        """Take an item, if it is usable; its variants, and items of values that are then at their cap, are not."""
        if not self.usable[at]:
            return False
        self.usable[self.groups == self.groups[at]] = False
        for (_, at_most), codes, counts in zip(self.rules.caps, self.codes, self.counts, strict=True):
            own = codes[at]
            counts[own[own >= 0]] += 1
            is_full = np.append(counts >= at_most, False)  # the last is of -1: no value
            self.usable[is_full[codes].any(1)] = False
        if self.vectors:
            cosines = sum(half @ half[at] for half in self.vectors) / len(self.vectors)
            np.maximum(self.nearest, cosines, out=self.nearest)
        return True

    def hold(self, at: int) -> bool:
        """Leave out the variants of an item, if it is usable: none of them is taken in its stead."""
        is_usable = bool(self.usable[at])
        if is_usable:
            self.usable[self.groups == self.groups[at]] = False
            self.usable[at] = True
        return is_usable

    def fill(self, k: int, places: dict[int, int]) -> list[int]:
        """Indices of the items of the slate, in order. places: position -> index of a pin, which has been taken."""
        rules, chosen = self.rules, list[int]()
        for position in range(1, k + 1):
            if position in places:
                chosen.append(places[position])
                continue
            free = self.usable & self.is_candidate
            if rules.fresh is not None:
                is_new = rules.fresh[self.rows]
                missing = int(rules.share * position + 1e-9) - np.count_nonzero(is_new[chosen])
                if missing > 0 and (free & is_new).any():
                    free = free & is_new
            if not free.any():
                break
            gains = (1 - rules.weight) * self.values - rules.weight * self.nearest
            chosen.append(int(np.argmax(np.where(free, gains, -np.inf))))
            self.take(chosen[-1])
        return chosen + [at for at in places.values() if at not in chosen]

    def explore(
        self, explore: Explore, chosen: list[int], candidates: Ints, pinned: Collection[int], seed: int
    ) -> tuple[list[int], Drawn]:
        """A filled slate after the draw of its explored positions, and what was drawn.

        chosen: indices of the items of the slate; candidates: indices of those that it was filled from, best first.
        """
        positions = [p for p in sorted(explore.positions) if p <= len(chosen) and chosen[p - 1] not in pinned]
        own = [chosen[position - 1] for position in positions]
        following = self._following(chosen, candidates, explore.among)
        is_new = np.zeros(len(self.rows), np.bool_) if self.rules.fresh is None else self.rules.fresh[self.rows]
        pools = deal(
            [self._values_of(at) for at in following],
            [self._values_of(at) for at in own],
            Counter(value for at in {*chosen} - {*own} for value in self._values_of(at)),
            [at_most for _, at_most in self.rules.caps],
            lambda item, position: bool(is_new[following[item]] or not is_new[own[position]]),
        )
        places = draw([*map(len, pools)], explore.rate, seed)
        slate, rows = [*chosen], self.rows.tolist()
        for position, pool, place in zip(positions, pools, places, strict=True):
            if place >= 0:
                slate[position - 1] = following[pool[place]]
        drawn = Drawn(
            self.rules.explore_name,
            explore.rate,
            seed,
            tuple(positions),
            tuple(rows[at] for at in own),
            tuple(tuple(rows[following[item]] for item in pool) for pool in pools),
            tuple(rows[slate[position - 1]] for position in positions),
        )
        return slate, drawn

    def _following(self, chosen: list[int], candidates: Ints, limit: int) -> list[int]:
        """Indices of the best candidate of each product that the slate lacks, best first."""
        best = candidates[np.argsort(-self.values[candidates], kind="stable")]
        products, following = {*self.groups[chosen].tolist()}, list[int]()
        for at, product in zip(best.tolist(), self.groups[best].tolist(), strict=True):
            if len(following) == limit:
                break
            if product not in products:
                products.add(product)
                following.append(at)
        return following

    def _values_of(self, at: int) -> set[Value]:
        """The values of an item that caps count."""
        return {(cap, code) for cap, codes in enumerate(self.codes) for code in codes[at].tolist() if code >= 0}


def _with_pins(found: Candidates, pinned: Ints) -> Candidates:
    """The candidates, then the pinned items; their score is that of their candidate, or the smallest of the line."""
    rows = np.concatenate((found.rows, np.broadcast_to(pinned, (len(found), len(pinned)))), axis=1)
    finite = np.where(np.isfinite(found.scores), found.scores, np.inf)
    smallest = np.where(np.isinf(low := finite.min(1, initial=np.inf)), 0, low)  # (b,)
    same = found.rows[:, :, None] == pinned  # (b, c, p)
    own = np.where(same & np.isfinite(found.scores)[:, :, None], found.scores[:, :, None], -np.inf).max(
        1, initial=-np.inf
    )
    scores = np.concatenate((found.scores, np.where(np.isneginf(own), smallest[:, None], own)), axis=1)
    is_pin = np.arange(rows.shape[1]) >= found.rows.shape[1]  # (c + p,)
    sources, places = np.where(is_pin, SOURCES.index("pinned"), -1), np.full(len(is_pin), -1)
    sources, places = (np.tile(values.astype(np.int32), (len(found), 1)) for values in (sources, places))
    if found.sources is not None and found.places is not None:
        sources[:, ~is_pin], places[:, ~is_pin] = found.sources, found.places
    return Candidates(rows, scores.astype(np.float32), sources, places)


def _standardised(scores: Floats, usable: Bools) -> Doubles:
    """(score - mean) / standard deviation over the usable scores (w,); 0 where not usable."""
    known = scores[usable].astype(np.float64)
    out = np.zeros(len(scores))
    if len(known):
        out[usable] = (known - known.mean()) / max(float(known.std()), 1e-9)
    return out


def compile_rules(rules: Sequence[Rule], catalog: Catalog, vectors: Floats | None, now: int) -> SlateRules:
    """The rules over the items of a catalogue. vectors (n, d): of the towers, None for none; now: time (µs).

    A rule that does not fit the catalogue is left out, and `notes` says so.
    """
    n, notes, allowed = len(catalog), list[str](), np.ones(len(catalog), dtype=np.bool_)
    known: dict[str, object] = {}
    pins, caps, boost = dict[int, int](), list[tuple[Ints, int]](), np.zeros(n)
    for rule in rules:
        try:
            if rule.only:
                allowed &= rule.only.mask(catalog)
            if rule.exclude:
                allowed &= ~rule.exclude.mask(catalog)
            if rule.boost:
                boost += rule.boost.by * rule.boost.items.mask(catalog)
            if rule.cap:
                caps.append((codes_of(catalog, rule.cap.column), rule.cap.at_most))
            if rule.pin:
                if (row := catalog.ids.row(rule.pin.item)) < 0 or not catalog.available[row]:
                    raise DataError(f"it pins item {rule.pin.item}, which is not in the catalogue or not available")
                pins[rule.pin.position] = row
            if rule.minimum is not None:
                known["minimum"] = rule.minimum
            if rule.fresh:
                since = now - int(rule.fresh.days * DAY)
                is_new = catalog.dated & (catalog.published >= since) & (catalog.published <= now)
                known |= {"fresh": is_new, "share": rule.fresh.share}
            if rule.rotation:
                known |= {"rotation": rule.rotation, "rotation_name": rule.name}
            if rule.explore:
                known |= {"explore": rule.explore, "explore_name": rule.name}
            if rule.diversity:
                known |= {"vectors": _halves(rule, catalog, vectors), "weight": rule.diversity.weight}
        except DataError as error:
            notes.append(f"rule {rule.name!r} is not applied: {error}")
    has_boost = boost if boost.any() else None
    return SlateRules(allowed, pins, tuple(caps), has_boost, notes=tuple(notes), **known)  # type: ignore[arg-type]


def rules_by_user(
    rules: Rules, placement: str, catalog: Catalog, vectors: Floats | None, now: int
) -> Callable[[bool], SlateRules]:
    """Whether a user is without a positive event -> the rules of a placement; see `compile_rules`."""
    return cache(lambda cold: compile_rules(rules.of(placement, cold=cold), catalog, vectors, now))


def misfit(rule: Rule, catalog: Catalog, vectors: Floats | None, now: int) -> str:
    """Why a rule cannot be applied to a catalogue; "" when it can."""
    return "; ".join(compile_rules([rule], catalog, vectors, now).notes)


def _halves(rule: Rule, catalog: Catalog, vectors: Floats | None) -> tuple[Floats, ...]:
    assert rule.diversity is not None
    half = rule.diversity.half
    if half != "behaviour" and not catalog.has_content.any():
        raise DataError(f"diversity by {half}: the items have no contents; compare by behaviour")
    if half != "content" and vectors is None:
        raise DataError(f"diversity by {half}: the bundle has no vectors of behaviour")
    behaviour = () if half == "content" or vectors is None else (vectors,)
    return (*behaviour, *(() if half == "behaviour" else (catalog.content,)))


def codes_of(catalog: Catalog, column: str) -> Ints:
    """Numbers of the values of a column: (n, w) int64, w values of a list or 1; -1 where there is none.

    Raises DataError when the catalogue has no such column.
    """
    if column == CATEGORIES:
        return catalog.categories.astype(np.int64)
    if column not in catalog.frame.columns:
        raise DataError(f"the items have no column {column!r}; there are: {', '.join(catalog.frame.columns)}")
    values = catalog.frame.get_column(column)
    kind = values.explode().dtype if isinstance(values.dtype, pl.List) else values.dtype
    if kind.is_nested() or isinstance(kind, pl.Object):
        raise DataError(
            f"column {column!r} holds {type_name(values.dtype)}: name a column of texts, numbers or lists"
        )
    if kind == pl.Boolean:
        values = values.cast(pl.List(pl.UInt8) if isinstance(values.dtype, pl.List) else pl.UInt8)
    if not isinstance(values.dtype, pl.List):
        return values.rank("dense").cast(pl.Int64).fill_null(0).to_numpy()[:, None] - 1
    rows = pl.DataFrame({"row": pl.int_range(len(values), eager=True), "value": values}).explode("value").drop_nulls()
    rows = rows.with_columns(pl.col("value").rank("dense").cast(pl.Int64) - 1, pl.int_range(pl.len()).over("row"))
    at = rows.get_column("row").to_numpy()
    place = np.arange(len(rows)) - np.searchsorted(at, at)
    out = np.full((len(values), int(place.max(initial=0)) + 1), -1, dtype=np.int64)
    out[at, place] = rows.get_column("value").to_numpy()
    return out
