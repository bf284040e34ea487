"""Off-policy evaluation of a log: slots and values by hand, a bundle's choices, a known truth, refusals."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from toy_data import FACTS, START, noise, rows_of, toy_stage
from typer.testing import CliRunner

from experiments.evaluation.off_policy.judgement import judge
from experiments.evaluation.off_policy.policies import Policy, no_exploration, of_bundle
from experiments.evaluation.off_policy.reward_model import predicted_rewards
from experiments.evaluation.off_policy.slots import Slots, read_slots
from features.errors import DataError
from features.ids import IdMap
from features.interactions import Ragged
from features.log.event_log import EventLog
from features.log.outcomes.table import write_outcomes
from features.log.records import Event, Exploration, Exposure
from recsys.bundle.io import save_bundle
from recsys.cli.main import app
from recsys.ranking.exploration import LAW, draw

HOUR = 3_600_000_000


def answer(request, user, items, explored, *, rate=0.4, hours=0.0, first=1, law=LAW):
    """An exposure; explored: position -> (own item, pool)."""
    positions = tuple(explored)
    own, pools = zip(*explored.values(), strict=True) if explored else ((), ())
    drawn = tuple(p for p in positions if items[p - first] != explored[p][0])
    propensities = [1.0] * len(items)
    for position, (item, pool) in explored.items():
        if pool:
            propensities[position - first] = 1 - rate if items[position - first] == item else rate / len(pool)
    return Exposure(
        request_id=request,
        user_id=user,
        placement="home",
        timestamp=START + int(hours * HOUR),
        fingerprint="f",
        variant="default",
        source="model",
        degraded=(),
        items=tuple(items),
        scores=tuple(float(-i) for i in range(len(items))),
        propensities=tuple(propensities),
        first_position=first,
        reasons=("recent",) * len(items),
        exploration=Exploration("try", law, rate, 1, positions, own, tuple(map(tuple, pools)), drawn),
    )


def click(request, user, item, hours=1.0):
    name = f"{request}{item}"
    return Event(
        user_id=user,
        item_id=item,
        event="click",
        timestamp=START + int(hours * HOUR),
        event_id=name,
        request_id=request,
    )


def outcomes(folder, *records, hours=100.0, within=HOUR * 24):
    """A log of records, and its outcomes."""
    writer = EventLog(folder / "log")
    writer.append_now(records)
    writer.close()
    write_outcomes(folder / "log", folder / "o.parquet", within, now=START + int(hours * HOUR))
    return folder / "o.parquet", folder / "log"


def slots_of(folder, *records):
    file, log = outcomes(folder, *records)
    return read_slots(file, log, "click")


SMALL = (
    answer("r1", "ann", ["a", "b", "z"], {2: ("b", ["x"]), 3: ("c", ["y", "z"])}),
    answer("r2", "bob", ["e", "d"], {22: ("d", ["q"])}, first=21, hours=2),
    answer("r3", "bob", ["a", "b"], {2: ("b", [])}, hours=3),
    answer("r4", "bob", ["a", "b"], {2: ("b", ["x"])}, hours=90),
    answer("r5", "bob", ["a", "b"], {2: ("b", ["x"])}, hours=4, law="another"),
    click("r1", "ann", "z"),
    click("r2", "bob", "e", 3),
)


def test_slots_of_a_small_log(tmp_path):
    slots = slots_of(tmp_path, *SMALL)
    assert (slots.user_ids, slots.item_ids) == (("ann", "bob"), ("b", "c", "d", "q", "x", "y", "z"))
    assert [[slots.item_ids[item] for item in items] for items in rows_of(slots.choices)] == [
        ["b", "x"],
        ["c", "y", "z"],
        ["d", "q"],
    ]
    assert [slots.item_ids[slots.choices.flat[at]] for at in slots.shown] == ["b", "z", "d"]
    assert slots.shown.tolist() == [0, 4, 5]
    assert slots.request_ids == ("r1", "r2")
    assert (slots.users.tolist(), slots.answers.tolist()) == ([0, 0, 1], [0, 0, 1])
    assert (slots.positions.tolist(), slots.times.tolist()) == ([2, 3, 22], [START, START, START + 2 * HOUR])
    assert slots.rewards.tolist() == [0, 1, 0]
    assert slots.logged == pytest.approx([0.6, 0.2, 0.6])
    assert (slots.open, slots.unknown) == (1, 1)


def test_values_by_hand(tmp_path):
    """Twenty users like ann, with the same three slots; the judged policy shows z where it can."""
    records = [
        record
        for number in range(200)
        for user in [f"u{number:03d}"]
        for record in (
            answer(f"{user}a", user, ["a", "b", "z"], {2: ("b", ["x"]), 3: ("c", ["y", "z"])}, rate=0.5),
            answer(f"{user}b", user, ["a", "x", "c"], {2: ("b", ["x"]), 3: ("c", ["y", "z"])}, rate=0.5, hours=2),
            answer(f"{user}c", user, ["a", "x", "y"], {2: ("b", ["x"]), 3: ("c", ["y", "z"])}, rate=0.5, hours=3),
            answer(f"{user}d", user, ["a", "b", "c"], {2: ("b", ["x"]), 3: ("c", ["y", "z"])}, rate=0.5, hours=4),
            click(f"{user}a", user, "z"),
            click(f"{user}b", user, "c", 2.5),
            click(f"{user}d", user, "c", 4.5),
        )
    ]
    slots = slots_of(tmp_path, *records)
    best = np.where(slots.positions == 3, slots.choices.begin + 2, slots.choices.begin)
    found = judge(slots, "click", [Policy("best", best, np.full(len(slots.choices.flat), np.nan))])
    assert (found.slots, found.answers, found.users, found.estimator) == (1600, 800, 200, "DR")
    assert found.logged.mean == pytest.approx(3 / 8)
    own, ours = found.policies
    # own: of 8 slots of a user 4 show their own item, two of these are clicked, each with the weight 2
    assert own.values["IPS"].mean == pytest.approx(4 / 8)
    assert (own.agrees, own.overlap.effective) == (1.0, pytest.approx(800))
    assert (own.over_logged["IPS"].mean, own.over_own) == (pytest.approx(1 / 8), {})
    # ours: z of the first answer with the weight 4, and two own items of position 2 without a click
    assert ours.values["IPS"].mean == pytest.approx(4 / 8)
    assert ours.values["SNIPS"].mean == pytest.approx(4 / 8)
    assert (ours.over_logged["IPS"].mean, ours.over_own["IPS"].mean) == (pytest.approx(1 / 8), pytest.approx(0))
    assert ours.agrees == 0.5
    text = json.dumps(found.to_dict())
    assert '"refusal": ""' in text


def test_a_policy_that_was_never_shown_is_refused(tmp_path):
    shown = ["x" if i % 10 == 0 else "b" for i in range(300)]  # as often as the rate says
    records = [answer(f"r{i}", f"u{i}", ["a", shown[i]], {2: ("b", ["x"])}, rate=0.1) for i in range(300)]
    slots = slots_of(tmp_path, *records, click("r0", "u0", "a"))
    found = judge(slots, "click", [Policy("other", slots.choices.begin + 1, np.full(600, np.nan))])
    assert found.policies[1].refusal.startswith("the 300 rows are worth 30, 100 are needed")
    assert found.policies[1].values == {}
    assert found.policies[0].refusal == ""


EVENTS = noise(n_users=30, n_items=40)


@pytest.mark.parametrize("reranked", [True, False])
def test_a_bundle_shows_what_it_ranks_first(reranked):
    recommender, catalog, _ = toy_stage(EVENTS, reranked=reranked)
    rng = np.random.default_rng(0)
    item_ids = (*catalog.ids.ids[:20], "unknown")
    users = tuple(f"u{user}" for user in range(31))  # the last has no event
    dataset: Any = SimpleNamespace(users=IdMap(users[:30]), events=EVENTS)
    bundle: Any = SimpleNamespace(recommender=recommender, catalog=catalog)
    n, lists = 310, []
    for _ in range(n):  # two slots of each answer, which share no item
        drawn = rng.permutation(21)
        lists += [drawn[:3].tolist(), drawn[3 : 4 + rng.integers(1, 5)].tolist()]
    choices = Ragged.of(lists)
    answers, times = np.repeat(np.arange(n), 2), START + np.repeat(rng.integers(0, 70, n) * 24 * HOUR, 2)
    of = np.repeat(np.arange(n) % 31, 2)
    one, first, requests = np.ones(2 * n), np.ones(2 * n, np.int64), tuple(map(str, range(n)))
    slots = Slots(users, item_ids, requests, of, answers, times, first, choices, choices.begin, one, one, 0, 0)
    policy = of_bundle("b", bundle, dataset, slots)
    for number in range(2 * n):
        rows = catalog.ids.rows([item_ids[i] for i in lists[number]])
        user = int(of[number]) if of[number] < 30 else -1
        state = EVENTS.states(np.array([user]), times[number : number + 1]).compact()
        known = recommender.rank(state, rows[rows >= 0])
        shown = slots.choices.flat[policy.shows[number]]
        assert catalog.ids.rows([item_ids[shown]])[0] == known.rows[0, 0]
        scores = dict(zip(known.rows[0].tolist(), known.scores[0].tolist(), strict=True))
        got = policy.scores[choices.begin[number] : choices.end[number]]
        expected = [scores.get(row, np.nan) for row in rows.tolist()]
        assert got == pytest.approx(expected, nan_ok=True, rel=1e-4, abs=1e-6)


def test_a_bundle_without_any_of_the_items_shows_the_own_one():
    recommender, catalog, _ = toy_stage(EVENTS, reranked=False)
    choices, one = Ragged.of([[1, 0]]), np.ones(1)
    zero = np.zeros(1, np.int64)
    slots = Slots(("u0",), ("x", "y"), ("r",), zero, zero, zero + START, zero + 1, choices, zero, one, one, 0, 0)
    dataset: Any = SimpleNamespace(users=IdMap(("u0",)), events=EVENTS)
    policy = of_bundle("b", SimpleNamespace(recommender=recommender, catalog=catalog), dataset, slots)  # type: ignore[arg-type]
    assert policy.shows.tolist() == [0]


def simulated(rng, n_users=400, per_user=3, rate=0.5):
    """Slots with known rewards: (slots, expected reward of each choice)."""
    m, pool = n_users * per_user, 2
    flat = np.stack([rng.permutation(30)[: pool + 1] for _ in range(m)])
    value = rng.beta(1, 5, 30)[flat] * rng.uniform(0.2, 1, (m, 1))  # (m, 3)
    places = np.array([draw([pool], rate, int(seed))[0] for seed in rng.integers(0, 2**31, m)]) + 1
    shown = np.arange(m) * (pool + 1) + places
    rewards = (rng.random(m) < value[np.arange(m), places]).astype(float)
    users = np.repeat(np.arange(n_users), per_user)
    begin = np.arange(m) * (pool + 1)
    logged = np.where(places == 0, 1 - rate, rate / pool)
    slots = Slots(
        tuple(map(str, range(n_users))),
        tuple(map(str, range(30))),
        tuple(map(str, range(m))),
        users,
        np.arange(m),
        np.zeros(m, np.int64),
        np.full(m, 2),
        Ragged(flat.ravel(), begin, begin + pool + 1),
        shown,
        rewards,
        logged,
        0,
        0,
    )
    return slots, value.ravel()


def test_intervals_hold_the_known_gain():
    inside, rng = 0, np.random.default_rng(5)
    for _ in range(20):
        slots, value = simulated(rng)
        scores = value + rng.normal(scale=0.1, size=len(value))
        shows = slots.choices.begin + scores.reshape(-1, 3).argmax(1)
        found = judge(slots, "click", [Policy("better", shows, scores)]).policies[1]
        truth = float((value[shows] - value[slots.choices.begin]).mean())
        inside += found.over_own["DR"].low <= truth <= found.over_own["DR"].high
        assert abs(found.over_own["IPS"].mean - truth) < 0.06
    assert inside >= 17


def test_a_model_is_of_other_users():
    """The rewards of one user are unlike all others': no prediction of that user follows them."""
    slots, _ = simulated(np.random.default_rng(1))
    policy = no_exploration(slots)
    before = predicted_rewards(slots, policy, seed=3)
    assert before is not None
    of_seven = (slots.users == 7)[slots.choices.places()[0]]
    slots.rewards[slots.users == 7] = 1000.0
    after = predicted_rewards(slots, policy, seed=3)
    assert after is not None
    assert (before[of_seven] == after[of_seven]).all()
    assert (before[~of_seven] != after[~of_seven]).any()
    few = Slots(("a",), *(getattr(slots, name) for name in tuple(Slots.__dataclass_fields__)[1:]))
    assert predicted_rewards(few, policy, seed=3) is None


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["experiment", "ope", *map(str, arguments)])


def test_the_command(tmp_path):
    recommender, catalog, statistics = toy_stage(EVENTS)
    data = tmp_path / "data"
    data.mkdir()
    ids = catalog.ids.ids
    catalog.frame.select("item_id", "title").write_csv(data / "items.csv")
    frame = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in EVENTS.users],
            "item_id": [ids[item] for item in EVENTS.items],
            "event": "take",
            "timestamp": pl.Series(EVENTS.times).cast(pl.Datetime("us", "UTC")),
        }
    )
    frame.write_parquet(data / "events.parquet")
    config = {
        "name": "toy",
        "data": {"source": "folder", "path": str(data), "events": {"positive": {"take": None}}},
        "encoder": None,
    }
    bundle = save_bundle(tmp_path / "bundles", catalog, recommender, statistics, FACTS | {"config": config})
    records: list[Any] = []
    for number in range(600):
        user, pair = f"u{number % 30}", [ids[number % 39], ids[number % 39 + 1]]
        shown = pair[draw([1], 0.5, number)[0] + 1]
        records.append(answer(f"r{number}", user, [shown], {1: (pair[0], pair[1:])}, rate=0.5, hours=1500))
        records += [click(f"r{number}", user, shown, 1501)] if number % 3 == 0 else []
    file, log = outcomes(tmp_path, *records, hours=2000)
    common = ("--event", "click", "--log", log, "--bundles", tmp_path / "bundles")
    result = run(file, *common, "--bundle", bundle.name[:5], "--bundle", bundle, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [policy["name"] for policy in found["policies"]] == ["no exploration", bundle.name, bundle.name]
    assert found["policies"][1] == found["policies"][2]
    assert (found["slots"], found["users"], found["event"]) == (600, 30, "click")
    assert found["logged"]["mean"] == pytest.approx(1 / 3)
    assert 0 < found["policies"][1]["agrees"] < 1
    assert set(found["policies"][1]["over_own"]) == {"DM", "IPS", "clipped IPS", "DR", "Switch-DR"}
    table = run(file, *common, "--bundle", bundle.name)
    assert "no exploration" in table.output
    assert "as logged" in table.output
    for arguments, reason in (
        ((file, "--event", "buy", "--log", log), "no event of type buy; it has click"),
        ((file, *common, "--bundle", "zz"), "0 bundles begin with 'zz'"),
    ):
        result = run(*arguments)
        assert result.exit_code != 0
        assert reason in str(result.exception)


def test_what_cannot_be_judged_is_said(tmp_path):
    plain, log = outcomes(tmp_path / "a", answer("r", "ann", ["a"], {}), click("r", "ann", "a"))
    with pytest.raises(DataError, match=r"no item of its 1 rows was drawn.*serve with a rule `explore`"):
        read_slots(plain, log, "click")
    with pytest.raises(DataError, match="no event of type buy; it has click"):
        read_slots(plain, log, "buy")
    early, early_log = outcomes(tmp_path / "b", *SMALL[:1], *SMALL[-2:], hours=5)
    with pytest.raises(DataError, match="none of 2 explored rows can be used: 2 have an open window"):
        read_slots(early, early_log, "click")
    late, _ = outcomes(tmp_path / "c", *SMALL)
    with pytest.raises(DataError, match="none of 5 explored rows can be used: 1 have an open window, of 4 the"):
        read_slots(late, log, "click")
    empty = tmp_path / "empty.parquet"
    pl.read_parquet(plain).clear().write_parquet(empty)
    with pytest.raises(DataError, match="no rows: no answer was logged"):
        read_slots(empty, log, "click")
    pl.DataFrame({"a": [1]}).write_parquet(empty)
    with pytest.raises(DataError, match="is no file of `recsys log outcomes`"):
        read_slots(empty, log, "click")
