"""Why an item is recommended and why another is not, through the API; the answers never disagree with the slate."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_harness import Flaky, ServiceHarness, service_harness
from toy_data import FACTS, noise, toy_stage
from toy_service import COLOURS, NOW, RULES, Nearest, ToyBundle, ToyShelf, broken, toy_bundle, with_contents

from features.content.spaces import Embedded
from features.instants import DAY
from features.log.reader import read
from features.log.records import EXPOSURES
from recsys.bundle.io import load_bundle, save_bundle
from recsys.content.content_space import ContentSpace
from recsys.interfaces import Candidates
from recsys.ranking.pair_features import FEATURES

N = 60


def with_texts(bundle: ToyBundle, pairs: dict[tuple[int, int], float]) -> ToyBundle:
    """The bundle with text vectors at right angles, but for pairs (i, j): row j has this cosine with row i."""
    n = len(bundle.catalog)
    vectors = np.eye(n, dtype=np.float32)
    for (i, j), cosine in pairs.items():
        vectors[j] = 0
        vectors[j, [i, j]] = cosine, np.sqrt(1 - cosine**2)
    space = replace(COLOURS, dimension=n)
    channels = {"text": Embedded(space, vectors, np.ones(n, dtype=np.bool_))}
    return replace(bundle, content=ContentSpace(space, None, channels))


def explained(harness: ServiceHarness, user: str, k: int = 4, place: str = "home") -> Any:
    response = harness.client.get(
        f"/v1/users/{user}/recommendations", params={"limit": k, "placement": place, "explain": "true"}
    )
    assert response.status_code == 200, response.text
    return response.json()


def sentences(harness: ServiceHarness, user: str, k: int = 4, place: str = "home") -> dict[str, str]:
    return {item["item_id"]: item["why"]["sentence"] for item in explained(harness, user, k, place)["items"]}


def asked(harness: ServiceHarness, user: str, item: str, k: int = 4, place: str = "home") -> Any:
    response = harness.client.get(
        f"/v1/users/{user}/why-not", params={"item_id": item, "limit": k, "placement": place}
    )
    assert response.status_code == 200, response.text
    return response.json()


# --- why


def test_why_the_items_are_shown(tmp_path: Path) -> None:
    shelf = ToyShelf(with_texts(toy_bundle(tmp_path, N), {(8, 10): 0.9}))
    with service_harness(tmp_path, shelf=shelf) as harness:
        response = explained(harness, "ann")  # who chose i1, then i8
        assert [item["item_id"] for item in response["items"]] == ["i7", "i9", "i6", "i10"]
        assert response["items"][3]["why"] == {
            "source": "history",
            "nearest": {
                "item_id": "i8",
                "title": "Item <b>8</b>",
                "channel": "text",
                "cosine": pytest.approx(0.9),
            },
            "features": [],
            "sentence": "Because you chose Item <b>8</b>: similar description",
            "loss": 0,
        }
        assert response["items"][0]["why"]["sentence"] == "Suggested for you"
        again = sentences(harness, "ann", 3, "again")
        assert again == {
            "i8": "You chose it once before",
            "i7": "Suggested for you",
            "i9": "Suggested for you",
        }
        harness.click("ann", "i8")
        harness.click("ann", "i8", event_id="third")
        assert sentences(harness, "ann", 1, "again") == {"i8": "You chose it 3 times before"}
        cold = explained(harness, "nobody", 100)["items"]
        assert {item["why"]["sentence"] for item in cold[:20]} == {"Popular"}
        assert {item["why"]["sentence"] for item in cold[-20:]} == {"Suggested for you"}
        assert all(item["why"]["nearest"] is None for item in cold)


def test_who_does_not_ask_pays_nothing(tmp_path: Path) -> None:
    class Unexplained(ToyBundle):
        @property
        def explainer(self) -> Any:
            raise RuntimeError("nobody asked")

    class Silent(Nearest):
        def contributions(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("nobody asked")

        ranked = retrieval_scores = contributions

    toy = with_contents(toy_bundle(tmp_path))
    bundle = Unexplained(**{**toy.__dict__, "recommender": Silent(len(toy.catalog))})
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        for user in ("ann", "nobody"):
            for more in ("", "&explain=false"):
                response = harness.client.get(f"/v1/users/{user}/recommendations?limit=3{more}").json()
                assert len(response["items"]) == 3
                assert all("why" not in item for item in response["items"])
        assert harness.client.get("/v1/users/ann/recommendations?explain=perhaps").status_code == 422


def test_a_deleted_item_is_not_named(tmp_path: Path) -> None:
    shelf = ToyShelf(with_texts(toy_bundle(tmp_path, N), {(8, 10): 0.9}))
    with service_harness(tmp_path, shelf=shelf) as harness:
        assert "Item <b>8</b>" in sentences(harness, "ann")["i10"]
        assert harness.client.delete("/v1/items/i8").status_code == 200
        assert "i10" in sentences(harness, "ann")
        assert not any("8" in sentence for sentence in sentences(harness, "ann").values())
        assert "i8" not in str([item["why"] for item in explained(harness, "ann")["items"]])


def test_a_count_is_a_least_count_where_older_events_may_be_missing(tmp_path: Path) -> None:
    bundle = with_contents(toy_bundle(tmp_path))
    for rules in (RULES.model_copy(update={"history": 2}), RULES.model_copy(update={"history_days": 100_000})):
        data = bundle.data.model_copy(update={"events": rules})
        shelf, folder = ToyShelf(replace(bundle, data=data)), tmp_path / str(rules.history)
        folder.mkdir()
        with service_harness(folder, shelf=shelf, store=Flaky(rules)) as harness:
            for number in range(2):
                harness.click("eve", "i6", event_id=str(number))
            assert sentences(harness, "eve", 1, "again") == {"i6": "You chose it at least 2 times before"}


def test_popular_items_in_place_of_a_model_that_failed_are_not_called_near(tmp_path: Path) -> None:
    shelf = ToyShelf(with_texts(toy_bundle(tmp_path, N), {(8, 2): 0.9}))
    with service_harness(tmp_path, shelf=shelf) as harness:
        snapshot = harness.service.snapshot
        harness.service.catalog_updater.snapshot = replace(snapshot, bundle=broken(snapshot.bundle))
        response = explained(harness, "ann", 2)
        assert (response["source"], response["degraded"]) == ("popular", ["recommender"])
        assert {item["why"]["sentence"] for item in response["items"]} == {"Popular"}
        assert [item["item_id"] for item in response["items"]] == ["i0", "i2"]
        assert response["items"][1]["why"]["nearest"] is None
        below = asked(harness, "ann", "i9", 2)
        assert (below["stage"], below["degraded"]) == ("below", ["recommender"])


# --- why not


def test_each_stage(tmp_path: Path) -> None:
    bundle = with_contents(toy_bundle(tmp_path))
    published = np.array([NOW + DAY if row == 2 else NOW for row in range(12)])
    bundle = replace(bundle, catalog=replace(bundle.catalog, published=published))
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        harness.click("eve", "i6")
        assert harness.items("eve", 3) == ["i5", "i7", "i8"]
        harness.client.delete("/v1/items/i9")
        found = {item: asked(harness, "eve", item, 3) for item in ("i5", "i4", "i6", "i3", "i2", "i9", "i10", "i1")}
        shown = read(tmp_path / "log", stream=EXPOSURES).records
    expected: dict[str, tuple[str, str, Any, Any]] = {
        "i5": ("shown", "shown at position 1", 1 - 1 / 12, 1),
        "i4": ("variant", "a variant of i5, which is shown at position 1", 1 - 2 / 12, 1),
        "i6": ("seen", "the user has seen the item, and the placement does not repeat items", None, None),
        "i3": ("unavailable", "the item is not available", None, None),
        "i2": ("unpublished", "the item is published at 2027-01-16T08:00:00+00:00", None, None),
        "i9": ("unavailable", "the item was deleted", None, None),
        "i10": ("below", "ranked 4, below the 3 items of the list", 1 - 4 / 12 - 1e-3, 4),
        "i1": ("below", "ranked 5, below the 3 items of the list", 1 - 5 / 12, 5),
    }
    for item, (stage, detail, score, rank) in expected.items():
        assert found[item] == {
            "item_id": item,
            "stage": stage,
            "detail": detail,
            "score": None if score is None else pytest.approx(score),
            "rank": rank,
            "degraded": [],
        }
    assert len(shown) == 1  # nothing that is asked about counts as shown


def test_an_item_of_no_list_and_wrong_questions(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        cases = {
            "item_id=gone": (404, "unknown_item", "item_id"),
            "": (422, "bad_parameter", "item_id"),
            "item_id=": (422, "bad_id", "item_id"),
            "item_id=i1&placement=nowhere": (422, "unknown_placement", "placement"),
            "item_id=i1&limit=0": (422, "bad_parameter", "limit"),
        }
        for query, (status, code, place) in cases.items():
            response = harness.client.get(f"/v1/users/ann/why-not?{query}")
            error = response.json()
            assert (response.status_code, error["code"], error["place"]) == (status, code, place), query
        assert harness.client.get("/v1/users/%00/why-not?item_id=i1").json()["code"] == "bad_id"
        harness.service.catalog_updater._upsert = None  # the put stays waiting
        body = orjson.dumps({"title": "a red one"})
        assert harness.client.put("/v1/items/new", content=body).status_code == 202
        response = harness.client.get("/v1/users/ann/why-not?item_id=new").json()
        assert response["code"] == "not_live_yet"


class Six(Nearest):
    """Ranks six candidates."""

    def ranked(self, states: Any, k: int, **more: Any) -> Candidates:
        return super().recommend(states, 6, **more)


def test_an_item_that_is_no_candidate(tmp_path: Path) -> None:
    bundle = replace(with_contents(toy_bundle(tmp_path)), recommender=Six(12))
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        # the candidates of ann are i7, i9, i6, i10, i5, i11 (scores 1 - distance / 12, 0.001 less above i8)
        assert asked(harness, "ann", "i0") == {
            "item_id": "i0",
            "stage": "not_retrieved",
            "detail": "the item is not among the 6 candidates: its retrieval score is 0.3333; "
            "the lowest of a candidate is 0.749",
            "score": pytest.approx(1 / 3),
            "rank": None,
            "degraded": [],
        }
        assert asked(harness, "ann", "i11")["stage"] == "below"


# --- the answers agree with the slate


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("toy")) as harness:
        yield harness


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    """A service of a real bundle of 30 items in 20 products, of which 8 are ranked."""
    folder = tmp_path_factory.mktemp("real")
    stage, catalog, statistics = toy_stage(noise())
    groups = pl.Series("group_id", [f"g{row}" if (row := i % 20) < 10 else None for i in range(30)])
    catalog = replace(catalog, frame=catalog.frame.with_columns(groups), available=np.arange(30) % 7 != 3)
    data = {**FACTS["config"]["data"], "placements": {"home": {"repeats": False}, "again": {"repeats": True}}}
    facts = {**FACTS, "config": {"data": data}}
    bundle: Any = load_bundle(save_bundle(folder, catalog, replace(stage, candidates=8), statistics, facts))
    with service_harness(folder, shelf=ToyShelf(bundle)) as harness:
        yield harness


@pytest.mark.parametrize("place", ["home", "again"])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_pages_of_a_real_bundle_hold_every_product_once(real: ServiceHarness, k: int, place: str) -> None:
    snapshot = real.service.snapshot
    catalog = snapshot.bundle.catalog
    for row in (0, 5):
        event = {"user_id": "reader", "item_id": f"i{row}", "event": "take", "event_id": f"reader-{row}"}
        assert real.client.post("/v1/events", content=orjson.dumps(event)).status_code == 202
    for user, source in (("reader", "model"), ("nobody", "popular")):
        items, cursor = list[str](), ""
        while cursor is not None:
            url = f"/v1/users/{user}/recommendations?limit={k}&placement={place}&explain=true"
            answer = real.client.get(url + (f"&cursor={cursor}" if cursor else "")).json()
            assert [item["position"] for item in answer["items"]] == [
                *range(len(items) + 1, len(items) + len(answer["items"]) + 1)
            ]
            assert answer["source"] == source
            items += [item["item_id"] for item in answer["items"]]
            cursor = answer["cursor"]
        rows = catalog.ids.rows(items)
        allowed = snapshot.available.copy()
        if place == "home":
            allowed[snapshot.seen_rows(real.store.read_users([user])[0])] = False
        assert allowed[rows].all()
        assert sorted(snapshot.groups[rows]) == sorted({*snapshot.groups[allowed].tolist()})


def check_agreement(harness: ServiceHarness, user: str, k: int, place: str) -> set[str]:
    """Ask about every item of the bundle; the stages that are found."""
    shown = harness.get(user, k, place)["items"]
    positions = {item["item_id"]: item for item in shown}
    snapshot = harness.service.snapshot
    ids, groups = snapshot.bundle.catalog.ids.ids, snapshot.groups
    group_of = {item: int(groups[row]) for row, item in enumerate(ids)}
    shown_groups = {group_of[item]: item for item in positions}
    state = harness.store.read_users([user])[0]
    seen = {ids[row] for row in snapshot.seen_rows(state)} if place == "home" else set()
    stages = set()
    for item in ids:
        answer = asked(harness, user, item, k, place)
        stage, rank = answer["stage"], answer["rank"]
        stages.add(stage)
        assert (stage == "shown") == (item in positions)
        if stage == "shown":
            assert (rank, answer["score"]) == (positions[item]["position"], positions[item]["score"])
            continue
        available = bool(snapshot.available[snapshot.bundle.catalog.ids.row(item)])
        assert (stage == "unavailable") == (not available)
        assert (stage == "seen") == (available and item in seen)
        if stage == "variant":
            other = shown_groups[group_of[item]]
            assert other in answer["detail"]
            assert rank == positions[other]["position"]
            assert answer["score"] <= positions[other]["score"]
        elif stage == "below":
            assert len(shown) == k < rank
            assert group_of[item] not in shown_groups
            assert answer["score"] <= shown[-1]["score"]
        elif stage == "not_retrieved":
            assert rank is None
            assert len(shown) == k  # else all that may be shown is ranked
    return stages


USERS = st.lists(st.integers(0, 11), max_size=4)
COUNTER = iter(range(10**9))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=USERS, k=st.integers(1, 12), place=st.sampled_from(["home", "again"]))
def test_why_not_agrees_with_the_slate_of_a_toy_bundle(
    toy: ServiceHarness, history: list[int], k: int, place: str
) -> None:
    user = f"user-{next(COUNTER)}"
    for number, row in enumerate(history):
        toy.click(user, f"i{row}", event_id=f"{user}-{number}")
    stages = check_agreement(toy, user, k, place)
    assert {"shown", "unavailable"} <= stages <= {"shown", "variant", "below", "seen", "unavailable"}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=USERS, k=st.integers(1, 14), place=st.sampled_from(["home", "again"]))
def test_why_not_agrees_with_the_slate_of_a_real_bundle(
    real: ServiceHarness, history: list[int], k: int, place: str
) -> None:
    user = f"user-{next(COUNTER)}"
    for number, row in enumerate(history):
        event = {"user_id": user, "item_id": f"i{row}", "event": "take", "event_id": f"{user}-{number}"}
        assert real.client.post("/v1/events", content=orjson.dumps(event)).status_code == 202
    stages = check_agreement(real, user, k, place)
    assert stages <= {"shown", "variant", "below", "seen", "unavailable", "not_retrieved"}
    for item in explained(real, user, k, place)["items"]:
        why = item["why"]
        assert why["source"] == item["reason"]
        assert (why["source"] == "popular") == (not history)
        assert len(why["features"]) <= 3
        parts = [feature["contribution"] for feature in why["features"]]
        assert parts == sorted(parts, reverse=True)
        assert all(part > 0 for part in parts)
        assert {feature["name"] for feature in why["features"]} <= set(FEATURES)
        if why["nearest"] is not None:
            assert int(why["nearest"]["item_id"][1:]) in history


def test_a_real_bundle_has_all_stages(real: ServiceHarness) -> None:
    for row in (0, 1, 2):
        event = {"user_id": "all", "item_id": f"i{row}", "event": "take", "event_id": f"all-{row}"}
        assert real.client.post("/v1/events", content=orjson.dumps(event)).status_code == 202
    stages = check_agreement(real, "all", 4, "home")
    assert stages >= {"shown", "below", "seen", "unavailable", "not_retrieved"}
    assert any(item["why"]["features"] for item in explained(real, "all", 4)["items"])
