"""The map: its route, and its page in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_site import toy_site
from service_harness import Flaky, service_harness
from watched_pages import watched_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Flaky]]:
    with toy_site(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture
def page(browser: Any, site: tuple[str, Flaky]) -> Iterator[Any]:
    with watched_page(browser, site[0], viewport={"width": 1200, "height": 900}) as opened:
        yield opened


def test_the_map_has_the_items_that_may_be_shown(page: Any, site: tuple[str, Flaky]) -> None:
    given = page.request.get(f"{site[0]}/v1/map").json()
    assert (given["method"], given["categories"]) == ("PCA", ["even", "odd"])
    assert given["items"] == [f"i{row}" for row in range(40) if row != 3]  # i3 is not available
    at = given["items"].index("i20")
    assert (given["x"][at], given["y"][at], given["category"][at]) == (32768, 16384, 0)


def test_a_bundle_without_a_map_says_so(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        response = harness.client.get("/v1/map")
    assert (response.status_code, response.json()["code"]) == (404, "no_map")


def opened_map(page: Any, site: tuple[str, Flaky], query: str = "") -> None:
    page.emulate_media(reduced_motion="reduce")
    page.goto(f"{site[0]}/map{query}")
    page.wait_for_selector("body[data-ready]")


COLOURS = """async () => {
  const {pixelOf, pointPainter} = await import('/static/map/points.js');
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [100, 50];
  const colours = new Uint32Array([[255, 0, 0], [0, 0, 255], [9, 9, 9], [1, 2, 3]].map(pixelOf));
  const points = new Float32Array([0.25, 0.5, 0.75, 0.5, 0.75, 0.5, 7, 0.5]); // the third lies under the second
  const view = {x: 0.5, y: 0.5, zoom: 100, ratio: 1};
  pointPainter(canvas)(points, colours, new Uint32Array([0, 2, 1, 3]), pixelOf([0, 255, 0]), view);
  return [25, 50, 75].map((x) => [...canvas.getContext('2d').getImageData(x, 25, 1, 1).data].slice(0, 3));
}"""


def test_points_are_drawn_where_they_are(page: Any, site: tuple[str, Flaky]) -> None:
    opened_map(page, site)
    assert page.evaluate(COLOURS) == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


NEAREST = """async (asked) => {
  const {nearestPoint} = await import('/static/map/grid.js');
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const points = Float32Array.from({length: 4000}, random);
  const nearest = nearestPoint(points);
  const wrong = [];
  for (let n = 0; n < asked; n++) {
    const [x, y, reach] = [random(), random(), random() * 0.03];
    let [best, least] = [-1, reach * reach];
    for (let i = 0; i < 2000; i++) {
      const far = (points[2 * i] - x) ** 2 + (points[2 * i + 1] - y) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    if (nearest(x, y, reach) !== best) wrong.push([x, y, reach]);
  }
  return wrong;
}"""


def test_the_nearest_point_is_that_of_brute_force(page: Any, site: tuple[str, Flaky]) -> None:
    opened_map(page, site)
    assert page.evaluate(NEAREST, 1000) == []


def test_the_pointer_names_an_item_and_a_double_click_opens_it(page: Any, site: tuple[str, Flaky]) -> None:
    opened_map(page, site)
    box = page.locator("#plane").bounding_box()
    size = 0.96 * min(box["width"], box["height"])  # of the whole map, in the middle
    at = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 - size / 4)  # i20 is at (.5, .25)
    page.mouse.move(*at)
    page.wait_for_selector("#tip", state="visible")
    assert page.inner_text("#tip .title") == "Item <b>20</b>"
    page.mouse.dblclick(*at)
    page.wait_for_url("**/?item=i20**")
    page.wait_for_selector("#drawer[open]")
    assert page.inner_text("#drawer-title") == "Item <b>20</b>"


def test_words_light_up_what_they_find(page: Any, site: tuple[str, Flaky]) -> None:
    opened_map(page, site)
    page.fill("#words", "red")
    page.keyboard.press("Enter")
    page.wait_for_selector("#lit-items li")
    assert page.locator("#lit-items a").all_inner_texts()[:2] == ["Item <b>0</b>", "Item <b>1</b>"]


def test_the_path_of_a_user_and_what_comes_next(page: Any, site: tuple[str, Flaky]) -> None:
    opened_map(page, site, "?user=ann")
    page.wait_for_selector("#lit-items li")
    assert page.inner_text("#lit-title") == "Path of ann"
    rows = page.locator("#lit-items li").all_inner_texts()
    assert rows[:2] == ["What comes next", "Item <b>7</b>"]
    assert rows[11:] == ["History: the last of 2 events", "Item <b>8</b>", "Item <b>1</b>"]  # the newest first
    page.click("#whole")
    page.wait_for_selector("#lit", state="hidden")


def test_a_category_is_lit_and_keys_move_the_map(page: Any, site: tuple[str, Flaky]) -> None:
    opened_map(page, site)
    page.click("#legend button >> nth=1")
    assert page.get_attribute("#legend button >> nth=1", "aria-pressed") == "true"
    assert page.inner_text("#legend button >> nth=1").split("\n") == ["odd", "19"]
    page.click("#whole")
    assert page.locator("#legend [aria-pressed=true]").count() == 0
    page.focus("#plane")
    before = page.screenshot(clip=page.locator("#plane").bounding_box())
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    page.wait_for_timeout(100)
    assert page.screenshot(clip=page.locator("#plane").bounding_box()) != before


def test_a_user_without_events_has_no_path(page: Any, site: tuple[str, Flaky]) -> None:
    opened_map(page, site, "?user=nobody")
    page.wait_for_selector("#lit-items li")
    assert page.inner_text("#lit-title") == "nobody has no history"
