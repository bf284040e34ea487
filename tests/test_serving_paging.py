"""Pages of one list: nothing is shown twice and nothing is missing, whatever happens between two pages."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import numpy as np
import orjson
import polars as pl
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from service_harness import ServiceHarness, service_harness
from test_serving_processes import Service
from toy_service import Nearest, ToyBundle, ToyShelf, toy_bundle, toy_events, toy_tables, with_contents

from features.catalog import Catalog
from features.ids import IdMap

NAMES = [f"i{row}" for row in range(24)]
PLACES = {"home": False, "again": True}


def some_bundle(folder: Path, items: tuple[dict[str, str | None], set[str]], name: str) -> ToyBundle:
    """A bundle of items. items: item -> its group, in their order; those that are not available."""
    groups, hidden = items
    plain, n = toy_bundle(folder, len(groups), fingerprint=name), len(groups)
    frame = plain.catalog.frame.with_columns(
        pl.Series("item_id", [*groups]),
        pl.Series("group_id", [*groups.values()], pl.String),
        pl.Series("available", [item not in hidden for item in groups]),
    )
    catalog = Catalog.of(frame, IdMap(tuple(groups)), np.zeros((n, 1), np.float32), np.zeros(n, dtype=bool))
    return with_contents(replace(plain, catalog=catalog, recommender=Nearest(n)))


@dataclass
class Reader:
    """One reader who pages through a list, and what must hold of the pages.

    products: of all items that were shown, as they were then; seen: what the reader has clicked.
    """

    harness: ServiceHarness
    query: dict[str, Any]
    repeats: bool
    rules: list[dict[str, Any]]
    seen: set[str] = field(default_factory=set)
    shown: list[str] = field(default_factory=list)
    products: set[str] = field(default_factory=set)
    cursor: str | None = None

    def groups(self) -> dict[str, str]:
        """Item -> its product now, of all that is served."""
        frame = self.harness.service.snapshot.bundle.catalog.frame
        pairs = zip(frame.get_column("item_id").to_list(), frame.get_column("group_id").to_list(), strict=True)
        return {item: f"group {group}" if group else f"item {item}" for item, group in pairs}

    def may_show(self) -> dict[str, str]:
        """Item -> its product, of all that may stand on the next page."""
        groups, snapshot = self.groups(), self.harness.service.snapshot
        over = {*self.products, *(groups[item] for item in self.shown if item in groups)}
        only = next((rule["only"]["items"] for rule in self.rules if "only" in rule), None)
        return {
            item: product
            for row, (item, product) in enumerate(groups.items())
            if snapshot.available[row]
            and item not in {*self.shown, *self.query["exclude"]}
            and product not in over
            and (self.repeats or item not in self.seen)
            and (only is None or item in only)
        }

    def next_page(self, k: int) -> None:
        """Ask for a page, and check it."""
        groups, allowed = self.groups(), self.may_show()
        query = {**self.query, "limit": k, **({"cursor": self.cursor} if self.cursor else {})}
        response = self.harness.client.get(f"/v1/users/eve/recommendations?{urlencode(query, doseq=True)}")
        assert response.status_code == 200, response.text
        answer = response.json()
        items = [item["item_id"] for item in answer["items"]]
        positions = [item["position"] for item in answer["items"]]
        assert positions == [*range(len(self.shown) + 1, len(self.shown) + len(items) + 1)]
        assert {*items} <= {*allowed}
        products = [groups[item] for item in items]
        assert len({*products}) == len(products)
        left = {*allowed.values()} - {*products}
        caps = [rule["cap"]["at_most"] for rule in self.rules if "cap" in rule]
        assert len(items) == k or not left or (caps and len(items) >= min(caps))
        assert (answer["cursor"] is None) == (not left)
        for pin in (rule["pin"] for rule in self.rules if "pin" in rule and not caps):
            item, place = pin["item"], pin["position"] - len(self.shown) - 1
            if item in allowed and 0 <= place < len(items):
                assert items[place] == item
            elif item in items and place >= len(items):
                assert not left, "it stands before its position only at the end of the list"
        self.shown += items
        self.products |= {*products}
        self.cursor = answer["cursor"]


def wait_until_live(harness: ServiceHarness, items: set[str]) -> None:
    deadline = time.monotonic() + 30
    while any(harness.client.get(f"/v1/items/{item}").json()["status"] == "embedding" for item in items):
        assert time.monotonic() < deadline
        time.sleep(0.002)


GROUP = st.sampled_from([None, None, "g", "h", "j"])
RULE = st.one_of(
    st.builds(lambda p, i: {"pin": {"item": i, "position": p}}, st.integers(1, 30), st.sampled_from(NAMES)),
    st.builds(lambda m: {"cap": {"column": "categories", "at_most": m}}, st.integers(1, 4)),
    st.builds(lambda items: {"only": {"items": sorted(items)}}, st.sets(st.sampled_from(NAMES), min_size=16)),
    st.builds(lambda i: {"boost": {"items": {"items": [i]}, "by": 2}}, st.sampled_from(NAMES)),
)
BUNDLE = st.lists(st.sampled_from(NAMES), min_size=10, unique=True).flatmap(
    lambda items: st.tuples(
        st.fixed_dictionaries(dict.fromkeys(items, GROUP)), st.sets(st.sampled_from(items), max_size=3)
    )
)
CHANGE = st.one_of(
    st.tuples(st.just("bundle"), BUNDLE),
    st.tuples(st.just("put"), st.tuples(st.sampled_from(NAMES), GROUP)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.just("click"), st.sampled_from(NAMES)),
)
PAGES = st.lists(st.tuples(st.integers(1, 4), st.lists(CHANGE, max_size=2)), min_size=3, max_size=8)


@settings(max_examples=30, deadline=None)
@given(
    first=BUNDLE,
    pages=PAGES,
    place=st.sampled_from([*PLACES]),
    exclude=st.sets(st.sampled_from(NAMES), max_size=3),
    rules=st.lists(RULE, min_size=1, max_size=3, unique_by=lambda rule: next(iter(rule))),
)
def test_pages_of_one_list(
    first: Any, pages: list[Any], place: str, exclude: set[str], rules: list[dict[str, Any]]
) -> None:
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        file = folder / "rules.yaml"
        file.write_text(yaml.safe_dump({"rules": [{"name": f"r{n}", **rule} for n, rule in enumerate(rules)]}))
        shelf = ToyShelf(some_bundle(folder, first, "bundle-0"))
        harness = stack.enter_context(service_harness(folder, shelf=shelf, rules=file))
        reader = Reader(harness, {"placement": place, "exclude": sorted(exclude)}, PLACES[place], rules)
        put = set[str]()
        for number, (k, changes) in enumerate(pages, 1):
            reader.next_page(k)
            for kind, value in changes if reader.cursor else ():
                if kind == "bundle":
                    shelf.put(f"b{number}", some_bundle(folder, value, f"bundle-{number}"))
                    harness.service.step()
                elif kind == "put":
                    fields = {"title": "new", "categories": ["odd"], "group_id": value[1]}
                    response = harness.client.put(f"/v1/items/{value[0]}", content=orjson.dumps(fields))
                    assert response.status_code == 202
                    put.add(value[0])
                elif kind == "delete":
                    put -= {value} if harness.client.delete(f"/v1/items/{value}").status_code == 200 else set()
                else:
                    harness.click("eve", value)
                    reader.seen.add(value)
                wait_until_live(harness, put)
            if reader.cursor is None:
                return
        while reader.cursor is not None:
            reader.next_page(5)


def test_two_services_that_share_nothing_serve_one_list(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        toy_tables(folder, toy_events())
    started = [Service(one, ""), Service(other, "")]
    try:
        for service in started:
            deadline = time.monotonic() + 60
            while service.call("GET", "/readyz")[0] != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        for user, expected in (
            ("nobody", ["i0", "i1", "i2", "i4", "i6", "i7", "i8", "i9", "i10", "i11"]),
            ("ann", ["i7", "i9", "i6", "i10", "i5", "i11", "i2", "i0"]),
        ):
            items, positions, cursor, n = list[str](), list[int](), "", 0
            while cursor is not None:
                status, answer = started[n % 2].call(
                    "GET", f"/v1/users/{user}/recommendations?limit=3" + (f"&cursor={cursor}" if cursor else "")
                )
                assert status == 200, answer
                items += [item["item_id"] for item in answer["items"]]
                positions += [item["position"] for item in answer["items"]]
                cursor, n = answer["cursor"], n + 1
            assert (items, positions) == (expected, [*range(1, len(expected) + 1)])
    finally:
        for service in started:
            service.process.terminate()
        for service in started:
            service.process.wait(30)


def test_a_list_is_longer_than_the_candidates_of_one_request(tmp_path: Path) -> None:
    n = 700
    shelf = ToyShelf(with_contents(toy_bundle(tmp_path, n)))
    with service_harness(tmp_path, shelf=shelf) as harness:
        reader = Reader(harness, {"placement": "home", "exclude": []}, repeats=False, rules=[])
        reader.seen = {"i300"}
        harness.click("eve", "i300")
        reader.next_page(100)
        while reader.cursor:
            reader.next_page(100)
        # i3 is not available, i300 was seen, i4 and i5 are one product
        assert len(reader.shown) == n - 3
