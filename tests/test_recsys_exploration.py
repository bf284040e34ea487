"""Exploration: the law by hand, frequencies against propensities, and what no outcome may break."""

from collections import Counter
from functools import partial
from itertools import product
from random import Random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recsys_rules import ANY, CATALOG, NOW, VECTORS, N, rules_of
from toy_data import toy_catalog

from experiments.evaluation.ranking import rank_targets
from experiments.splits import Targets
from features.interactions import Interactions, Ragged
from recsys.interfaces import Candidates, top_k
from recsys.ranking.exploration import Drawn, Draws, deal, draw
from recsys.ranking.rules import Rule, Rules
from recsys.ranking.slate import fill_slates, item_groups, slate_of
from recsys.ranking.slate_rules import codes_of, compile_rules, rules_by_user

PRODUCTS = item_groups(CATALOG)


def explored(
    rules: tuple[Rule, ...], order: list[int], k: int, seeds: list[int], **shown: Any
) -> tuple[list[list[int]], list[Drawn]]:
    """The slates of users whose candidates are `order`, scored 1, .9, …; one for each seed; and what was drawn."""
    compiled = compile_rules(rules, CATALOG, VECTORS, NOW)
    assert not compiled.notes
    rows = [row for row in order if compiled.allowed[row]]

    def find(states: np.ndarray, n: int) -> Candidates:
        line = np.full((len(states), n), -1)
        line[:, : len(rows[:n])] = rows[:n]
        return Candidates(line, np.where(line < 0, -np.inf, 1 - 0.1 * np.arange(n)).astype(np.float32))

    draws = Draws.of(np.array(seeds))
    if "exclude" in shown:
        shown["exclude"] = Ragged.of([shown["exclude"]] * len(seeds))
    chosen = fill_slates(find, len(seeds), k, PRODUCTS, compiled, draws=draws, **shown)
    return [[row for row in line if row >= 0] for line in chosen.rows.tolist()], [
        draws.drawn[state] for state in range(len(seeds)) if state in draws.drawn
    ]


def explore(*positions: int, rate: float = 0.4, among: int = 50) -> dict[str, Any]:
    return {"explore": {"positions": [*positions], "rate": rate, "among": among}}


ORDER = [*range(N)]  # 3 is a variant of 0, 7 of 6


def test_products_are_dealt_to_the_positions_in_turn() -> None:
    _, (drawn,) = explored(rules_of(explore(4, 2)), ORDER, 5, [1])
    # the slate is 0, 1, 2, 4, 5; the products after it are 6, 8, 9, 10, 11
    assert (drawn.positions, drawn.own, drawn.pools) == ((2, 4), (1, 4), ((6, 9, 11), (8, 10)))
    _, (drawn,) = explored(rules_of(explore(4, 2, among=3)), ORDER, 5, [1])
    assert drawn.pools == ((6, 9), (8,))
    _, (drawn,) = explored(rules_of(explore(1, 6, 5)), ORDER, 5, [1])  # the slate has no sixth position
    assert (drawn.positions, drawn.pools) == ((1, 5), ((6, 9, 11), (8, 10)))
    _, (drawn,) = explored(rules_of(explore(1)), [1, 2], 2, [1])  # nothing follows
    assert (drawn.pools, drawn.shown, drawn.propensities(2).tolist()) == (((),), (1,), [1.0, 1.0])


def test_a_pinned_position_is_not_explored() -> None:
    rules = rules_of(explore(1, 2), {"pin": {"item": "i9", "position": 2}})
    _, (drawn,) = explored(rules, ORDER, 3, [1])
    assert (drawn.positions, drawn.own) == ((1,), (0,))
    assert 9 not in drawn.pools[0]


def test_a_product_joins_no_pool_where_an_outcome_could_break_a_cap() -> None:
    # brands: 0 a, 1 a, 2 b, 3 b, 4 b, 5 -, 6 c, 7 a, 8 b, 9 c, 10 -, 11 a; the slate is 0 a, 2 b, 5 -, 6 c
    rules = rules_of(explore(2, 4), {"cap": {"column": "brand", "at_most": 1}})
    slates, (drawn,) = explored(rules, ORDER, 4, [3])
    assert drawn.own == (2, 6)
    # 1 a fits nowhere; 4 b only where b stands; then it is the other's turn, but 8 b goes to b again; 11 a nowhere
    assert drawn.pools == ((4, 8, 10), (9,))
    assert slates[0][0] == 0


def test_only_a_new_item_takes_the_place_of_a_new_one() -> None:
    # new in the last 3 days: 1, 2, 5, 8 (7 is published tomorrow); half of the slate is new: 0, 1, 3, 2
    rules = rules_of(explore(2, 3), {"fresh": {"share": 0.5, "days": 3}})
    _, (drawn,) = explored(rules, [0, 4, 6, 9, 1, 2, 5, 8, 10], 4, [1])
    assert drawn.own[0] == 1
    assert {*drawn.pools[0]} <= {2, 5, 8}
    assert drawn.pools[1]


def test_the_law_of_the_pools_by_hand() -> None:
    """Values (0, v) of one cap of 2. Fixed: v1 once. Own: v1, v2. Then v1 twice, v2 once."""
    one, two, three = {(0, 1)}, {(0, 2)}, {(0, 3)}
    pools = deal([one, one, two, three, set()], [one, two], Counter({(0, 1): 1}), [2], lambda item, place: True)
    # 0: the first has v1 already. 1: v1 may not join the second, so the first takes it. 2: the second. 3: the first.
    assert pools == [[0, 1, 3], [2, 4]]
    assert deal([one], [two], Counter({(0, 1): 2}), [2], lambda item, place: True) == [[]]
    assert deal([one], [], Counter(), [2], lambda item, place: True) == []


def test_the_draw_is_repeatable_by_the_standard_library() -> None:
    source = Random(7)
    expected = []
    for size in (3, 0, 5):
        first, second = source.random(), source.random()
        expected.append(int(second * size) if first < 0.6 and size else -1)
    assert draw([3, 0, 5], 0.6, 7) == expected
    # Python promises the same numbers for an integer seed in every version
    assert draw([10] * 6, 0.5, 2**47) == [-1, 4, 5, 6, 3, 2]


def test_frequencies_are_the_propensities() -> None:
    """20,000 draws: each item at each position, by a chi-square statistic; its mean is its degrees of freedom."""
    rules = rules_of(explore(2, 3, 5, rate=0.4, among=6), {"cap": {"column": "tags", "at_most": 2}})
    seeds = np.random.default_rng(0).integers(2**48, size=20_000).tolist()
    slates, drawn = explored(rules, ORDER, 5, seeds)
    assert len({(one.positions, one.own, one.pools) for one in drawn}) == 1
    first = drawn[0]
    counts = [Counter(slate[position] for slate in slates) for position in range(5)]
    expected = [{item: 20_000.0} for item in slates[0]]
    for position, own, pool in zip(first.positions, first.own, first.pools, strict=True):
        assert 1 <= len(pool) <= 3
        expected[position - 1] = {own: 20_000 * 0.6, **dict.fromkeys(pool, 20_000 * 0.4 / len(pool))}
    for seen, means in zip(counts, expected, strict=True):
        assert {*seen} == {*means}
        statistic = sum((seen[item] - mean) ** 2 / mean for item, mean in means.items())
        assert statistic < 21.1  # a chance of 1 in 10,000 with 3 degrees of freedom
    shown = Counter((position, slate[position]) for slate in slates for position in range(5))
    logged = {
        (position, slate[position]): float(one.propensities(5)[position])
        for slate, one in zip(slates, drawn, strict=True)
        for position in range(5)
    }
    for key, propensity in logged.items():
        spread = 4.5 * np.sqrt(20_000 * propensity * (1 - propensity))
        assert abs(shown[key] - 20_000 * propensity) <= spread
    both = Counter((slate[1] == first.own[0], slate[2] == first.own[1]) for slate in slates)  # independent
    assert abs(both[True, True] - 20_000 * 0.36) < 4.5 * np.sqrt(20_000 * 0.36 * 0.64)


EXPLORE = st.builds(
    lambda positions, rate, among: explore(*positions, rate=rate, among=among),
    st.sets(st.integers(1, 8), min_size=1, max_size=3),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.sampled_from([1, 4, 50]),
)


@settings(max_examples=300)
@given(
    EXPLORE,
    st.lists(ANY, max_size=4),
    st.permutations(range(N)),
    st.integers(0, N),
    st.integers(1, 7),
    st.sets(st.integers(0, N - 1), max_size=4),
    st.sets(st.integers(0, N - 1), max_size=3),
    st.integers(0, 2**48 - 1),
)
def test_what_no_outcome_breaks(
    exploring: dict[str, Any],
    others: list[dict[str, Any]],
    order: list[int],
    length: int,
    k: int,
    hidden: set[int],
    seen: set[int],
    seed: int,
) -> None:
    try:
        rules = rules_of(exploring, *others)
    except ValueError:  # they contradict each other
        return
    allow = np.array([row not in hidden for row in range(N)])
    candidates = [row for row in order[:length] if allow[row] and row not in seen]
    shown = {"allow": allow, "exclude": sorted(seen)}
    (slate, again), drawn = explored(rules, candidates, k, [seed, seed], **shown)
    assert slate == again
    (without,), _ = explored(rules[1:], candidates, k, [seed], **shown)
    assert len(slate) == len(without)
    assert drawn[0] == drawn[1]
    one = drawn[0]
    fixed = dict(enumerate(without, 1))
    assert [fixed[position] for position in one.positions] == [*one.own]
    pins = {r.pin.position: CATALOG.ids.row(r.pin.item) for r in rules if r.pin and r.pin.position <= k}
    caps = [(codes_of(CATALOG, rule.cap.column), rule.cap.at_most) for rule in rules if rule.cap]
    fresh = next((rule.fresh for rule in rules if rule.fresh), None)
    compiled = compile_rules(rules, CATALOG, VECTORS, NOW)
    new = np.zeros(N, dtype=bool) if compiled.fresh is None else compiled.fresh
    minimum = next((rule.minimum for rule in rules if rule.minimum is not None), -np.inf)
    score = dict(zip([row for row in candidates if compiled.allowed[row]], 1 - 0.1 * np.arange(N), strict=False))
    # every outcome, not only the one that was drawn
    for outcome in product(*([own, *pool] for own, pool in zip(one.own, one.pools, strict=True))):
        full = fixed | dict(zip(one.positions, outcome, strict=True))
        rows = [full[position] for position in range(1, len(full) + 1)]
        assert len({*PRODUCTS[rows].tolist()}) == len(rows)
        assert not {*rows} & (hidden | seen)
        for codes, at_most in caps:
            assert np.bincount(codes[rows][codes[rows] >= 0]).max(initial=0) <= at_most
        for position, row in pins.items():
            if fixed.get(position) == row:
                assert full[position] == row
        if fresh is not None:
            assert (np.cumsum(new[rows]) >= np.cumsum(new[without])).all()
        assert all(np.float32(score[row]) >= minimum for row in {*rows} - {*without})
    chances = one.propensities(len(slate))
    flags = one.explored(len(slate))
    rate = exploring["explore"]["rate"]
    for position, own, pool, item in zip(one.positions, one.own, one.pools, one.shown, strict=True):
        assert slate[position - 1] == item
        assert flags[position - 1] == (item != own)
        total = (1 - rate if pool else 1) + sum(rate / len(pool) for _ in pool)
        assert abs(total - 1) < 1e-12
        expected = 1.0 if not pool else 1 - rate if item == own else rate / len(pool)
        assert chances[position - 1] == expected
        assert sum(len(p) for p in one.pools) <= exploring["explore"]["among"]
    others_at = [position for position in range(1, len(slate) + 1) if position not in one.positions]
    assert all(chances[position - 1] == 1 and slate[position - 1] == fixed[position] for position in others_at)


def test_the_slate_says_what_is_explored() -> None:
    compiled = compile_rules(rules_of(explore(2, rate=1)), CATALOG, VECTORS, NOW)
    found = Candidates(np.array([[0, 1, 2, 4]]), np.array([[4, 3, 2, 1]], dtype=np.float32)).of_source("recent")
    draws = Draws.of(np.array([5]))
    chosen = fill_slates(lambda _, n: found, 1, 3, PRODUCTS, compiled, draws=draws)
    slate = slate_of(chosen, CATALOG, reason="", trace={}, fingerprint="f", drawn=draws.drawn[0])
    assert slate.items == ("i0", "i4", "i2")
    assert slate.explored.tolist() == [False, True, False]
    assert slate.propensities.tolist() == [1.0, 1.0, 1.0]  # the pool is {4}, and the rate is 1
    assert slate.reasons == ("recent",) * 3
    without = fill_slates(lambda _, n: found, 1, 3, PRODUCTS, compiled)  # as batch slates are
    assert without.rows.tolist() == [[0, 1, 2]]


class Popular:
    """Recommends 30 items in order to everybody."""

    def recommend(self, states: Any, k: int, *, allow: Any = None, exclude: Any = None) -> Candidates:
        scores = np.tile(-np.arange(30, dtype=np.float32), (len(states), 1))
        return top_k(scores, k, allow=allow, exclude=exclude)


def ranks_of(items: list[int], *rules: dict[str, Any]) -> Any:
    """Ranks of targets with rules: 4,000 users, each of whom takes the next of `items`."""
    n, catalog = 4000, toy_catalog(30)
    ones = np.ones(n, dtype=bool)
    events = Interactions.sort(np.arange(n), np.full(n, 29), np.full(n, NOW - 5), ones, ~ones, n, 30)
    states = events.states(np.arange(n), np.full(n, NOW))
    targets = Targets(states, np.arange(n), np.resize(items, n).astype(np.int64))
    named = Rules.model_validate({"rules": [{"name": f"r{i}", **rule} for i, rule in enumerate(rules)]})
    ruling = partial(rules_by_user, named, "home", catalog, None)
    return rank_targets(Popular(), targets, catalog, repeats=True, rules=ruling)[0]


def test_the_evaluation_shows_what_exploration_costs() -> None:
    """Item 0 stands first and gives way half of the time, to one of the five items 20 to 24."""
    exploring = explore(1, rate=0.5, among=5)
    ranks = ranks_of([0, 20, 1], exploring)
    shown, drawn, second = ranks[0::3], ranks[1::3], ranks[2::3]
    assert {*shown.tolist()} == {1.0, np.inf}
    assert abs((shown == 1).mean() - 0.5) < 0.06
    assert {*drawn.tolist()} == {1.0, 21.0}
    assert abs((drawn == 1).mean() - 0.1) < 0.04
    assert (second == 2).all()
    assert (ranks == ranks_of([0, 20, 1], exploring)).all()


def test_ranks_with_rules_are_places() -> None:
    assert ranks_of([9, 0], {"pin": {"item": "i9", "position": 1}})[:2].tolist() == [1, 2]
    assert ranks_of([9, 0], {"boost": {"items": {"items": ["i9"]}, "by": 50}})[:2].tolist() == [1, 2]
    assert ranks_of([9, 1], {"exclude": {"items": ["i0"]}})[:2].tolist() == [9, 1]
