"""One turn of the loop: the service explores, the log is judged, the better bundle is promoted and tested.

Two gains are estimated, and both are known exactly, because the people are simulated:

* *At explored slots*, before B was ever served: the mean over explored slots of the expected clicks of the item that
  B ranks first among the choices, minus those of the own item (`over_own` of `experiments.evaluation.off_policy`).
  The other positions are as they were logged. The truth is the same mean over the same slots, of the person's
  attraction at that day and after the showings until then, times the probability that the position is viewed.
* *Online*, clicks of an answer: the truth is the mean over all testers of the expected clicks of B's slate minus
  those of A's. Both slates of each tester were asked for before the test, and nobody looked at them.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments.bench.loop.service import Paths, Shop, serving
from experiments.bench.loop.world import CLICK, EXPLORED, PURCHASE, QUIET, VIEW, World
from experiments.evaluation.off_policy.judgement import Judgement, judge
from experiments.evaluation.off_policy.policies import Policy, of_bundle
from experiments.evaluation.off_policy.slots import Slots, read_slots
from experiments.evaluation.online import Change, analyse
from experiments.pipelines.batch_slates import load_served
from experiments.simulation.behaviour import Moment, Responses, Showings, respond
from experiments.simulation.truth import Truth
from features.arrays import Doubles, Ints
from features.ids import IdMap
from features.instants import DAY
from features.log.outcomes.table import write_outcomes
from features.progress import silent
from recsys.assignment import CONTROL
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import publish_bundle
from recsys.evaluation.bootstrap import Interval

K = 10
EXPLORE = {"positions": [1, 3, 5], "rate": 0.5, "among": 6}
"""The rule of exploration: three slots of an answer, each with a pool of two."""

TEST, OLD = "promotion", "before"
"""Name of the online test, and of the variant that has A again."""


@dataclass(frozen=True)
class Estimate:
    """An estimated gain of B over A, with its interval, beside the true one."""

    gain: Interval
    truth: float

    @property
    def inside(self) -> bool:
        """Whether the interval holds the truth."""
        return self.gain.low <= self.truth <= self.gain.high

    @property
    def agrees(self) -> bool:
        """Whether the interval holds the truth, or the estimate has its sign."""
        return self.inside or self.gain.mean * self.truth > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self.gain), "truth": self.truth, "inside": self.inside, "agrees": self.agrees}


@dataclass(frozen=True)
class Turn:
    """What one turn found. offline: at explored slots, None where the estimate is refused, for the reason `refusal`;
    slots, effective: their number, and what they are worth for B; promoted: whether the interval of `offline` is
    above zero; online: None where B was not promoted; as_asked: share of the answers of the test that equal the one
    asked for before."""

    seed: int
    seconds: float
    slots: int
    effective: float
    offline: Estimate | None
    refusal: str
    promoted: bool
    online: Estimate | None
    users: dict[str, int]
    as_asked: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {
            name: value and value.to_dict() for name, value in (("offline", self.offline), ("online", self.online))
        }
        plain = ("seed", "seconds", "slots", "effective", "refusal", "promoted", "users", "as_asked")
        return {**{name: getattr(self, name) for name in plain}, **found}


def run_turn(world: World, folder: Path, seed: int, *, always: bool = False) -> Turn:
    """One turn in a folder of its own. seed: of who is asked, and of what they do; the service draws what it explores
    by the ids of its answers, which no seed repeats. always: promote B whatever was found. Raises RecsysError."""
    started, paths = time.perf_counter(), Paths(folder)
    for bundle in (world.first, world.second):
        shutil.copytree(bundle, paths.bundles / bundle.name)
    publish_bundle(paths.bundles / world.first.name)
    rules = [{"name": "explore", "explore": EXPLORE, "placements": [EXPLORED]}]
    paths.rules.write_text(yaml.safe_dump({"rules": rules}))
    paths.experiments.write_text("experiments: []\n")
    asked = np.random.default_rng([seed, 0]).permutation(len(world.user_ids))
    explorers = np.sort(asked[: world.size.explorers])
    testers = np.sort(asked[world.size.explorers :][: world.size.testers])
    with serving(paths) as shop:
        visitors = Visitors(world, shop, seed)
        shown = visitors.explore(explorers)
        slots, policy, judgement = _judge(world, paths)
        own, judged = judgement.policies
        gain, truth = judged.over_own.get("DR"), _true_gain(world, slots, policy, shown)
        offline = None if gain is None else Estimate(gain, truth)
        promoted = always or (gain is not None and gain.low > 0)
        online, users, as_asked = None, dict[str, int](), None
        if promoted:
            online, users, as_asked = _test(world, paths, shop, visitors, testers)
    seconds = time.perf_counter() - started
    effective, refusal = judged.overlap.effective, "" if offline else judged.refusal or own.refusal
    return Turn(seed, seconds, len(slots), effective, offline, refusal, promoted, online, users, as_asked)


@dataclass(frozen=True)
class Shown:
    """What the answers of the exploration were: request -> (person, round); counts (r, u, n): showings before each
    round."""

    requests: dict[str, tuple[int, int]]
    counts: np.typing.NDArray[np.uint16]


class Visitors:
    """Simulated people who ask a running service, and tell it what they did. A round is a day."""

    def __init__(self, world: World, shop: Shop, seed: int) -> None:
        self.world, self.shop = world, shop
        self.rng, self.rows = np.random.default_rng([seed, 1]), IdMap(world.item_ids)
        self.showings = Showings.none(world.people)
        self.due: list[tuple[float, dict[str, Any]]] = []
        """Purchases that are still to come: their day, and the event."""

    def slates(self, users: Ints, placement: str) -> tuple[Ints, list[dict[str, Any]]]:
        """The items (b, K) of an answer to each user, and the answers."""
        answers = self.shop.answers([self.world.user_ids[user] for user in users], placement, K)
        rows = self.rows.rows([item["item_id"] for answer in answers for item in answer["items"]])
        return rows.reshape(len(users), K), answers

    def visit(self, users: Ints, placement: str, day: int) -> tuple[Ints, list[dict[str, Any]]]:
        """Ask for all users on a day, do what they do, and post it, with the purchases that are due."""
        slates, answers = self.slates(users, placement)
        moment = Moment(users, np.full(len(users), float(day)), self.showings.of(users, slates))
        responses = respond(self.world.people, self.world.behaviour, slates, moment, self.rng)
        self.showings.add(users, slates)
        self.shop.post([*self._events(users, answers, responses, day), *self._bought_until(day)])
        return slates, answers

    def end(self) -> None:
        """Post all purchases that are still to come."""
        self.shop.post([*self._bought_until(np.inf)])

    def explore(self, users: Ints) -> Shown:
        """All rounds of exploration."""
        requests, counts = dict[str, tuple[int, int]](), []
        for day in range(self.world.size.rounds):
            counts.append(self.showings.counts.copy())
            _, answers = self.visit(users, EXPLORED, day)
            requests |= {answer["request_id"]: (int(user), day) for user, answer in zip(users, answers, strict=True)}
        self.end()
        return Shown(requests, np.stack(counts))

    def _events(
        self, users: Ints, answers: list[dict[str, Any]], responses: Responses, day: int
    ) -> Iterator[dict[str, Any]]:
        """Views and clicks of the day; purchases are kept until they are due."""
        for kind, happened in ((VIEW, responses.viewed), (CLICK, responses.clicked)):
            for line, place in np.argwhere(happened).tolist():
                yield self._event(kind, int(users[line]), answers[line], place)
        for line, place in np.argwhere(np.isfinite(responses.bought_after)).tolist():
            event = self._event(PURCHASE, int(users[line]), answers[line], place)
            self.due.append((day + float(responses.bought_after[line, place]), event))

    def _event(self, kind: str, user: int, answer: dict[str, Any], place: int) -> dict[str, Any]:
        shown, request = answer["items"][place], answer["request_id"]
        of = {"user_id": self.world.user_ids[user], "item_id": shown["item_id"], "event": kind}
        return {**of, "request_id": request, "position": shown["position"], "event_id": f"{request}-{kind}-{place}"}

    def _bought_until(self, day: float) -> list[dict[str, Any]]:
        due = [event for at, event in self.due if at <= day]
        self.due = [(at, event) for at, event in self.due if at > day]
        return due


def _judge(world: World, paths: Paths) -> tuple[Slots, Policy, Judgement]:
    """B on the log of A, as `recsys log outcomes` and `recsys experiment ope` judge it."""
    slots = read_slots(_outcomes(paths), paths.log, CLICK)
    bundle = load_bundle(world.second)
    policy = of_bundle(bundle.fingerprint, bundle, load_served(bundle, silent, paths.log), slots)
    return slots, policy, judge(slots, CLICK, [policy])


def _outcomes(paths: Paths) -> Path:
    """The outcomes of the log so far, as they are when all windows are over: nothing else will happen."""
    out = paths.folder / "outcomes.parquet"
    write_outcomes(paths.log, out, DAY, now=time.time_ns() // 1000 + 2 * DAY)
    return out


def _true_gain(world: World, slots: Slots, policy: Policy, shown: Shown) -> float:
    """The exact mean over the slots of what B's choice is worth, minus what the own item is."""
    user, day = np.array([shown.requests[request] for request in slots.request_ids])[slots.answers].T  # (m,) each
    rows = IdMap(world.item_ids).rows(slots.item_ids)[slots.choices.flat]
    truth, values = Truth(world.people, world.behaviour), list[Doubles]()
    for shows in (policy.shows, slots.choices.begin):
        items = rows[shows][:, None]  # (m, 1)
        before = shown.counts[day, user, items[:, 0]].astype(np.int64)[:, None]
        moment = Moment(user, day.astype(np.float64), before)
        values.append(truth.of_slots(items, moment, slots.positions[:, None])[:, 0])
    return float((values[0] - values[1]).mean())


def _test(
    world: World, paths: Paths, shop: Shop, visitors: Visitors, testers: Ints
) -> tuple[Estimate, dict[str, int], float]:
    """Publish B, show A to half of the testers again, and analyse; the users of each arm, and `as_asked`."""
    of_first, _ = visitors.slates(testers, QUIET)
    publish_bundle(paths.bundles / world.second.name)
    other = world.user_ids[testers[0]]
    shop.wait("publish B", lambda about: bool(about["bundle"] == world.second.name), other)
    of_second, _ = visitors.slates(testers, QUIET)
    variants = {OLD: {"share": 0.5, "bundle": world.first.name}}
    experiment = {"name": TEST, "placements": [QUIET], "variants": variants}
    paths.experiments.write_text(yaml.safe_dump({"experiments": [experiment]}))
    shop.wait("start the test", lambda about: [_is_served(e) for e in about["experiments"]] == [True], other)
    slates, answers = visitors.visit(testers, QUIET, world.size.rounds)
    visitors.end()
    is_old = np.array([answer["variant"] == f"{TEST}:{OLD}" for answer in answers])
    as_asked = float((slates == np.where(is_old[:, None], of_first, of_second)).all(1).mean())
    days = np.full(len(testers), float(world.size.rounds))
    truth = Truth(world.people, world.behaviour)
    gain = truth.gain(of_second, of_first, testers, days, Showings.none(world.people))
    found = analyse(_outcomes(paths), [CLICK], experiment=TEST, control=CONTROL)
    return Estimate(_of_b(found.changes), float(gain.mean())), dict(found.users), as_asked


def _is_served(experiment: dict[str, Any]) -> bool:
    return bool(experiment["variants"][OLD]["served"])


def _of_b(changes: list[Change]) -> Interval:
    """B minus A in clicks of a user, who has one answer: the change of the old variant, turned round."""
    change = next(row.change for row in changes if row.metric == f"{CLICK} per user")
    return Interval(-change.mean, -change.high, -change.low)
