"""The immutable view that one request works with: a loaded bundle, the store, and arrays computed from them once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl

from features.arrays import Bools, Doubles, Floats, Ints
from features.history_rules import seen_items, short_keys
from features.instants import now_micros
from features.interactions import Ragged, UserStates
from features.schema import CATEGORIES, IMAGE, PRICE, TITLE, VIEW
from features.store.base import FeatureStore
from features.store.user_state import UserState
from recsys.interfaces import Candidates
from recsys.ranking.exploration import Draws
from recsys.ranking.slate import Slate, fill_slates, slate_of
from recsys.ranking.slate_rules import Losses, SlateRules
from recsys.retrieval.filters import Choices, Filter
from recsys.stored_states import states_in_rows
from serving.products import Products
from serving.schemas.fields import media_url
from serving.servable import ServableBundle


@dataclass(frozen=True)
class Recommended:
    """A slate for one user, and functions that tell how it came about. They are called for explanations only.

    ranked: all candidates that the slate was filled from, best first (1, m); retrieval_scores: of all items (n,),
    None for popular items; contributions, features: of the items of the slate, see `Explainable`. candidates: those
    of `ranked` as they were when the slate was filled, (1, m), None unless they were asked for. probabilities (k,):
    that an item is the user's next one, None where it is not known.
    """

    slate: Slate
    ranked: Callable[[], Candidates]
    retrieval_scores: Callable[[], Floats | None] = lambda: None
    contributions: Callable[[], Doubles | None] = lambda: None
    features: Callable[[], Floats | None] = lambda: None
    candidates: Candidates | None = None
    probabilities: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class ServingSnapshot:
    """A bundle with its store and derived arrays. An update makes a new snapshot and replaces the old one in a single
    assignment.

    products: which items are variants of each other, and the rows of items by key; cards: fields shown of each item;
    available (n,) bool: items that may be shown, the only array that changes while requests read it, and only from
    True to False; now: returns the time (µs); upcoming: rows of items whose publication time lay in the future when
    the snapshot was made; filter_mask (n,) bool: items that the filter of one request selects, None without one.
    """

    bundle: ServableBundle
    store: FeatureStore
    products: Products
    cards: tuple[dict[str, Any], ...]
    available: Bools
    now: Callable[[], int]
    upcoming: Ints
    filter_mask: Bools | None = None

    @classmethod
    def of(
        cls, bundle: ServableBundle, store: FeatureStore, now: Callable[[], int] = now_micros
    ) -> "ServingSnapshot":
        """The snapshot of a bundle, with the cards (item_id, title, categories, image, price) of all items."""
        catalog = bundle.catalog
        cards = tuple(_cards(catalog.ids.ids, catalog.frame))
        available, upcoming = catalog.available.copy(), np.flatnonzero(~catalog.published_by(now()))
        return cls(bundle, store, Products.of(catalog), cards, available, now, upcoming)

    def with_upserts(self, bundle: ServableBundle, items: Sequence[str]) -> "ServingSnapshot":
        """The snapshot of `bundle`, which is this bundle with `items` added or replaced.

        `available` comes from its catalogue: items that were hidden here are not hidden there.
        """
        catalog, rows = bundle.catalog, bundle.catalog.ids.rows(items)
        cards = [*self.cards, *[{}] * (len(catalog) - len(self.cards))]
        for row, card in zip(rows.tolist(), _cards(items, catalog.frame[rows]), strict=True):
            cards[row] = card
        return replace(
            self,
            bundle=bundle,
            products=self.products.extended(catalog),
            cards=tuple(cards),
            available=catalog.available.copy(),
            upcoming=np.flatnonzero(~catalog.published_by(self.now())),
        )

    @property
    def groups(self) -> Ints:
        """(n,) int64: the product of each item, see `item_groups`."""
        return self.products.groups

    def hide(self, item: str) -> None:
        """Hide an item from the next response on."""
        if (row := self.bundle.catalog.ids.row(item)) >= 0:
            self.available[row] = False

    def with_filter(self, item_filter: Filter) -> "ServingSnapshot":
        """The snapshot for one request, restricted by its filter. Raises DataError when the filter does not apply."""
        return replace(self, filter_mask=item_filter.mask(self.bundle.catalog))

    @cached_property
    def choices(self) -> Choices:
        """What filters can choose from."""
        return Choices.of(self.bundle.catalog, self.bundle.data.extra_columns)

    def allowed(self) -> Bools:
        """(n,) bool: items that a response may hold now. The array is a copy, which no update changes."""
        allowed = self.available.copy() if self.filter_mask is None else self.available & self.filter_mask
        if len(self.upcoming):
            allowed[self.upcoming] &= self.bundle.catalog.published[self.upcoming] <= self.now()
        return allowed

    def rows(self, ids: Iterable[str]) -> Ints:
        """Rows of the ids that are in the bundle; other ids are skipped."""
        rows = self.bundle.catalog.ids.rows(list(ids))
        return rows[rows >= 0]

    def states(self, users: Sequence[UserState], now: int) -> UserStates:
        """The states of b users with items as rows of the bundle; see `states_in_rows`."""
        return states_in_rows(users, self.bundle.catalog.ids, self.bundle.data.events, now)

    def seen_rows(self, state: UserState) -> Ints:
        """Rows of the items that the user has seen. Items that are not in the bundle are skipped."""
        return self.products.items.rows(seen_items(state.seen))

    def rotated(self, rules: SlateRules, state: UserState, begun: int) -> SlateRules:
        """The rules with what products lose that the user was shown before a list was begun (µs).

        A view is no touch: it says that the user has seen the item, and nothing more.
        """
        if rules.rotation is None:
            return rules
        shown, rows = self.products.items.pairs(short_keys(state.shown.keys))
        touched = self.bundle.catalog.ids.rows(state.items)
        touches = (touched >= 0) & np.array([name != VIEW for name in state.names], dtype=np.bool_)[state.kinds]
        losses = Losses.of(
            rules.rotation,
            self.groups[rows],
            state.shown.times[shown],
            self.groups[touched[touches]],
            state.times[touches],
            begun,
        )
        return replace(rules, losses=losses)

    def recommend(
        self,
        states: UserStates,
        seen: Ints,
        k: int,
        trace: dict[str, float],
        rules: SlateRules | None = None,
        *,
        seed: int | None = None,
        keep: bool = False,
    ) -> Recommended:
        """The slate from the models: user tower, index, reranker. seen: rows to leave out; trace: ms by stage.

        seed: of the draw where a rule explores; None: nothing is explored. keep: return the candidates, too, of the
        same slate.
        """
        exclude = Ragged(seen, np.zeros(1, np.int64), np.array([len(seen)], dtype=np.int64))
        recommender, allow, asked = self.bundle.recommender, self._allowed_by(rules), [k]
        search, found = recommender.ranked if keep else recommender.recommend, list[Candidates]()
        may_pin = allow.copy()
        may_pin[seen] = False

        def find(n: int) -> Candidates:
            asked.append(n)
            found[:] = [search(states, n, allow=allow, exclude=exclude)]
            return found[0]

        slate = self._fill(find, k, "history", trace, rules, may_pin, seed)
        return Recommended(
            slate,
            lambda: recommender.ranked(states, asked[-1], allow=allow, exclude=exclude),
            lambda: recommender.retrieval_scores(states),
            lambda: recommender.contributions(states, slate.rows, asked[-1], allow=allow, exclude=exclude),
            lambda: recommender.features(states, slate.rows, asked[-1], allow=allow, exclude=exclude),
            found[0] if keep else None,
            _of_ranked(slate, recommender.probabilities(slate.rows, slate.scores)),
        )

    def popular(
        self,
        seen: Ints,
        k: int,
        trace: dict[str, float],
        rules: SlateRules | None = None,
        *,
        seed: int | None = None,
        keep: bool = False,
    ) -> Recommended:
        """The slate of the most popular items, for users without positive items. seed, keep: as in `recommend`."""
        allowed = self._allowed_by(rules)
        allowed[seen] = False
        order = self.bundle.popular
        rows = order[allowed[order]]
        found = Candidates(rows[None], self.bundle.popularity[rows][None])

        def find(n: int) -> Candidates:
            return Candidates(found.rows[:, :n], found.scores[:, :n])

        slate = self._fill(find, k, "popular", trace, rules, allowed, seed)
        return Recommended(slate, lambda: found, candidates=found if keep else None)

    def _allowed_by(self, rules: SlateRules | None) -> Bools:
        allowed = self.allowed()
        return allowed if rules is None else allowed & rules.allowed

    def remain(self, slate: Slate, left_out: Ints, among: Bools | None = None) -> bool:
        """Whether products are left beside those of a slate. left_out: rows; among (n,) bool: None for all items."""
        left = self.allowed() if among is None else self.allowed() & among
        left[left_out] = left[slate.rows] = False
        first = int(left.argmax()) if len(left) else -1
        if first < 0 or not left[first]:
            return False
        if self.groups[first] not in self.groups[slate.rows]:  # nearly always: the mask below takes longer
            return True
        return bool((left & ~self.products.variants(slate.rows)).any())

    def continues(
        self, slate: Slate, k: int, left_out: Ints, rules: SlateRules | None, among: Bools | None = None
    ) -> bool:
        """Whether a page of at most k items may be followed by another one. left_out, among: as in `remain`.

        A slate that is not filled ends the list, except where caps, which hold for each page, have left items out.
        """
        if rules is not None:
            among = rules.allowed if among is None else among & rules.allowed
        is_capped = rules is not None and bool(rules.caps) and len(slate) > 0
        return (len(slate) == k or is_capped) and self.remain(slate, left_out, among)

    def similar(
        self, row: int, k: int, trace: dict[str, float], left_out: Ints, rules: SlateRules | None = None
    ) -> Slate:
        """The slate of items similar to one item. left_out: rows, with those of the item and its variants."""
        exclude = Ragged(left_out, np.zeros(1, np.int64), np.array([len(left_out)], dtype=np.int64))
        rows, allow = np.array([row], dtype=np.int64), self._allowed_by(rules)

        def find(n: int) -> Candidates:
            return self.bundle.similar(rows, n, allow=allow, exclude=exclude)

        return self._fill(find, k, "similar", trace, _reordering(rules))

    def search(
        self,
        vector: Floats,
        k: int,
        trace: dict[str, float],
        left_out: Ints,
        user: UserStates | None = None,
        weight: float = 0,
        rules: SlateRules | None = None,
    ) -> Slate:
        """The slate of items whose content is nearest to a query (1, D), and near to a user by `weight`."""
        bundle, allow = self.bundle, self._allowed_by(rules) & self.bundle.catalog.has_content
        allow[left_out] = False

        def find(n: int) -> Candidates:
            if user is None:
                return bundle.search(vector, n, allow=allow)
            return bundle.search_for(vector, user, n, weight=weight, allow=allow)

        return self._fill(find, k, "search", trace, _reordering(rules))

    def near(self, row: int, slate: Slate) -> list[dict[str, float | None]]:
        """Similarity of each item of a slate to one item, by behaviour (the score) and content channel (cosine)."""
        space = self.bundle.content
        cosines = {} if space is None else space.near_item(row, slate.rows)
        return rows_by_item({"behaviour": slate.scores.tolist(), **cosines}, len(slate))

    def _fill(
        self,
        find: "Finder",
        k: int,
        reason: str,
        trace: dict[str, float],
        rules: SlateRules | None = None,
        allow: Bools | None = None,
        seed: int | None = None,
    ) -> Slate:
        """A slate of k items, or of all that there are. reason: of items whose source is not known.

        rules: choose among the candidates; allow (n,): items that they may pin; seed: of their exploration.
        """
        draws = None if seed is None else Draws.of(np.array([seed]))
        chosen = fill_slates(lambda _, n: self._shown(find(n)), 1, k, self.groups, rules, allow=allow, draws=draws)
        return slate_of(
            chosen,
            self.bundle.catalog,
            reason=reason,
            trace=trace,
            fingerprint=self.bundle.fingerprint,
            drawn=None if draws is None else draws.drawn.get(0),
        )

    def _shown(self, found: Candidates) -> Candidates:
        """The candidates without items that were hidden since they were looked for."""
        hidden = ~self.available[found.rows]
        return replace(found, scores=np.where(hidden, np.float32(-np.inf), found.scores)) if hidden.any() else found


def _reordering(rules: SlateRules | None) -> SlateRules | None:
    """The rules where more than the best candidates are needed to apply them."""
    return rules if rules is not None and rules.reorders else None


def card(
    item: str,
    title: str | None = None,
    categories: Sequence[str] | None = None,
    image: str | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """The fields of an item in responses."""
    shown = {"item_id": item, "title": title, "categories": categories or []}
    return {**shown, "image": media_url(item, image), "price": price}


def _cards(items: Iterable[str], frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    columns = [
        frame.get_column(name).to_list() if name in frame.columns else [None] * len(frame)
        for name in (TITLE, CATEGORIES, IMAGE, PRICE)
    ]
    return (card(*values) for values in zip(items, *columns, strict=True))


def rows_by_item(columns: Mapping[str, Sequence[float | None]], k: int) -> list[dict[str, float | None]]:
    """Columns of k values each -> one dict per item, for k items."""
    return [{name: values[i] for name, values in columns.items()} for i in range(k)]


def _of_ranked(slate: Slate, probabilities: Doubles | None) -> tuple[float | None, ...] | None:
    """The probabilities (k,) of the items of a slate; None for pins, whose score may not be their own."""
    if probabilities is None:
        return None
    return tuple(
        None if reason == "pinned" else value
        for value, reason in zip(probabilities.tolist(), slate.reasons, strict=True)
    )


class Finder(Protocol):
    """Finds the best candidates of one request."""

    def __call__(self, n: int, /) -> Candidates:
        """At most n candidates: rows and scores (1, n)."""
        ...
