"""Rotation through the API: what a user was shown and has not touched steps back, and pages of a list stay."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from service_harness import Flaky, ServiceHarness, service_harness
from toy_service import NOW, RULES, ToyShelf, toy_bundle, with_contents

from features.erasure.erase import Scope, erase_user
from features.erasure.known import known_of
from features.errors import StoreError
from features.instants import DAY, format_instant
from features.log.records import Event
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.user_state import Shown, UserState
from recsys.ranking.rules import Rotation
from recsys.ranking.slate_rules import SlateRules

ROTATE = "rules: [{name: show others, rotation: {by: 100, days: 10}}]"


@contextmanager
def rotating(folder: Path, rules: str = ROTATE, **options: Any) -> Iterator[tuple[ServiceHarness, list[int]]]:
    """A service with rules, and its clock (µs), which tests move."""
    file, clock = folder / "rules.yaml", [NOW]
    file.write_text(rules)
    store = Flaky(RULES, lambda: clock[0])
    with service_harness(folder, rules=file, store=store, **options) as harness:
        harness.service.now = lambda: clock[0]
        yield harness, clock


def page(harness: ServiceHarness, user: str, **query: Any) -> Any:
    response = harness.client.get(f"/v1/users/{user}/recommendations", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_what_was_shown_steps_back_and_returns_after_its_days(tmp_path: Path) -> None:
    with rotating(tmp_path) as (harness, clock):
        assert harness.items("nobody", 3) == ["i0", "i1", "i2"]
        clock[0] += 1
        assert harness.items("nobody", 3) == ["i4", "i6", "i7"]  # i5 is a variant of i4
        assert harness.items("else", 3) == ["i0", "i1", "i2"], "of each user alone"
        clock[0] += DAY
        assert harness.items("nobody", 4) == ["i8", "i9", "i10", "i11"]
        clock[0] += DAY  # those that were shown first have lost least
        assert harness.items("nobody", 6) == ["i0", "i1", "i2", "i4", "i6", "i7"]
        clock[0] += 10 * DAY
        assert harness.items("nobody", 3) == ["i0", "i1", "i2"]


def test_a_touch_ends_the_loss_and_a_view_does_not(tmp_path: Path) -> None:
    with rotating(tmp_path) as (harness, clock):
        first = harness.items("ann", 3, "again")
        assert first == ["i8", "i7", "i9"]  # nearest to i8
        clock[0] += 1_000_000
        harness.click("ann", "i7", timestamp=format_instant(clock[0]))
        view = {"user_id": "ann", "item_id": "i9", "event": "view", "timestamp": format_instant(clock[0])}
        assert harness.client.post("/v1/events", content=orjson.dumps(view)).status_code == 202
        clock[0] += 1
        # nearest to i7 are now 7, 6, 8, 5, …; of those that were shown, i7 alone was touched since
        assert harness.items("ann", 4, "again") == ["i7", "i6", "i5", "i10"]


def test_a_view_that_the_rules_of_events_name_is_no_touch(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        rules = SlateRules(np.ones(12, dtype=np.bool_), rotation=Rotation(by=2, days=10))
        named = RULES.model_copy(update={"positive": {**RULES.positive, "view": None}})
        events = [
            Event(user_id="u", item_id=item, event=kind, timestamp=NOW - DAY)
            for item, kind in (("i1", "view"), ("i2", "click"))
        ]
        state = UserState.of(events, named)
        shown = Shown.of(["i1", "i2", "gone"], NOW - 2 * DAY)
        state = UserState(**{**state.__dict__, "shown": shown})
        rotated = harness.service.snapshot.rotated(rules, state, NOW)
        assert rotated.losses.among(np.array([1, 2, 3])).tolist() == [2 * (1 - 0.2), 0, 0]


def test_rotation_is_a_rule_of_placements_and_showings_of_all_placements_count(tmp_path: Path) -> None:
    text = "rules: [{name: a, rotation: {by: 100, days: 10}, placements: [again], users: known}]"
    with rotating(tmp_path, text) as (harness, clock):
        assert harness.items("ann", 2) == harness.items("ann", 2) == ["i7", "i9"]
        clock[0] += 1
        assert harness.items("ann", 2) == ["i7", "i9"]
        assert harness.items("ann", 3, "again") == ["i8", "i6", "i10"]
        for _ in range(2):
            clock[0] += 1
            assert harness.items("nobody", 2, "again") == ["i0", "i1"]


def test_nothing_is_kept_where_no_rule_asks(tmp_path: Path) -> None:
    with rotating(tmp_path, "rules: [{name: a, minimum: 0}]") as (harness, _):
        assert "remember" not in harness.get("nobody")["trace"]
        assert harness.store._contents.shown == {}
    with rotating(tmp_path) as (harness, _):
        for url in ("/v1/users/u/why-not?item_id=i0", "/v1/items/i0/similar"):
            assert harness.client.get(url).status_code == 200
        harness.client.post("/v1/rank", content=orjson.dumps({"user_id": "u", "items": ["i0"]}))
        harness.found(text="red", user_id="u")
        assert harness.store._contents.shown == {}, "only recommendations show"
        harness.items("u")
        assert {*harness.store._contents.shown} == {"u"}


def test_a_store_that_is_away_costs_the_rule_and_the_answer_says_so(tmp_path: Path) -> None:
    with rotating(tmp_path) as (harness, clock):
        assert harness.items("nobody", 2) == ["i0", "i1"]
        clock[0] += 1
        harness.store.away = True
        answer = harness.get("nobody", 2)
        assert (ids(answer), answer["degraded"]) == (["i0", "i1"], ["store", "rules"])
        harness.store.away = False
        answer = harness.get("nobody", 2)
        assert (ids(answer), answer["degraded"]) == (["i2", "i4"], [])


class Full(Flaky):
    """A store that cannot take showings."""

    def add_shown(self, user: Any, shown: Any, days: float) -> None:
        raise StoreError("its memory is full")


def test_a_showing_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(ROTATE)
    with service_harness(tmp_path, rules=file, store=Full(RULES)) as harness:
        answer = harness.get("nobody", 2)
        assert (ids(answer), answer["degraded"]) == (["i0", "i1"], ["store"])
        assert harness.client.get("/readyz").json()["notes"]["store"] == "its memory is full"


def test_why_and_why_not_show_the_loss(tmp_path: Path) -> None:
    text = "rules: [{name: show others, rotation: {by: 2, days: 10}, placements: [home]}]"
    with rotating(tmp_path, text) as (harness, clock):
        harness.items("nobody", 2)
        clock[0] += 2 * DAY + DAY // 2
        answer = page(harness, "nobody", limit=10, placement="home", explain=True)
        losses = {item["item_id"]: item["why"]["loss"] for item in answer["items"]}
        assert losses == {**dict.fromkeys(ids(answer), 0), "i0": 1.5, "i1": 1.5}  # 2 * (1 - 2.5/10)
        assert ids(answer) != ["i0", "i1", "i2", "i4", "i6", "i7", "i8", "i9", "i10", "i11"]
        clock[0] += 5 * DAY  # the second answer was 5 days ago: 2 * (1 - 5/10)
        stage = harness.client.get("/v1/users/nobody/why-not?item_id=i2&limit=1&placement=home").json()
        lost = "it was shown and not touched since: rule 'show others' lowers its score by 1 standard deviations"
        assert (stage["stage"], stage["rank"]) == ("rule", 3)
        assert stage["detail"] == f"candidate 3 of 11; the rules of the shop chose others; {lost}"
        stage = harness.client.get("/v1/users/nobody/why-not?item_id=i0&limit=10&placement=home").json()
        assert (stage["stage"], stage["detail"]) == ("shown", f"shown at position 1; {lost}")
        plain = harness.client.get("/v1/users/nobody/why-not?item_id=i0&limit=10&placement=again").json()
        assert plain["detail"] == "shown at position 1"


def test_a_merge_takes_the_showings_along(tmp_path: Path) -> None:
    with rotating(tmp_path) as (harness, clock):
        assert harness.items("anon", 2) == ["i0", "i1"]
        clock[0] += 1
        harness.store.away = True  # the merge is applied when the store is back
        body = orjson.dumps({"from": "anon"})
        assert harness.client.post("/v1/users/new/merge", content=body).json()["degraded"] == ["store"]
        harness.store.away = False
        harness.service.step()
        clock[0] += 1
        assert harness.items("new", 2) == ["i2", "i4"]
        assert harness.items("anon", 2) == ["i0", "i1"], "another person at the device"


def test_an_erasure_finds_no_showings_left(tmp_path: Path) -> None:
    server, file, user = RedisServer(), tmp_path / "rules.yaml", "ann-4711"
    file.write_text(ROTATE)
    store = RedisStore(server.url, RULES, timeout=5.0)
    with service_harness(tmp_path, rules=file, store=store) as harness:
        assert harness.get(user, 2)["degraded"] == []
        assert len(store.read_users([user], shown=True)[0].shown.keys) == 2
        scope = Scope(tmp_path / "log", redis_url=server.url)
        (known,) = known_of(scope, user)["store"].values()
        assert (known["shown_items"], len(known["keys"])) == (2, 1)
        report = erase_user(scope, user)
        assert ([place.found for place in report.places], report.n_left) == ([1, 1], 0)
        assert len(store.read_users([user], shown=True)[0].shown.keys) == 0
        assert harness.items(user, 2) == ["i0", "i1"]
    server.stop()


ACTION = st.sampled_from(["other list", "page again", "first page again", "time"])


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.lists(ACTION, max_size=3)), min_size=2, max_size=5),
    before=st.integers(0, 5),
    by=st.sampled_from([0.3, 1, 100]),
    user=st.sampled_from(["ann", "nobody"]),
)
def test_pages_of_a_list_are_disjoint_and_stay_while_showings_are_logged(
    sizes: list[tuple[int, list[str]]], before: int, by: float, user: str
) -> None:
    """The same cursor gives the same page, whatever the list, or another one of the user, has shown meanwhile."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        shelf = ToyShelf(with_contents(toy_bundle(folder, 24)))
        text = f"rules: [{{name: a, rotation: {{by: {by}, days: 10}}}}]"
        harness, clock = stack.enter_context(rotating(folder, text, shelf=shelf))
        if before:
            harness.items(user, before)
        clock[0] += DAY
        pages, cursor = list[tuple[dict[str, Any], list[str]]](), None
        for k, actions in sizes:
            query = {"limit": k, "placement": "home"} | ({"cursor": cursor} if cursor else {})
            answer = page(harness, user, **query)
            shown = {item for _, items in pages for item in items}
            assert not shown & {*ids(answer)}
            assert len(ids(answer)) == k
            pages.append((query, ids(answer)))
            cursor = answer["cursor"]
            for action in actions:
                clock[0] += 1_000_000 if action == "time" else 1
                if action == "other list":
                    page(harness, user, limit=5, placement="again")
                elif action == "page again":
                    if "cursor" in pages[-1][0]:
                        assert ids(page(harness, user, **pages[-1][0])) == pages[-1][1]
                elif action == "first page again":  # another list: the first one has been shown
                    again = page(harness, user, limit=1, placement="home")
                    assert by < 100 or again["items"][0]["item_id"] not in pages[0][1]
        for query, items in pages[1:]:
            assert ids(page(harness, user, **query)) == items
