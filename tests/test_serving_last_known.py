"""The last known states of users: what is answered from them while the store is away, and what must not come back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import ServiceHarness, service_harness
from test_serving_asked import items, post
from test_serving_corrections import history, merge
from toy_service import NOW, RULES, ToyFiller, has_seen, toy_bundle, toy_events

from features.log.corrections import CorrectionFeed
from features.log.erasure.erased_users import ErasedUsers
from features.log.event_log import EventLog
from features.log.records import Event, EventUndone, UsersMerged
from features.store.user_state import Shown, UserState
from serving.state.store import last_known
from serving.state.store.last_known import KEPT_SECONDS, LastKnown

AWAY = ["store", "last_known"]


def click(user: str, item: str, time: int = NOW, event_id: str = "") -> Event:
    return Event(user_id=user, item_id=item, event="click", timestamp=time, event_id=event_id)


def state_of(*clicked: str, user: str = "u") -> UserState:
    return UserState.of([click(user, item, NOW + at) for at, item in enumerate(clicked)], RULES)


class Known(LastKnown):
    """Last known states with a clock that stands still."""

    def __init__(self, folder: Path) -> None:
        self.time = 0.0
        super().__init__(folder, CorrectionFeed(folder), clock=lambda: self.time, now=lambda: NOW)

    def read(self, user: str, *clicked: str) -> None:
        self.keep(user, state_of(*clicked, user=user), self.era)

    def items(self, user: str) -> tuple[str, ...] | None:
        state = self.state(user, RULES)
        return None if state is None else state.items


def test_an_answer_is_that_of_before_and_counts_events_that_are_accepted_meanwhile(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        before = harness.get("ann")
        harness.store.away = True
        answer = harness.get("ann")
        assert (answer["source"], answer["degraded"]) == ("model", AWAY)
        assert answer["items"] == before["items"]
        assert harness.click("ann", "i4")["degraded"] == ["store"]
        assert harness.items("ann") == ["i5", "i2", "i6", "i7"]  # the nearest to i4; i3 is not available
        history = harness.client.get("/v1/users/ann/history").json()
        assert ([event["item_id"] for event in history["events"]], history["degraded"]) == (["i4", "i8", "i1"], AWAY)


def test_of_a_user_of_whom_nothing_was_read_the_accepted_events_are_known(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i8")
        harness.store.away = True
        answer = harness.get("eve", 2)
        assert ([item["item_id"] for item in answer["items"]], answer["degraded"]) == (["i7", "i9"], AWAY)
        answer = harness.get("nobody")
        assert (answer["source"], answer["degraded"]) == ("popular", ["store"])


def test_the_session_of_a_request_counts_without_a_known_state_and_beside_one(tmp_path: Path) -> None:
    session = [{"item_id": "i6", "event": "click"}]
    with service_harness(tmp_path) as harness:
        before = post(harness, user_id="ann", session=session, limit=4)
        harness.store.away = True
        answer = post(harness, user_id="ann", session=session, limit=4)
        assert (items(answer), answer["degraded"]) == (items(before), AWAY)
        answer = post(harness, user_id="bob", session=session, limit=2)
        assert (answer["source"], items(answer), answer["degraded"]) == ("model", ["i5", "i7"], ["store"])


def test_while_the_store_answers_it_is_the_truth(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.get("ann")
        harness.store._contents.generations.clear()  # as an erasure does in the store
        assert harness.get("ann")["source"] == "popular"
        harness.store.away = True
        answer = harness.get("ann")
        assert (answer["source"], answer["degraded"]) == ("popular", ["store"])


def test_a_merge_and_an_undone_event_hold_while_the_store_is_away(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("anon", "i10")
        harness.click("u", "i2", event_id="e1")
        harness.click("u", "i7", event_id="e2")
        assert (history(harness, "anon"), history(harness, "u")) == (["i10"], ["i7", "i2"])
        harness.store.away = True
        assert merge(harness, "u", {"from": "anon"}).json()["degraded"] == ["store"]
        assert harness.client.delete("/v1/users/u/events/e2").json()["degraded"] == ["store"]
        assert (history(harness, "anon"), history(harness, "u")) == ([], ["i2"])
        answer = harness.get("u", 12)
        assert "i7" in [item["item_id"] for item in answer["items"]]  # nor is it seen
        assert harness.get("anon")["source"] == "popular"


def test_corrections_of_another_process_hold(tmp_path: Path) -> None:
    known, log = Known(tmp_path), EventLog(tmp_path)
    known.keep("u", UserState.of([click("u", "i1", NOW, "e1"), click("u", "i2", NOW, "e2")], RULES), known.era)
    known.add([click("u", "i3", NOW, "e3"), click("anon", "i4")], RULES)
    assert known.items("u") == ("i1", "i2", "i3")
    log.append_now([EventUndone(user_id="u", event_id=name, timestamp=NOW) for name in ("e1", "e3")])
    log.append_now([UsersMerged(user_id="u", from_id="anon", timestamp=NOW, until=NOW)])
    assert (known.items("u"), known.items("anon")) == (("i2",), None)
    state = known.state("u", RULES)
    assert state is not None
    assert has_seen(state, ["i1", "i2", "i3"]).tolist() == [False, True, False]
    known.add([click("anon", "i5", NOW - 1)], RULES)  # sent late: it belongs to u
    assert (known.items("u"), known.items("anon")) == (("i5", "i2"), None)
    log.close()


def test_a_user_who_was_erased_does_not_come_back(tmp_path: Path) -> None:
    known = Known(tmp_path)
    known.read("u", "i1")
    known.read("v", "i1")
    ErasedUsers(b"", {}).with_user("u", NOW).write(tmp_path)
    assert (known.items("u"), known.items("v")) == (None, ("i1",))
    ErasedUsers.of(tmp_path).with_user("v", NOW).write(tmp_path)
    assert known.items("v") is None


def test_where_corrections_or_the_list_of_erased_users_cannot_be_read_nothing_is_known(tmp_path: Path) -> None:
    known = Known(tmp_path)
    known.read("u", "i1")
    (tmp_path / "erased.json").write_text("nonsense")
    assert known.items("u") is None
    (tmp_path / "erased.json").unlink()
    assert known.items("u") == ("i1",)
    (tmp_path / "corrections").mkdir()
    (tmp_path / "corrections" / f"{1:020d}.log").mkdir()  # a segment that is no file
    assert known.items("u") is None


def test_another_generation_and_another_bundle_leave_nothing(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert harness.get("ann")["source"] == "model"
        fewer = ToyFiller(harness.folder, lambda _: toy_events([("bob", "i2", 1.0)]))  # rows were removed
        fewer.start(harness.store, harness.service.snapshot.bundle.data)
        harness.service.step()
        harness.store.away = True
        assert harness.get("ann")["degraded"] == ["store"]
        harness.store.away = False
        harness.click("ann", "i1")
        harness.shelf.put("second", replace(toy_bundle(tmp_path), fingerprint="toy-2"))
        harness.service.step()
        harness.store.away = True
        assert harness.get("ann")["degraded"] == ["store"]


def test_a_read_of_an_earlier_generation_that_ends_late_is_not_kept(tmp_path: Path) -> None:
    known = Known(tmp_path)
    era = known.era
    known.forget_all()
    known.keep("u", state_of("i1"), era)
    assert known.items("u") is None


def test_a_state_is_forgotten_after_its_time(tmp_path: Path) -> None:
    known = Known(tmp_path)
    known.read("u", "i1")
    known.time = KEPT_SECONDS - 1
    known.add([click("u", "i2"), click("v", "i3")], RULES)  # an event prolongs nothing
    assert (known.items("u"), known.items("v")) == (("i1", "i2"), ("i3",))
    known.time = KEPT_SECONDS
    known.sweep()
    assert (known.items("u"), known.items("v"), len(known)) == (None, ("i3",), 1)
    known.time = 2 * KEPT_SECONDS
    known.sweep()
    assert (len(known), known.bytes) == (0, 0)


def test_the_users_that_were_read_last_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_known, "MAX_USERS", 2)
    known = Known(tmp_path)
    for user in ("a", "b", "a", "c"):
        known.read(user, "i1")
    assert [known.items(user) for user in "abc"] == [("i1",), None, ("i1",)]
    known.add([click("d", "i2")], RULES)
    assert [known.items(user) for user in "abcd"] == [None, None, ("i1",), ("i2",)]


def test_the_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_known, "MAX_BYTES", 8_000)
    known = Known(tmp_path)
    for user in ("a", "b", "c"):
        known.read(user, *(f"i{n}" for n in range(20)))
    assert 0 < known.bytes <= 8_000
    assert [known.items(user) is None for user in "abc"] == [True, True, False] or len(known) == 1
    for n in range(200):
        known.add([click("d", f"i{n}")], RULES)
        assert known.bytes <= 8_000
    known.read("e", *(f"i{n}" for n in range(100)))  # larger than all that may be kept
    assert (known.items("e"), known.bytes) == (None, 0)


def test_many_events_of_one_user_become_one_state(tmp_path: Path) -> None:
    known = Known(tmp_path)
    known.read("u", "i0")
    for n in range(1, 120):
        known.add([click("u", f"i{n}", NOW + n), Event(user_id="u", item_id="x", event="view", timestamp=NOW)], RULES)
    assert known._known["u"].pending != []
    assert len(known._known["u"].pending) <= last_known.PENDING
    state = known.state("u", RULES)
    assert state is not None
    expected = UserState.of([click("u", f"i{n}", NOW + n) for n in range(120)], RULES)
    assert (state.items, state.seen.tolist()) == (expected.items, expected.seen.tolist())


def test_what_users_were_shown_and_empty_states_are_not_kept(tmp_path: Path) -> None:
    known = Known(tmp_path)
    known.keep("u", replace(state_of("i1"), shown=Shown.of(["i2"], NOW)), known.era)
    state = known.state("u", RULES)
    assert state is not None
    assert len(state.shown.keys) == 0
    known.read("u")  # the store has no state any more
    assert known.items("u") is None


def test_an_answer_from_it_is_logged_as_such(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.get("ann")
        harness.store.away = True
        shown = harness.get("ann")
        metrics = harness.client.get("/metrics").text
    assert 'recsys_degraded_answers_total{component="last_known",placement="home"}' in metrics
    logged: Any = [orjson.loads(line[9:]) for line in lines(harness)]
    assert logged[-1]["degraded"] == shown["degraded"] == AWAY


def lines(harness: ServiceHarness) -> list[bytes]:
    (segment,) = (harness.folder / "log" / "exposures").glob("*.log")
    return segment.read_bytes().splitlines()
