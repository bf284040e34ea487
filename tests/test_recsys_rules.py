"""Rules of a shop: what a file must say, with the line of what is wrong; and slates against a plain loop."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_data import toy_catalog

from features.errors import ConfigError, DataError
from features.instants import DAY
from features.interactions import Ragged
from recsys.interfaces import Candidates
from recsys.ranking.rules import KINDS, Rule, Rules, load_rules
from recsys.ranking.slate import fill_slates, item_groups
from recsys.ranking.slate_rules import SlateRules, codes_of, compile_rules

N, NOW = 12, 1_000 * DAY
BRANDS = ["a", "a", "b", "b", "b", None, "c", "a", "b", "c", None, "a"]
TAGS = [["x"], ["x", "y"], [], None, ["y"], ["z"], ["z", "x"], ["y"], None, ["x"], ["y", "z"], ["z"]]
GROUPS = ["g", None, None, "g", None, None, "h", "h", None, None, None, None]
PUBLISHED = [None, 999, 998, 990, 900, 999, 500, 1001, 999, 980, 10, 995]


def catalog() -> Any:
    vectors = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    toy = toy_catalog(N, text=vectors)
    frame = toy.frame.with_columns(
        pl.Series("brand", BRANDS),
        pl.Series("tags", TAGS),
        pl.Series("group_id", GROUPS),
        pl.Series("price", range(N)),
    )
    published = np.array([np.iinfo(np.int64).min if day is None else day * DAY for day in PUBLISHED])
    return toy.__class__(
        **{**toy.__dict__, "frame": frame, "published": published, "price": np.arange(N, dtype=np.float32)}
    )


CATALOG = catalog()
VECTORS = np.roll(CATALOG.content, 1, axis=0)


def rules_of(*rules: dict[str, Any]) -> tuple[Rule, ...]:
    named = [{"name": f"r{number}", **rule} for number, rule in enumerate(rules)]
    checked = Rules.model_validate({"rules": named})
    if checked.conflict():
        raise ValueError(checked.conflict())
    return checked.rules


def slate(rules: tuple[Rule, ...], order: list[int], k: int, **shown: Any) -> list[int]:
    """The slate of one user whose candidates are `order`, scored 1, .9, .8, …"""
    compiled = compile_rules(rules, CATALOG, VECTORS, NOW)
    assert not compiled.notes
    rows = [row for row in order if compiled.allowed[row]]

    def find(_: np.ndarray, n: int) -> Candidates:
        line = np.full((1, n), -1)
        line[0, : len(rows[:n])] = rows[:n]
        return Candidates(line, np.where(line < 0, -np.inf, 1 - 0.1 * np.arange(n)).astype(np.float32))

    chosen = fill_slates(find, 1, k, item_groups(CATALOG), compiled, **shown)
    return [row for row in chosen.rows[0].tolist() if row >= 0]


def expected(rules: tuple[Rule, ...], order: list[int], k: int, allow: Any, seen: set[int]) -> list[int]:
    """The same by a plain loop over items, positions and rules."""

    def passes(row: int) -> bool:
        return all(
            (rule.only is None or bool(rule.only.mask(CATALOG)[row]))
            and (rule.exclude is None or not rule.exclude.mask(CATALOG)[row])
            for rule in rules
        )

    rows = [row for row in order if passes(row)]
    minimum = next((rule.minimum for rule in rules if rule.minimum is not None), -np.inf)
    score = {row: float(np.float32(1 - 0.1 * at)) for at, row in enumerate(rows)}
    pins = {r.pin.position: CATALOG.ids.row(r.pin.item) for r in rules if r.pin}
    caps = [rule.cap for rule in rules if rule.cap]
    fresh = next((rule.fresh for rule in rules if rule.fresh), None)
    diversity = next((rule.diversity for rule in rules if rule.diversity), None)

    def values(row: int, column: str) -> list[str]:
        value = CATALOG.frame.get_column(column)[row]
        return value.to_list() if isinstance(value, pl.Series) else [] if value is None else [value]

    def varies(row: int, others: list[int]) -> bool:
        return row in others or any(GROUPS[row] is not None and GROUPS[row] == GROUPS[other] for other in others)

    def fits(row: int, taken: list[int]) -> bool:
        if varies(row, taken):
            return False
        return all(
            sum(value in values(other, cap.column) for other in taken) < cap.at_most
            for cap in caps
            for value in values(row, cap.column)
        )

    def is_new(row: int) -> bool:
        day = PUBLISHED[row]
        return fresh is not None and day is not None and NOW - fresh.days * DAY <= day * DAY <= NOW

    kept, taken, held = dict[int, int](), list[int](), list[int]()
    for position in sorted(pins):
        row = pins[position]
        if passes(row) and allow[row] and row not in seen and fits(row, taken) and not varies(row, held):
            if position <= k:
                kept[position] = row
                taken.append(row)
            else:  # for a later page
                held.append(row)
    usable = [row for row in rows if score[row] >= minimum]
    scored = [score[row] for row in usable]
    low = min(score.values(), default=0.0)
    scored += [score.get(row, low) for row in pins.values() if passes(row) and allow[row] and row not in seen]
    mean, deviation = (float(np.mean(scored)), max(float(np.std(scored)), 1e-9)) if scored else (0.0, 1.0)
    boosting = [rule.boost for rule in rules if rule.boost]
    boosts = {row: sum((b.by for b in boosting if b.items.mask(CATALOG)[row]), 0.0) for row in usable}

    def cosine(one: int, other: int) -> float:
        halves = {"behaviour": [VECTORS], "content": [CATALOG.content], "both": [VECTORS, CATALOG.content]}
        compared = halves[diversity.half] if diversity else []
        return float(np.mean([half[one] @ half[other] for half in compared]))

    out: list[int] = []
    for position in range(1, k + 1):
        if position in kept:
            out.append(kept[position])
            continue
        free = [row for row in usable if fits(row, taken) and not varies(row, held)]
        if fresh and sum(map(is_new, out)) < int(fresh.share * position + 1e-9) and any(map(is_new, free)):
            free = [*filter(is_new, free)]
        if not free:
            break

        def gain(row: int) -> float:
            value = (score[row] - mean) / deviation + boosts[row]
            if diversity is None:
                return value
            near = max((cosine(row, other) for other in taken), default=-1.0)
            return (1 - diversity.weight) * value - diversity.weight * near

        best = max(free, key=lambda row: (round(gain(row), 9), -usable.index(row)))
        out.append(best)
        taken.append(best)
    out += [row for row in kept.values() if row not in out]
    for row in held:
        if len(out) < k and fits(row, taken):
            out.append(row)
            taken.append(row)
    return out


FILTERS = st.sampled_from(
    [
        {"columns": {"brand": ["a", "c"]}},
        {"columns": {"tags": ["x"]}},
        {"price": [3, 9]},
        {"items": ["i1", "i4", "i8", "i11"]},
        {"columns": {"brand": ["b"]}, "price": [None, 5]},
    ]
)
ANY = st.one_of(
    st.builds(lambda f: {"only": f}, FILTERS),
    st.builds(lambda f: {"exclude": f}, FILTERS),
    st.builds(lambda f, by: {"boost": {"items": f, "by": by}}, FILTERS, st.sampled_from([-3, -0.37, 0.61, 1.7])),
    st.builds(
        lambda c, m: {"cap": {"column": c, "at_most": m}}, st.sampled_from(["brand", "tags"]), st.integers(1, 3)
    ),
    st.builds(lambda i, p: {"pin": {"item": f"i{i}", "position": p}}, st.integers(0, N - 1), st.integers(1, 7)),
    st.builds(lambda m: {"minimum": m}, st.sampled_from([0.25, 0.55, 0.85])),
    st.builds(
        lambda s, d: {"fresh": {"share": s, "days": d}}, st.sampled_from([0.1, 0.5, 1]), st.sampled_from([3, 30])
    ),
    st.builds(
        lambda w, h: {"diversity": {"weight": w, "half": h}},
        st.sampled_from([0.2, 0.7]),
        st.sampled_from(["behaviour", "content", "both"]),
    ),
)


@settings(max_examples=300)
@given(
    st.lists(ANY, max_size=5),
    st.permutations(range(N)),
    st.integers(0, N),
    st.integers(1, 7),
    st.sets(st.integers(0, N - 1), max_size=4),
    st.sets(st.integers(0, N - 1), max_size=3),
)
def test_slates_are_those_of_a_plain_loop(
    given_rules: list[dict[str, Any]], order: list[int], length: int, k: int, hidden: set[int], seen: set[int]
) -> None:
    try:
        rules = rules_of(*given_rules)
    except ValueError:  # they contradict each other
        return
    allow = np.array([row not in hidden for row in range(N)])
    candidates = [row for row in order[:length] if allow[row] and row not in seen]
    found = slate(rules, candidates, k, allow=allow, exclude=Ragged.of([sorted(seen)]))
    assert found == expected(rules, candidates, k, allow, seen)
    # what must never happen, whatever the loop above says
    assert len(found) <= k
    assert len({*item_groups(CATALOG)[found].tolist()}) == len(found)
    assert not {*found} & (hidden | seen)
    for cap in (rule.cap for rule in rules if rule.cap):
        codes = codes_of(CATALOG, cap.column)[found]
        assert np.bincount(codes[codes >= 0]).max(initial=0) <= cap.at_most


def test_each_rule_by_hand() -> None:
    order = [*range(N)]  # 3 is a variant of 0, 7 of 6
    assert slate((), order, 5) == [0, 1, 2, 4, 5]
    assert slate(rules_of({"cap": {"column": "brand", "at_most": 1}}), order, 5) == [0, 2, 5, 6, 10]
    assert slate(rules_of({"cap": {"column": "tags", "at_most": 1}}), order, 9) == [0, 2, 4, 5, 8]
    assert slate(rules_of({"pin": {"item": "i9", "position": 2}}), order, 4) == [0, 9, 1, 2]
    assert slate(rules_of({"pin": {"item": "i9", "position": 5}}), order, 4) == [0, 1, 2, 4]
    assert slate(rules_of({"pin": {"item": "i3", "position": 1}}), order, 3) == [3, 1, 2]  # and no variant of it
    assert slate(rules_of({"pin": {"item": "i9", "position": 4}}), [1], 4) == [1, 9]  # too few for its place
    assert slate(rules_of({"minimum": 0.85}), order, 5) == [0, 1]
    assert slate(rules_of({"fresh": {"share": 0.5, "days": 3}}), [4, 6, 9, 1, 5, 8], 4) == [4, 1, 6, 5]
    assert slate(rules_of({"boost": {"items": {"items": ["i8"]}, "by": 9}}), order, 3) == [8, 0, 1]
    assert slate(rules_of({"only": {"price": [2, 4]}}), order, 5) == [2, 3, 4]
    assert slate(rules_of({"exclude": {"price": [0, 9]}}), order, 5) == [10, 11]


def test_maximal_marginal_relevance_by_hand() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    rules = SlateRules(np.ones(4, dtype=np.bool_), vectors=(vectors,), weight=0.5)
    found = Candidates(np.array([[0, 1, 2, 3]]), np.array([[4, 3, 2, 1]], dtype=np.float32))
    # standard scores 1.34, .45, -.45, -1.34; after item 0: (.45 - 1) / 2 < (-.45 - 0) / 2 > (-1.34 - .6) / 2
    assert fill_slates(lambda _, n: found, 1, 3, np.arange(4), rules).rows.tolist() == [[0, 2, 1]]
    without = SlateRules(np.ones(4, dtype=np.bool_))
    assert fill_slates(lambda _, n: found, 1, 3, np.arange(4), without).rows.tolist() == [[0, 1, 2]]


def test_a_rule_that_does_not_fit_the_catalogue_costs_that_rule_only() -> None:
    rules = rules_of(
        {"cap": {"column": "colour", "at_most": 1}},
        {"pin": {"item": "gone", "position": 1}},
        {"only": {"columns": {"size": [1]}}},
        {"exclude": {"items": ["i0"]}},
        {"diversity": {"weight": 0.5, "half": "behaviour"}},
    )
    compiled = compile_rules(rules, CATALOG, None, NOW)
    assert [note.split(" is not applied: ")[0] for note in compiled.notes] == [f"rule 'r{i}'" for i in (0, 1, 2, 4)]
    assert "no column 'colour'; there are: item_id" in compiled.notes[0]
    assert compiled.allowed.tolist() == [False] + [True] * (N - 1)
    without = CATALOG.__class__(**{**CATALOG.__dict__, "has_content": np.zeros(N, dtype=bool)})
    (note,) = compile_rules(rules_of({"diversity": {"weight": 0.5}}), without, VECTORS, NOW).notes
    assert "the items have no contents" in note


def test_scores_that_are_not_finite_reach_no_slate() -> None:
    compiled = compile_rules(rules_of({"minimum": -5}), CATALOG, VECTORS, NOW)
    found = Candidates(np.array([[1, 2, 4]]), np.array([[np.nan, np.inf, 0.5]], dtype=np.float32))
    assert fill_slates(lambda _, n: found, 1, 3, item_groups(CATALOG), compiled).rows.tolist() == [[4, -1, -1]]


def test_rules_by_placement_and_user() -> None:
    rules = Rules.model_validate(
        {
            "rules": [
                {"name": "a", "minimum": 1, "placements": ["home"]},
                {"name": "b", "minimum": 2, "placements": ["cart"]},
                {"name": "c", "pin": {"item": "x", "position": 1}, "users": "cold"},
                {"name": "d", "pin": {"item": "y", "position": 1}, "users": "known"},
            ]
        }
    )
    names = {
        (p, cold): [r.name for r in rules.of(p, cold=cold)] for p in ("home", "cart", "x") for cold in (False, True)
    }
    assert names == {
        ("home", False): ["a", "d"],
        ("home", True): ["a", "c"],
        ("cart", False): ["b", "d"],
        ("cart", True): ["b", "c"],
        ("x", False): ["d"],
        ("x", True): ["c"],
    }


BAD = [
    ("rules:\n- name: a\n  cap: {column: brand, at_most: 0}", 3, "cap.at_most: must be 1 or more"),
    ("rules:\n- name: a\n  boost:\n    items: {items: [x]}\n    by: .nan", 5, "boost.by"),
    ("rules:\n- name: a\n  minimum: .inf", 3, "minimum"),
    ("rules:\n- name: a\n- name: b\n  minimum: 1", 2, "one of only, exclude, pin"),
    ("rules:\n- name: a\n  minimum: 1\n  pin: {item: x, position: 1}", 2, "given: pin, minimum"),
    ("rules:\n- {name: a, minimum: 1}\n- {name: a, pin: {item: x, position: 1}}", 3, "'a' stands twice"),
    (
        "rules:\n- {name: a, pin: {item: x, position: 1}}\n- {name: b, pin: {item: y, position: 1}}",
        3,
        "'b' contradicts 'a': both pin position 1",
    ),
    (
        "rules:\n- {name: a, pin: {item: x, position: 1}}\n- {name: b, pin: {item: x, position: 2}}",
        3,
        "both pin item x",
    ),
    (
        "rules:\n- {name: a, cap: {column: c, at_most: 1}}\n- {name: b, cap: {column: c, at_most: 2}}",
        3,
        "both cap column c",
    ),
    ("rules:\n- name: a\n  pin: {item: x, position: 101}", 3, "pin.position"),
    ("rules:\n- name: a\n  diversity: {weight: 1, half: all}", 3, "diversity.half"),
    ("rules:\n- name: a\n\n  colour: red", 4, "colour: unknown key"),
    ("rules:\n- name: a\n  explore: {positions: [3], rate: .nan, among: 5}", 3, "explore.rate"),
    ("rules:\n- name: a\n  explore: {positions: [3], rate: 0, among: 5}", 3, "explore.rate: must be more than 0"),
    ("rules:\n- name: a\n  explore: {positions: [3], rate: 1.01, among: 5}", 3, "explore.rate: must be 1 or less"),
    ("rules:\n- name: a\n  explore:\n    positions: [3, 0]", 4, "explore.positions: must be 1 or more"),
    ("rules:\n- name: a\n  explore: {positions: [101], rate: 1, among: 5}", 3, "explore.positions"),
    ("rules:\n- name: a\n  explore: {positions: [], rate: 1, among: 5}", 3, "explore.positions"),
    ("rules:\n- name: a\n  explore: {positions: [3, 3], rate: 1, among: 5}", 3, "explore: a position stands twice"),
    ("rules:\n- name: a\n  explore:\n    positions: [3]\n    rate: 1\n    among: 0", 6, "explore.among: must be 1"),
    ("rules:\n- name: a\n  explore: {positions: [3], rate: 1, among: 501}", 3, "explore.among"),
    ("rules:\n- name: a\n  explore: {positions: [3], rate: 1}", 3, "explore.among: missing"),
    (
        "rules:\n- {name: a, explore: {positions: [3], rate: 1, among: 5}}\n"
        "- {name: b, placements: [home], explore: {positions: [4], rate: 1, among: 5}}",
        3,
        "'b' contradicts 'a': both set explore",
    ),
    ("rules:\n- name: a\n  only: {price: [5, 1]}", 3, "only.price"),
    ("rule: []", 1, "rule"),
    ("- name: a", 1, ""),
    ("rules: [", 1, "not YAML"),
    ("rules:\n- name: a\n  name: b", 3, "stands twice"),
]


@pytest.mark.parametrize(("text", "line", "words"), BAD)
def test_bad_rules_are_refused_with_their_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_rules(file)
    assert words in str(caught.value)
    assert f"{file} line {line}" in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_rules(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"rules: \xff")
    with pytest.raises(ConfigError, match=r"latin\.yaml: "):
        load_rules(tmp_path / "latin.yaml")
    (tmp_path / "empty.yaml").write_text("# none yet\n")
    assert load_rules(tmp_path / "empty.yaml").rules == ()


def test_the_example_of_the_documentation_is_a_file_of_rules(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
    (tmp_path / "rules.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    rules = load_rules(tmp_path / "rules.yaml").rules
    assert [next(kind for kind in KINDS if getattr(rule, kind) is not None) for rule in rules] == [
        "exclude",
        "pin",
        "cap",
        "fresh",
        "diversity",
        "explore",
        "rotation",
    ]


def test_values_of_columns_of_each_type() -> None:
    columns: dict[str, Any] = {
        "flag": [True, None, False, True] * 3,
        "number": [1.5, 2.5, None, 1.5] * 3,
        "day": pl.Series([1, 2, None, 1] * 3).cast(pl.Date),
        "flags": [[True, False], [], None, [False]] * 3,
        "deep": [[["x"]]] * N,
        "record": [{"a": 1}] * N,
    }
    frame = CATALOG.frame.with_columns(pl.Series(name, values) for name, values in columns.items())
    typed = CATALOG.__class__(**{**CATALOG.__dict__, "frame": frame})
    assert codes_of(typed, "flag")[:4].tolist() == [[1], [-1], [0], [1]]
    assert codes_of(typed, "number")[:4].tolist() == [[0], [1], [-1], [0]]
    assert codes_of(typed, "day")[:4].tolist() == [[0], [1], [-1], [0]]
    assert codes_of(typed, "flags")[:4].tolist() == [[1, 0], [-1, -1], [-1, -1], [0, -1]]
    assert codes_of(typed, "categories").shape == (N, 1)
    for name in ("deep", "record"):
        with pytest.raises(DataError, match=f"column '{name}' holds"):
            codes_of(typed, name)
