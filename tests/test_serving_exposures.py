"""Exposures: what the log says of an answer and of a sample of them, and that a client who has gone saw nothing."""

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest
from service_harness import service_harness, serving
from toy_service import (
    NOW,
    RULES,
    Nearest,
    ToyBundle,
    ToyFiller,
    ToyShelf,
    toy_bundle,
    toy_encoders,
    toy_settings,
    toy_upsert,
    with_contents,
)

from features.arrays import Floats
from features.log.reader import read
from features.log.records import EXPOSURES, Exposure, Sample, record_of
from features.schema import EventRules
from features.store.memory import MemoryStore
from recsys.ranking.pair_features import FEATURES
from serving.app import create_app
from serving.routes.responses import is_sampled, number_of
from serving.telemetry.request_id import new_id


def exposures(log: Path) -> list[Exposure]:
    return [record for record in read(log, stream=EXPOSURES).records if isinstance(record, Exposure)]


class Featured(Nearest):
    """Its features are 0, 1/3, 2/3, … and one is undefined."""

    def features(self, states: Any, rows: Any, k: int, **_: Any) -> Floats | None:
        values = np.arange(len(rows) * len(FEATURES), dtype=np.float32).reshape(len(rows), -1) / np.float32(3)
        values[0, 4] = np.nan
        return values


class Faulty(Nearest):
    def features(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("these features cannot be computed")


def with_recommender(bundle: ToyBundle, recommender: Nearest) -> ToyBundle:
    return replace(with_contents(bundle), recommender=recommender)


def test_an_exposure_has_the_reasons_and_positions_of_the_answer(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{name: a, pin: {item: i6, position: 2}}]")
    with service_harness(tmp_path, rules=rules) as harness:
        answers = [harness.get("nobody", 3), harness.client.get("/v1/items/i5/similar?limit=2").json()]
    shown = exposures(tmp_path / "log")
    assert [exposure.request_id for exposure in shown] == [answer["request_id"] for answer in answers]
    assert [[*exposure.reasons] for exposure in shown] == [["popular", "pinned", "popular"], ["similar"] * 2]
    assert [(e.first_position, e.exploration, e.sample) for e in shown] == [(1, None, None)] * 2


def test_a_sampled_exposure_has_the_candidates_and_the_features(tmp_path: Path) -> None:
    with service_harness(tmp_path, exposure_sample=1.0) as harness:
        cold, known = harness.get("nobody", 3), harness.get("ann", 3)
        harness.client.get("/v1/items/i5/similar?limit=2")
    of_cold, of_known, of_similar = exposures(tmp_path / "log")
    # i3 is not available; the popularity of 12 items is 1, 11/12, …
    rows = [0, 1, 2, *range(4, 12)]
    names = tuple(f"i{row}" for row in rows)
    assert of_cold.sample is not None
    assert [*of_cold.sample.candidates] == [*names]
    expected = [float(np.float32(1 - row / 12)) for row in rows]
    assert [*of_cold.sample.candidate_scores] == pytest.approx(expected, abs=1e-7)
    assert ([*of_cold.sample.feature_names], [*of_cold.sample.features]) == ([], [])
    assert [item["item_id"] for item in cold["items"]] == ["i0", "i1", "i2"]
    assert of_known.sample is not None
    # ann has seen i1 and i8
    assert [*of_known.sample.candidates] == ["i7", "i9", "i6", "i10", "i5", "i11", "i4", "i2", "i0"]
    assert [item["item_id"] for item in known["items"]] == ["i7", "i9", "i6"]
    assert of_similar.sample is None


def test_features_are_named_and_short(tmp_path: Path) -> None:
    shelf = ToyShelf(with_recommender(toy_bundle(tmp_path), Featured(12)))
    with service_harness(tmp_path, shelf=shelf, exposure_sample=1.0) as harness:
        harness.get("ann", 2)
    (line,) = (tmp_path / "log" / "exposures").glob("*.log")
    (exposure,) = exposures(tmp_path / "log")
    assert exposure.sample is not None
    assert tuple(exposure.sample.feature_names) == FEATURES
    first, second = exposure.sample.features
    assert (len(first), len(second)) == (len(FEATURES), len(FEATURES))
    assert [*first[:6]] == [0.0, 0.33333334, 0.6666667, 1.0, None, 1.6666666]
    assert b"[[0.0,0.33333334,0.6666667,1.0,null," in line.read_bytes()


def test_features_that_fail_do_not_fail_the_answer(tmp_path: Path) -> None:
    shelf = ToyShelf(with_recommender(toy_bundle(tmp_path), Faulty(12)))
    with service_harness(tmp_path, shelf=shelf, exposure_sample=1.0) as harness:
        assert harness.items("ann", 2) == ["i7", "i9"]
    (exposure,) = exposures(tmp_path / "log")
    assert (exposure.sample, [*exposure.items]) == (None, ["i7", "i9"])


def test_the_sample_is_the_share_that_is_asked_for_and_follows_from_the_id() -> None:
    ids = [new_id() for _ in range(20_000)]
    for share in (0.0, 0.01, 0.5, 1.0):
        n = sum(is_sampled(name, share) for name in ids)
        spread = 5 * (20_000 * share * (1 - share)) ** 0.5
        assert abs(n - 20_000 * share) <= spread
    assert number_of("a", "sample") == number_of("a", "sample") != number_of("a", "explore")
    assert max(number_of(name, "sample") for name in ids) < 2**48  # JavaScript reads it without rounding


EXPLORE = """
rules:
- name: try others
  explore: {positions: [1, 3], rate: 0.5, among: 4}
  placements: [home]
- name: one first
  pin: {item: i6, position: 1}
  users: known
"""


def test_an_answer_says_what_is_explored_and_the_log_how(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(EXPLORE)
    with service_harness(tmp_path, rules=rules) as harness:
        answers = [harness.get("nobody", 3) for _ in range(60)]
        known, elsewhere = harness.get("ann", 3), harness.get("nobody", 3, "again")
        not_drawn = harness.client.get("/v1/users/nobody/why-not?item_id=i5&limit=3").json()
        shown = harness.client.get("/v1/users/nobody/why-not?item_id=i0&limit=3").json()
    logged = exposures(tmp_path / "log")
    assert len(logged) == 62  # why-not shows nothing
    ids = {answer["request_id"]: answer for answer in answers}
    for exposure in logged[:60]:
        answer, how = ids[exposure.request_id], exposure.exploration
        assert how is not None
        # without exploration: i0, i1, i2; then i4 (i5 is its variant), i6, i7, i8, dealt in turn
        assert (how.policy, how.law, how.rate, [*how.positions]) == ("try others", "pools-1", 0.5, [1, 3])
        assert ([*how.own], [[*pool] for pool in how.pools]) == (["i0", "i2"], [["i4", "i7"], ["i6", "i8"]])
        assert how.seed == number_of(exposure.request_id, "explore")
        source, expected, chances = Random(how.seed), ["i0", "i1", "i2"], [1.0, 1.0, 1.0]
        for position, pool in zip(how.positions, how.pools, strict=True):
            is_drawn, place = source.random() < how.rate, int(source.random() * len(pool))
            expected[position - 1] = pool[place] if is_drawn else expected[position - 1]
            chances[position - 1] = 0.25 if is_drawn else 0.5
        assert [item["item_id"] for item in answer["items"]] == [*exposure.items] == expected
        assert [item["propensity"] for item in answer["items"]] == [*exposure.propensities] == chances
        drawn = [item["position"] for item in answer["items"] if item["explored"]]
        assert drawn == [*how.drawn] == [p for p in (1, 3) if chances[p - 1] == 0.25]
        assert {item["reason"] for item in answer["items"]} == {"popular"}
    assert 0 < sum(bool(e.exploration and e.exploration.drawn) for e in logged) < 60
    of_known, of_elsewhere = logged[60:]
    assert known["items"][0] == known["items"][0] | {"item_id": "i6", "propensity": 1.0, "explored": False}
    assert of_known.exploration is not None
    assert [*of_known.exploration.positions] == [3]  # the first is pinned
    assert of_elsewhere.exploration is None
    assert [item["item_id"] for item in elsewhere["items"]] == ["i0", "i1", "i2"]
    # why-not is of the slate without exploration, and a rule of exploration alone puts nothing in another order
    assert (not_drawn["stage"], not_drawn["rank"]) == ("below", 4)
    assert (shown["stage"], shown["rank"]) == ("shown", 1)


def test_records_keep_their_parts_through_the_log() -> None:
    sample = Sample(("a", "b"), (2.0, 1.0), ("x",), ((0.5,), (None,)))
    exposure = Exposure("r", "u", "home", 1, "f", "default", "model", (), ("a",), (2.0,), (1.0,), sample=sample)
    values = json.loads(orjson.dumps(exposure))
    later = {**values, "v": 1, "new": 3, "sample": {**values["sample"], "new": 4}}
    read_back = record_of(later)  # keys of a later version are passed over
    assert isinstance(read_back, Exposure)
    assert isinstance(read_back.sample, Sample)
    assert json.loads(orjson.dumps(read_back)) == values


def answer_of(url: str) -> Any:
    with urllib.request.urlopen(url) as response:
        return json.load(response)


class Slow(Nearest):
    """Can hold an answer back until the test lets it go."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        object.__setattr__(self, "gates", {})

    def recommend(self, states: Any, k: int, **more: Any) -> Any:
        gates: dict[str, threading.Event] = self.__dict__["gates"]
        if gates:
            gates["begun"].set()
            assert gates["go on"].wait(20)
        return super().recommend(states, k, **more)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[str, Slow]]:
    """A real server whose recommender waits."""
    recommender = Slow(12)
    shelf = ToyShelf(with_recommender(toy_bundle(tmp_path), recommender))

    def connect(rules: EventRules) -> MemoryStore:
        return MemoryStore(RULES)

    app = create_app(
        toy_settings(tmp_path, follow_seconds=3600),
        load=shelf.load,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        connect=connect,
        filler=ToyFiller(tmp_path),
        now=lambda: NOW,
        encoders=toy_encoders,
    )
    with serving(app) as url:
        yield url, recommender


def test_a_client_that_has_gone_was_shown_nothing(tmp_path: Path, slow: tuple[str, Slow]) -> None:
    url, recommender = slow
    path = "/v1/users/ann/recommendations?limit=2"
    assert answer_of(url + path)["items"][0]["item_id"] == "i7"
    assert len(exposures(tmp_path / "log")) == 1
    gates = {"begun": threading.Event(), "go on": threading.Event()}
    recommender.__dict__["gates"] |= gates
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert gates["begun"].wait(20)
    time.sleep(0.2)  # the server hears of the end
    recommender.__dict__["gates"].clear()
    gates["go on"].set()
    answer = answer_of(url + path)
    assert [e.request_id for e in exposures(tmp_path / "log")][1:] == [answer["request_id"]]


def test_an_answer_without_its_exposure_still_says_so(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.service.log.close()
        assert harness.get("ann", 2)["degraded"] == ["log"]
        assert harness.client.get("/v1/about").json()["unlogged"] == 1
