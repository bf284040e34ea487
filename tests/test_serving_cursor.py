"""Cursors by hand: what they hold, how long they live, and what is refused."""

import base64
import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_harness import ServiceHarness, service_harness
from toy_service import NOW, RULES, toy_bundle

from features.ids import id_keys
from features.instants import MINUTE
from features.log.reader import read
from features.log.records import EXPOSURES, Exposure
from features.store.memory import MemoryStore
from serving.cursor import MAX_SHOWN, Page, _packed, _unpacked, room_in_url
from serving.errors import ApiError
from serving.products import KEY_BITS, Products
from serving.state.snapshot import ServingSnapshot

NOBODY = "/v1/users/nobody/recommendations"
LIST = {"path": "recommendations", "user_id": "eve", "placement": "home"}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path) as running:
        yield running


def page(harness: ServiceHarness, path: str, cursor: str | None = None, k: int = 3) -> Any:
    """The ids of a page, and the cursor of the next one."""
    mark = "&" if "?" in path else "?"
    response = harness.client.get(f"{path}{mark}limit={k}" + ("" if cursor is None else f"&cursor={cursor}"))
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]], response.json()["cursor"]


def pages(harness: ServiceHarness, path: str, k: int = 3) -> list[list[str]]:
    found, cursor = page(harness, path, k=k)
    out = [found]
    while cursor:
        found, cursor = page(harness, path, cursor, k)
        out.append(found)
    return out


def refusal(harness: ServiceHarness, path: str, cursor: str) -> tuple[int, str, str, str]:
    mark = "&" if "?" in path else "?"
    response = harness.client.get(f"{path}{mark}cursor={quote(cursor)}")
    error = response.json()
    assert cursor == "" or cursor not in response.text, "the message does not repeat the cursor"
    return response.status_code, error["code"], error["place"], error["detail"]


def some_page(begun: int = NOW, shown: int = 7, n_keys: int = 9) -> Page:
    keys = np.unique(id_keys(map(str, range(n_keys))) >> np.uint64(64 - KEY_BITS))
    return Page(begun, shown, keys, Page.of(None, LIST, begun).digests)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data + crc32(data).to_bytes(4, "big")).rstrip(b"=").decode()


def cursor_of(given: Page) -> str:
    """The cursor of a page after which no product was shown."""
    width, steps = _packed(given.keys)
    head = bytes([1]) + given.begun.to_bytes(8, "big") + given.shown.to_bytes(2, "big")
    return encoded(head + len(given.keys).to_bytes(2, "big") + bytes([width]) + given.digests + steps)


# --- lists


def test_pages_of_every_list(harness: ServiceHarness) -> None:
    # i3 is not available; i4 and i5 are variants
    assert pages(harness, NOBODY, 4) == [["i0", "i1", "i2", "i4"], ["i6", "i7", "i8", "i9"], ["i10", "i11"]]
    assert pages(harness, NOBODY, 5) == [["i0", "i1", "i2", "i4", "i6"], ["i7", "i8", "i9", "i10", "i11"]]
    assert pages(harness, "/v1/users/ann/recommendations") == [["i7", "i9", "i6"], ["i10", "i5", "i11"], ["i2", "i0"]]
    assert pages(harness, "/v1/items/i5/similar") == [["i6", "i7", "i2"], ["i8", "i1", "i9"], ["i0", "i10", "i11"]]
    assert pages(harness, f"{NOBODY}?filter=" + quote('{"categories": ["odd"]}')) == [
        ["i1", "i5", "i7"],
        ["i9", "i11"],
    ]
    found, cursor = list[list[str]](), None
    while not found or cursor:
        answer = harness.post(text="red", user_id="ann", weight=0, limit=4, cursor=cursor).json()
        found.append([item["item_id"] for item in answer["items"]])
        cursor = answer["cursor"]
    assert found == [["i0", "i1", "i2", "i4"], ["i6", "i7", "i8", "i10"], ["i11"]]  # i9 has no content


def test_positions_go_on_counting_in_answers_and_in_the_log(harness: ServiceHarness) -> None:
    _, cursor = page(harness, NOBODY, k=2)
    answer = harness.client.get(f"{NOBODY}?limit=3&explain=true&cursor={cursor}").json()
    assert [(item["item_id"], item["position"]) for item in answer["items"]] == [("i2", 3), ("i4", 4), ("i6", 5)]
    assert (
        harness.client.get(f"/v1/items/i8/similar?limit=2&cursor={page(harness, '/v1/items/i8/similar')[1]}").json()[
            "items"
        ][0]["position"]
        == 4
    )
    shown = [each for each in read(harness.folder / "log", stream=EXPOSURES).records if isinstance(each, Exposure)]
    assert [each.first_position for each in shown] == [1, 3, 1, 4]


def test_events_between_pages_bring_nothing_back(harness: ServiceHarness) -> None:
    path = "/v1/users/new/recommendations?placement=again"
    first, cursor = page(harness, path)
    assert first == ["i0", "i1", "i2"]
    harness.click("new", "i1", timestamp="2020-01-01T00:00:00Z")  # the list of the model begins with i1, i0, i2, …
    assert page(harness, path, cursor)[0] == ["i4", "i6", "i7"]
    harness.click("new", "i11")
    assert page(harness, path, cursor)[0] == ["i11", "i10", "i9"]


def test_the_variants_of_an_item_that_is_gone_stay_away(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        first, cursor = page(harness, NOBODY, k=4)
        assert first[-1] == "i4"
        assert harness.client.delete("/v1/items/i4").status_code == 200
        assert page(harness, NOBODY, cursor, 2)[0] == ["i6", "i7"]
        bundle = toy_bundle(tmp_path, fingerprint="toy-2")
        catalog = bundle.catalog
        ids = catalog.ids.__class__(tuple("new" if item == "i4" else item for item in catalog.ids.ids))
        changed = catalog.__class__(**{**catalog.__dict__, "ids": ids})
        harness.shelf.put("second", bundle.__class__(**{**bundle.__dict__, "catalog": changed}))
        harness.service.step()
        assert page(harness, NOBODY, cursor, 2)[0] == ["i6", "i7"]  # `new` and i5 are in the group of i4
        assert page(harness, NOBODY, k=4)[0] == ["i0", "i1", "i2", "new"]


def test_pins_stand_at_their_position_in_the_whole_list(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    pins = {"a": ("i9", 1), "b": ("i1", 5), "c": ("i5", 6), "d": ("i10", 100)}
    lines = [f"- {{name: {name}, pin: {{item: {item}, position: {at}}}}}" for name, (item, at) in pins.items()]
    rules.write_text("\n".join(["rules:", *lines]))
    whole = ["i9", "i0", "i2", "i6", "i1", "i5", "i7", "i8", "i11", "i10"]
    with service_harness(tmp_path, rules=rules) as harness:
        for k in (1, 2, 3, 4, 5, 6, 7, 10):
            assert [item for found in pages(harness, NOBODY, k) for item in found] == whole
        assert harness.client.delete("/v1/items/i1").status_code == 200
        assert pages(harness, NOBODY, 4) == [["i9", "i0", "i2", "i6"], ["i7", "i5", "i8", "i11"], ["i10"]]


def test_a_cap_holds_for_each_page_and_a_minimum_ends_the_list(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{name: a, cap: {column: categories, at_most: 1}}]")
    with service_harness(tmp_path, rules=rules) as harness:
        expected = [["i0", "i1"], ["i2", "i5"], ["i6", "i7"], ["i8", "i9"], ["i10", "i11"]]
        assert pages(harness, NOBODY, 4) == expected
        rules.write_text("rules: [{name: a, minimum: 0.5}]")  # the scores are 1, 11/12, …, 6/12 (i6), …
        harness.service.step()
        assert pages(harness, NOBODY, 5) == [["i0", "i1", "i2", "i4", "i6"]]
        assert pages(harness, NOBODY, 3) == [["i0", "i1", "i2"], ["i4", "i6"]]


# --- ids that are left out


def test_ids_that_are_left_out(harness: ServiceHarness) -> None:
    everything = ["i0", "i1", "i2", "i4", "i6", "i7", "i8", "i9", "i10", "i11"]
    for query, without in (
        ("exclude=i1", {"i1"}),
        ("exclude=i1&exclude=i9&exclude=gone", {"i1", "i9"}),
        ("exclude=i1,i9,", {"i1", "i9"}),
        ('exclude=i1&filter={"exclude": ["i9"]}', {"i1", "i9"}),
        ("exclude=" + ",".join(f"i{n}" for n in range(6, 400)), {"i6", "i7", "i8", "i9", "i10", "i11"}),
    ):
        items, cursor = page(harness, f"{NOBODY}?{query}", k=2)
        while cursor:
            more, cursor = page(harness, f"{NOBODY}?{query}", cursor, 2)
            items += more
        assert items == [item for item in everything if item not in without], query
    assert page(harness, "/v1/items/i8/similar?exclude=i9")[0] == ["i7", "i6", "i10"]
    assert page(harness, f"{NOBODY}?exclude=i4")[0] == ["i0", "i1", "i2"]
    assert "i5" in page(harness, f"{NOBODY}?exclude=i4", k=9)[0]  # its variant may be shown


def test_an_id_with_a_comma_is_an_id(harness: ServiceHarness) -> None:
    put = harness.client.put("/v1/items/" + quote("a,b", safe=""), content=b"{}")
    assert put.status_code == 202
    while "a,b" not in page(harness, NOBODY, k=20)[0]:
        pass
    assert "a,b" not in page(harness, f"{NOBODY}?exclude=a%2Cb", k=20)[0]
    assert "a,b" in page(harness, f"{NOBODY}?exclude=a,i9", k=20)[0]


@pytest.mark.parametrize("query", ["exclude=", "exclude=i1&exclude=%00", "exclude=a%0A,b", "exclude=" + "x" * 600])
def test_what_is_no_id_is_refused(harness: ServiceHarness, query: str) -> None:
    response = harness.client.get(f"{NOBODY}?{query}")
    error = response.json()
    assert (response.status_code, error["code"], error["place"]) == (422, "bad_id", "exclude")


# --- what is refused


def test_a_cursor_lives_for_30_minutes(harness: ServiceHarness) -> None:
    cursor = page(harness, NOBODY)[1]
    harness.service.now = lambda: NOW + 30 * MINUTE
    second, following = page(harness, NOBODY, cursor)
    assert second == ["i4", "i6", "i7"]
    for now, age in ((NOW + 30 * MINUTE + 1, 30), (NOW + 90 * MINUTE, 90), (NOW - 31 * MINUTE, -31)):
        harness.service.now = lambda now=now: now
        for old in (cursor, following):  # the age is that of the first page
            assert refusal(harness, NOBODY, old) == (
                410,
                "cursor_expired",
                "cursor",
                f"cursor: its first page is {age} minutes old; it lives 30 minutes: begin again without a cursor",
            )


def test_a_cursor_belongs_to_one_list(harness: ServiceHarness) -> None:
    cursor = page(harness, f"{NOBODY}?placement=home&exclude=i7&exclude=i8")[1]
    same = "?exclude=i8&exclude=i7&exclude=i8&filter={}"  # home is the first placement
    assert page(harness, NOBODY + same, cursor)[0] == ["i4", "i6", "i9"]
    for path, other in (
        ("/v1/users/ann/recommendations?exclude=i7&exclude=i8", "user_id"),
        (f"{NOBODY}?exclude=i7&exclude=i8&placement=again", "placement"),
        (f"{NOBODY}?exclude=i7", "filter or exclude"),
        (f"{NOBODY}?placement=again", "placement, filter or exclude"),
        (f"{NOBODY}?exclude=i7,i8&filter=" + quote(json.dumps({"price": [0, 1]})), "filter or exclude"),
        ("/v1/items/i7/similar", "path"),
    ):
        status, code, place, message = refusal(harness, path, cursor)
        assert (status, code, place) == (422, "bad_cursor", "cursor")
        assert message == (
            f"cursor: it belongs to a list with another {other}: send what the first page was asked with, or begin "
            "again without a cursor"
        )
    cursor = harness.post(text="red", limit=3).json()["cursor"]
    for query, other in (({"text": "blue"}, "text"), ({"text": "red", "user_id": "ann"}, "user_id")):
        response = harness.post(cursor=cursor, **query)
        assert (response.status_code, response.json()["code"]) == (422, "bad_cursor")
        assert f"another {other}:" in response.json()["detail"]


def test_a_cursor_that_is_damaged_anywhere_is_refused(harness: ServiceHarness) -> None:
    cursor = page(harness, NOBODY)[1]
    again = "send the text as it came, or begin again without a cursor"
    damaged = [cursor[:at] + other + cursor[at + 1 :] for at in range(len(cursor)) for other in "A_+%é \n="]
    damaged += [cursor[:n] for n in range(1, len(cursor))] + [cursor + more for more in ("A", "=", "AAAA", " ")]
    for text in {*damaged} - {cursor}:
        expected = f"cursor: its {len(text)} characters are no whole cursor: {again}"
        assert refusal(harness, NOBODY, text) == (422, "bad_cursor", "cursor", expected)
    assert refusal(harness, NOBODY, "")[3] == f"cursor: it is empty: {again}"
    for sent in ("null", "x" * 60_000, "AAAA" * 100):
        assert refusal(harness, NOBODY, sent)[:3] == (422, "bad_cursor", "cursor")
    response = harness.post(text="red", cursor=7)
    assert (response.status_code, response.json()["place"]) == (422, "cursor")


@given(st.binary(max_size=120), st.booleans())
def test_bytes_with_a_right_checksum_are_a_page_or_refused(data: bytes, is_of_list: bool) -> None:
    start = bytes([1]) + NOW.to_bytes(8, "big")
    text = encoded(start + data[:5] + some_page().digests + data[5:] if is_of_list else data)
    try:
        found = Page.of(text, LIST, NOW)
    except ApiError:  # no other error: it would be a 500
        return
    assert 0 < found.shown < MAX_SHOWN
    assert int(found.keys.max(initial=0)) < 2**KEY_BITS


def test_a_newer_version_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        Page.of(encoded(bytes([3]) + b"anything"), LIST, NOW)
    assert (caught.value.status, caught.value.code) == (422, "bad_cursor")
    assert caught.value.detail == (
        "cursor: it has version 3, and this service reads versions 1 and 2: update the service, or begin again "
        "without a cursor"
    )


def test_numbers_of_items_that_no_page_has() -> None:
    assert Page.of(cursor_of(some_page(shown=MAX_SHOWN - 1)), LIST, NOW).shown == 9_999
    for shown in (0, MAX_SHOWN):
        with pytest.raises(ApiError, match="are no whole cursor"):
            Page.of(cursor_of(some_page(shown=shown)), LIST, NOW)


# --- sizes and bounds


@given(st.sets(st.integers(0, 2**KEY_BITS - 1)))
def test_keys_are_read_as_they_were_written(numbers: set[int]) -> None:
    keys = np.array(sorted(numbers), dtype=np.uint64)
    width, data = _packed(keys)
    read_again = _unpacked(data, len(keys), width)
    assert read_again is not None
    assert read_again.tolist() == keys.tolist()
    assert _unpacked(data + b"\0", len(keys), width) is None
    assert _unpacked(data, len(keys) + 8, width) is None or width == 0


@pytest.mark.parametrize(("n", "least", "most"), [(20, 160, 200), (200, 1_200, 1_330), (1_000, 5_400, 5_800)])
def test_the_size_of_a_cursor(n: int, least: int, most: int) -> None:
    assert least <= len(cursor_of(some_page(shown=n, n_keys=n))) <= most


def test_the_bound_of_positions_ends_a_list(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        path = f"{NOBODY}?placement=home"
        data = base64.urlsafe_b64decode(page(harness, path)[1] + "==")[:-4]
        near_end = encoded(data[:9] + (MAX_SHOWN - 2).to_bytes(2, "big") + data[11:])
        answer = harness.client.get(f"{path}&limit=5&cursor={near_end}").json()
    assert [(item["item_id"], item["position"]) for item in answer["items"]] == [("i4", 9_999), ("i6", 10_000)]
    assert answer["cursor"] is None


def test_a_cursor_that_the_next_url_cannot_hold_is_not_given(harness: ServiceHarness) -> None:
    assert room_in_url(b"/path", b"limit=3&cursor=abc&filter={}") == 65_535 - 100 - 5 - len("limit=3&filter={}")
    padding = "exclude=" + "x" * 500 + "&"
    fits = padding * 120
    assert page(harness, f"{NOBODY}?{fits}")[1] is not None
    room = room_in_url(NOBODY.encode(), f"{fits}limit=3".encode())
    filled = fits + padding * (room // len(padding))
    items, cursor = page(harness, f"{NOBODY}?{filled[:-1]}")
    assert items == ["i0", "i1", "i2"]
    left = room_in_url(NOBODY.encode(), f"{filled}limit=3".encode())
    assert (cursor is None) == (left < 80)


def test_products_are_found_by_prefixes_of_their_keys(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    products = Products.of(bundle.catalog)
    assert products.keys_of(np.array([0, 5])).tolist() == sorted(
        (id_keys(["i0", "i5", "\0g"]) >> np.uint64(24)).tolist()
    )
    assert products.rows_of(products.keys_of(np.array([0, 5]))).tolist() == [0, 4, 5]
    assert products.rows_of(np.array(id_keys(["\0g"]) >> np.uint64(24))).tolist() == [4, 5]
    assert products.rows_of(np.zeros(0, np.uint64)).tolist() == []
    twins = products.items.__class__(np.array([7, 7, 300], dtype=np.uint64), np.array([2, 0, 1]))
    assert twins.rows(np.array([7, 8], dtype=np.uint64)).tolist() == [2, 0]  # both items of one key
    assert twins.rows(np.array([0], dtype=np.uint64), bits=40).tolist() == [2, 0]


def test_a_cursor_by_hand(tmp_path: Path) -> None:
    """Other processes and versions of the service must read the same from it."""
    snapshot = ServingSnapshot.of(toy_bundle(tmp_path), MemoryStore(RULES), lambda: NOW)
    slate = snapshot.popular(np.array([0]), 4, {}).slate
    assert slate.items == ("i1", "i2", "i4", "i6")
    keys = [blake2b(name.encode(), digest_size=8).digest() for name in ("i1", "i2", "i4", "i6", "\0g")]
    numbers = sorted(int.from_bytes(key, "little") >> 24 for key in keys)
    steps = [number - before for number, before in zip(numbers, [0, *numbers], strict=False)]
    width = max(steps).bit_length()
    bits = "".join(f"{step:0{width}b}"[::-1] for step in steps)
    packed = bytes(int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8))
    digests = b"".join(blake2b(f"={value}".encode(), digest_size=4).digest() for value in LIST.values())
    head = b"\1" + NOW.to_bytes(8, "big") + b"\0\4" + b"\0\5" + bytes([width])
    cursor = Page.of(None, LIST, NOW).next(slate, snapshot.products)
    assert cursor == encoded(head + digests + packed)
    following = Page.of(cursor, LIST, NOW + 1)
    assert (following.begun, following.shown, following.keys.tolist()) == (NOW, 4, numbers)
    assert following.rows(snapshot.products).tolist() == [1, 2, 4, 5, 6]
