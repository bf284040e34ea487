"""Experiments: what a file must say, and which users are in which variant."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import ConfigError, DataError
from recsys.assignment import (
    Experiments,
    hash_users,
    load_experiments,
    split,
    variant_text,
    variants_of,
)
from recsys.cli.experiment import experiment_assignments, experiment_check

USERS = [f"u{n}" for n in range(20_000)]


def experiments(*given: dict[str, Any]) -> Experiments:
    checked = Experiments.model_validate({"experiments": given})
    assert checked.fault() is None
    return checked


def one(**fields: Any) -> dict[str, Any]:
    return {"name": "a", "variants": {"b": {"share": 0.5}}, **fields}


def shares_of(numbers: Any) -> dict[int, float]:
    values, counts = np.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), (counts / len(numbers)).tolist(), strict=True))


def test_the_hash_never_changes() -> None:
    # by coreutils: printf 'variant\0s\0u1' | b2sum -l 64, whose bytes are a little-endian number
    digests = {
        ("variant", "s", "u1"): "eed31de7c51ee2bb",
        ("variant", "s", "u2"): "1cb19ff8fb1dc361",
        ("variant", "s", "é"): "d7e092e92dd4f12c",
        ("layer", "page", "u1"): "e3e7c8f4099c034d",
        ("layer", "\0s", "u1"): "3987b42ca4de874f",
        ("variant", "t", "u1"): "843017ca0984ca55",
    }
    for (purpose, salt, user), digest in digests.items():
        expected = (int.from_bytes(bytes.fromhex(digest), "little") >> 11) / 2**53
        assert hash_users(purpose, salt, [user]).tolist() == [expected]  # type: ignore[arg-type]
    assert 0.7339190 < hash_users("variant", "s", ["u1"])[0] < 0.7339191
    several = hash_users("variant", "s", ["u1", "u2", "é"])
    assert several.tolist() == [hash_users("variant", "s", [user])[0] for user in ("u1", "u2", "é")]


def test_variants_by_hand() -> None:
    # salt s: u1 is at .7339, u2 at .3819, é at .1756; as no layer: u1 at .3107
    def of(variants: dict[str, float], **more: Any) -> list[int]:
        given = {name: {"share": share} for name, share in variants.items()}
        fields = {"salt": "s", "variants": given, **more}
        return experiments(one(**fields)).assigned(["u1", "u2", "é"])["a"].tolist()

    assert of({"b": 0.5}) == [0, 1, 1]
    assert of({"b": 0.2}) == [0, 0, 1]
    assert of({"b": 0.2, "c": 0.2}) == [0, 0, 1]  # b from 0, c from .5 on
    assert of({"b": 0.2, "c": 0.24}) == [2, 0, 1]
    assert of({"b": 0.77, "c": 0.1}) == [1, 1, 1]  # b takes .73 to 1 as well
    assert of({"b": 0.7, "c": 0.3}) == [2, 1, 1]
    assert of({"b": 0.5}, share=0.3106)[0] == -1
    assert of({"b": 0.5}, share=0.3108)[0] == 0
    assert of({"b": 0.5}, share=0.5, offset=0.3106)[0] == 0
    assert of({"b": 0.5}, share=0.5, offset=0.3108)[0] == -1


def test_pieces_by_hand() -> None:
    def pieces(*shares: float) -> list[tuple[float, int]]:
        edges, owners = split(shares)
        assert (np.diff(edges) >= 0).all()
        return [(round(float(edge), 6), owner) for edge, owner in zip(edges, owners.tolist(), strict=True)]

    assert pieces(0.3) == [(0, 0), (0, 1), (0.3, 0)]
    assert pieces(0.2, 0.1) == [(0, 0), (0, 1), (0.2, 0), (0.5, 2), (0.6, 0)]
    assert pieces(0.1, 0.6) == [(0, 0), (0, 1), (0.1, 0), (0.4, 2), (0.5, 0), (0.5, 2), (1, 0)]
    assert pieces(0.5, 0, 0.1) == [
        *((0, 0), (0, 1), (0.333333, 0), (0.5, 1), (0.666667, 0), (0.666667, 3), (0.766667, 0)),
    ]


def widths(shares: list[float]) -> dict[int, float]:
    edges, owners = split(shares)
    ends = [*edges[1:].tolist(), 1.0]
    out = dict.fromkeys(range(len(shares) + 1), 0.0)
    for begin, end, owner in zip(edges.tolist(), ends, owners.tolist(), strict=True):
        out[owner] += end - begin
    return out


WEIGHTS = st.lists(st.integers(0, 1000), min_size=2, max_size=7).filter(lambda given: sum(given) > 0)


@given(WEIGHTS)
def test_each_variant_has_its_share(weights: list[int]) -> None:
    shares = [weight / sum(weights) for weight in weights]  # the first is that of control
    edges, owners = split(shares[1:])
    assert edges[0] == 0
    assert (np.diff(edges) >= 0).all()
    assert len(edges) == len(owners)
    assert widths(shares[1:]) == pytest.approx(dict(enumerate(shares)), abs=1e-7)


def moved(before: list[float], after: list[float]) -> set[tuple[int, int]]:
    at = np.linspace(0, 1, 5003)[:-1] + 1e-5

    def owners(shares: list[float]) -> list[int]:
        edges, owners = split(shares)
        return owners[np.searchsorted(edges, at, side="right") - 1].tolist()

    return {(old, new) for old, new in zip(owners(before), owners(after), strict=True) if old != new}


@given(st.data())
def test_a_raised_share_takes_users_from_control_alone(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    limit = 1 if n < 3 else 1 / n
    before, rest = list[float](), 1.0
    for _ in range(n):
        before.append(data.draw(st.floats(0, min(rest, limit))))
        rest -= before[-1]
    grown = data.draw(st.integers(0, n - 1))
    more = data.draw(st.floats(0, max(0.0, min(rest, limit - before[grown]))))
    after = [share + more * (at == grown) for at, share in enumerate(before)]
    assert moved(before, after) <= {(0, grown + 1)}


def test_shares_of_users() -> None:
    variants = {"b": {"share": 0.2}, "c": {"share": 0.3}}
    numbers = experiments(one(variants=variants, share=0.4)).assigned(USERS)["a"]
    # four standard deviations of 20,000 draws are .014 at most
    assert shares_of(numbers) == pytest.approx({-1: 0.6, 0: 0.2, 1: 0.08, 2: 0.12}, abs=0.014)


def test_a_grown_share_in_a_file_moves_users_from_control_alone() -> None:
    def of(b: float) -> Any:
        return experiments(one(variants={"b": {"share": b}, "c": {"share": 0.1}})).assigned(USERS)["a"]

    for smaller, larger in pairwise([0, 0.1, 0.5, 0.8, 0.9]):
        before, after = of(smaller), of(larger)
        assert {*zip(before[before != after].tolist(), after[before != after].tolist(), strict=True)} == {(0, 1)}


def test_experiments_of_different_layers_and_salts_are_independent() -> None:
    both = experiments(one(), one(name="b"), one(name="c", layer="x", share=0.5)).assigned(USERS)
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        takes_part = both[second] >= 0
        for number in (0, 1):
            among = both[first][takes_part & (both[second] == number)]
            assert among.mean() == pytest.approx(0.5, abs=0.03)  # four standard deviations of 5,000 draws
    # taking part says nothing of the variant
    assert (both["a"][both["c"] >= 0]).mean() == pytest.approx(0.5, abs=0.02)
    assert (both["c"] == 1).mean() == pytest.approx(0.25, abs=0.013)


def test_a_user_is_in_one_experiment_of_a_layer_at_most() -> None:
    first = one(layer="page", share=0.3, overrides={"u0": "b", "u1": "control"})
    second = one(name="b", layer="page", share=0.7, offset=0.3, overrides={"u2": "b"})
    numbers = experiments(first, second).assigned(USERS)
    assert not ((numbers["a"] >= 0) & (numbers["b"] >= 0)).any()
    assert (numbers["a"] >= 0).mean() == pytest.approx(0.3, abs=0.013)
    assert ((numbers["a"] >= 0) | (numbers["b"] >= 0)).all()
    assert numbers["a"][:3].tolist() == [1, 0, -1]
    assert numbers["b"][:3].tolist() == [-1, -1, 1]


def test_variants_of_a_user_in_a_list() -> None:
    of = experiments(
        one(placements=["home"], overrides={"u": "b"}),
        one(name="r", layer="r", variants={"b": {"share": 1}}),
        one(name="n", variants={"n": {"share": 1, "bundle": "f00"}}),
        one(name="none", share=0),
    )
    assert of.variants("u", "home") == {"a": "b", "r": "b", "n": "n"}
    assert of.variants("u", "other") == {"r": "b", "n": "n"}
    assert of.variants("u", "search") == {"r": "b"}  # a bundle makes recommendations only
    assert of.still({"r": "control", "a": "gone", "x": "b", "n": "n"}, "home") == {"r": "control", "n": "n"}
    assert of.still({"a": "b"}, "other") == {}
    assert variant_text({"a": "b", "r": "control"}) == "a:b,r:control"
    assert variants_of("a:b,r:control") == {"a": "b", "r": "control"}
    assert (variant_text({}), variants_of("default")) == ("default", {})


def test_the_table_of_users() -> None:
    of = experiments(one(overrides={"x": "b", "y": "control"}), one(name="none", share=0))
    table = of.table(pl.Series(["y", "x", None, "y"]))
    assert table.to_dict(as_series=False) == {
        "user_id": ["y", "x"],
        "a": ["control", "b"],
        "none": [None, None],
    }
    assert of.table(pl.Series([], dtype=pl.String)).columns == ["user_id", "a", "none"]
    assert experiments().table(pl.Series(["y"])).to_dict(as_series=False) == {"user_id": ["y"]}


FILE = """\
experiments:
- name: first
  layer: page
  share: 0.5
  variants:
    b:
      share: 0.5
      rules: b.yaml
- name: second
  layer: page
  offset: 0.5
  share: 0.5
  placements: [home]
  variants: {c: {share: 0.1, bundle: f00}}
  overrides:
    "4711": c
"""


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(FILE)
    first, second = load_experiments(file).experiments
    assert (first.names, first.shares) == (("control", "b"), {"control": 0.5, "b": 0.5})
    assert second.shares == {"control": 0.9, "c": 0.1}
    assert first.variants["b"].rules == Path("b.yaml")
    with pytest.raises(ConfigError) as error:
        load_experiments(file, lambda variant: "no such file" if variant.rules else "")
    assert str(error.value) == f"{file} line 7: variants.b: no such file"
    file.write_text("")
    assert load_experiments(file) == Experiments()


SAID: list[tuple[str, str, str]] = [
    ("share: 0.5\n      rules", "share: 1.5\n      rules", "7: variants.b.share: must be 1 or less"),
    ("      share: 0.5\n", "", "7: variants.b.share: missing; add it"),
    ("rules: b.yaml", "rule: b.yaml", "8: variants.b.rule: unknown key"),
    ("name: first", "name: a b", "2: name: use letters, digits"),
    ("layer: page\n  share", "layer: 'a:b'\n  share", "3: layer: use letters, digits"),
    ("    b:\n", "    a,b:\n", "7: variants.a,b: use letters, digits"),
    ("    b:\n", "    control:\n", "7: variants.control: leave it out: control has the users whom"),
    ("variants: {c: {", "variants: {d: {share: 0.91}, c: {", "14: variants: the shares sum to 1.01: lower them"),
    ("offset: 0.5", "offset: 0.6", "12: share: with offset 0.6 it ends beyond 1: lower one of them"),
    ("offset: 0.5", "offset: 0.4", "9: 'second' and 'first' share users of layer 'page': set offset and share so"),
    ('"4711": c', '"4711": d', "16: overrides.4711: there is no variant 'd'; there are: control, c"),
    ("[home]", "[similar]", "13: placements: similar items are for no user: leave it out"),
    ("[home]", "[home, search]", "13: placements: another bundle makes recommendations only: leave it out"),
    ("name: second", "name: first", "9: the name 'first' stands twice: give each experiment a name of its own"),
    ("offset: 0.5", "offset: 0.5\n  salt: first", "9: the salt 'first' is that of 'first', too: give each"),
    ("layer: page\n  offset: 0.5\n  share: 0.5\n", "share: 0.5\n", ""),  # one varies rules, one the bundle
    ("bundle: f00", "rules: c.yaml", ""),  # of one layer
    (
        "layer: page\n  offset: 0.5\n  share: 0.5\n  placements: [home]\n  variants: {c: {share: 0.1, bundle: f00",
        "variants: {c: {share: 0.1, rules: c.yaml",
        "9: 'second' and 'first' both vary the rules of the same requests: give both the same layer, or other",
    ),
    ("rules: b.yaml", "rules: b.yaml\n  overrides: {'4711': b}", "10: 'first' of the same layer has an override"),
    ("experiments:", "experiment:", "2: experiment: unknown key"),
    ("variants: {c: {share: 0.1, bundle: f00}}", "variants: {}", "14: variants: must be"),
]


@pytest.mark.parametrize(("text", "changed", "said"), SAID)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, changed: str, said: str) -> None:
    file = tmp_path / "e.yaml"
    assert FILE.count(text) == 1
    file.write_text(FILE.replace(text, changed))
    if not said:
        assert len(load_experiments(file).experiments) == 2
        return
    with pytest.raises(ConfigError) as error:
        load_experiments(file)
    assert str(error.value).startswith(f"{file} line {said}")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, users = tmp_path / "e.yaml", tmp_path / "users.parquet"
    file.write_text(FILE)
    with pytest.raises(ConfigError, match=r"line 7: variants\.b: .*b\.yaml: no such file"):
        experiment_check(file)
    (tmp_path / "b.yaml").write_text("rules: [{name: a}]")
    with pytest.raises(ConfigError, match=r"e\.yaml line 7: variants\.b: .*b\.yaml line 1: one of only, exclude"):
        experiment_check(file)
    (tmp_path / "b.yaml").write_text("")
    experiment_check(file)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "first: 0.5 of all users; of these control 0.5, b 0.5"
    assert second == "second: 0.5 of all users; of these control 0.9, c 0.1"
    assert last == f"{file}: experiments: 2"
    experiment_assignments(file, None, "4711")
    assert capsys.readouterr().out == "user_id,first,second\n4711,,c\n"
    pl.DataFrame({"user_id": ["4711", "u1", "4711"]}).write_parquet(users)
    experiment_assignments(file, users, None)
    # u1: b2sum gives e3e7c8f4099c034d for the layer, .3008, and fae6139e7402a406 for the salt first, .0259
    assert capsys.readouterr().out == "user_id,first,second\n4711,,c\nu1,b,\n"
    for wrong in ((None, None), (users, "4711")):
        with pytest.raises(ConfigError, match="give either USERS, a parquet file, or --user ID"):
            experiment_assignments(file, *wrong)
    pl.DataFrame({"id": ["4711"]}).write_parquet(users)
    with pytest.raises(DataError, match="has no column 'user_id'"):
        experiment_assignments(file, users, None)


def test_the_example_of_the_documentation_is_a_file_of_experiments(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "assignment.md").read_text()
    (tmp_path / "e.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    of = load_experiments(tmp_path / "e.yaml")
    assert [experiment.name for experiment in of.experiments] == ["fewer-of-a-brand", "new-towers", "new-ranker"]
    assert variant_text(of.variants("4711", "home")).startswith("fewer-of-a-brand:two")
