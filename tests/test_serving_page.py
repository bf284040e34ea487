"""The shop in a real browser, against a real service."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import picture
from page_site import PHONE, toy_site
from service_harness import GREEN_PNG, Flaky
from watched_pages import watched_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Flaky]]:
    with toy_site(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture
def page(browser: Any, site: tuple[str, Flaky]) -> Iterator[Any]:
    with watched_page(browser, site[0], viewport=PHONE) as opened:
        yield opened


def picks(page: Any) -> list[str]:
    return page.eval_on_selector_all("#picks .card", "cards => cards.map(card => card.dataset.item)")


def past(page: Any) -> list[str]:
    return page.eval_on_selector_all("#past .card", "cards => cards.map(card => card.dataset.item)")


def test_a_click_changes_the_list(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(site[0])
    page.click("#invent")
    page.wait_for_selector(".popular")
    page.wait_for_selector('#picks [data-item="i2"]')  # the user before has seen it
    assert page.input_value("#user").startswith("guest-")
    assert picks(page)[:4] == ["i0", "i1", "i2", "i4"]
    assert past(page) == []
    page.click('#picks [data-item="i20"] .like')
    page.wait_for_selector(".history, .model")
    page.wait_for_selector("#past .card")
    assert past(page) == ["i20"]
    assert picks(page)[:3] == ["i19", "i21", "i18"]
    assert "rating" in page.inner_text("#past .card .kinds")


def test_titles_are_text_and_missing_pictures_become_tiles(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=nobody")
    page.wait_for_selector('#picks [data-item="i2"] .tile')
    assert page.inner_text('#picks [data-item="i2"] .title') == "Item <b>2</b>"
    page.fill("#user", "<img src=x onerror=alert(1)>/%2F é")
    page.click("#pick button[type=submit]")
    sync_api.expect(page.locator("#picks-title")).to_have_text("For <img src=x onerror=alert(1)>/%2F é")
    page.click('#picks [data-item="i10"] .like')
    page.wait_for_selector("#past .card")
    page.reload()
    page.wait_for_selector("#past .card")
    assert past(page) == ["i10"]


def test_similar_items_and_the_keyboard(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=keys")
    page.wait_for_selector("#picks .card")
    page.focus('#picks [data-item="i8"] .hit')
    page.keyboard.press("Enter")
    page.wait_for_selector("#alike li")
    assert page.inner_text("#drawer-title") == "Item <b>8</b>"
    assert page.eval_on_selector("#alike li", "row => row.dataset.item") == "i7"
    page.keyboard.press("Escape")
    page.wait_for_selector("#drawer", state="hidden")
    assert page.evaluate("document.activeElement.closest('.card').dataset.item") == "i8"
    page.keyboard.press("Tab")  # from the item to its first reaction
    page.keyboard.press("Enter")
    page.wait_for_selector("#past .card")
    assert past(page) == ["i8"]


def finds(page: Any) -> list[str]:
    return page.eval_on_selector_all("#finds .card", "cards => cards.map(card => card.dataset.item)")


DROP = """([name, type, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  for (const moved of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(moved, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""


def test_words_find_items(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=seeker")
    page.wait_for_selector("#picks .card")
    page.get_by_label("Search by words").fill("red")
    page.keyboard.press("Enter")
    page.wait_for_selector("#finds .card")
    assert finds(page)[:4] == ["i0", "i1", "i2", "i4"]  # i3 is hidden
    assert page.inner_text("#found-title") == "Found for “red”"
    assert page.inner_text('#finds [data-item="i1"] .chips') == "text 1.00"
    assert page.get_attribute('#finds [data-item="i2"] .chips', "title") == "similarity: picture 1.00, text 1.00"
    page.click('#finds [data-item="i1"] .like')
    page.wait_for_selector("#past .card")
    assert past(page) == ["i1"]
    page.click("#clear")
    page.wait_for_selector("#found", state="hidden")


def test_a_picture_is_dropped(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=seeker")
    page.wait_for_selector("#picks .card")
    page.evaluate(DROP, ["<b>grass.png", "image/png", list(GREEN_PNG)])
    page.wait_for_selector("#finds .card")
    assert finds(page)[:3] == ["i39", "i38", "i37"]
    assert page.inner_text("#held-name") == "<b>grass.png"
    sync_api.expect(page.locator("#preview")).to_have_js_property("naturalWidth", 8)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("#words", "red")
    page.click("#ask button[type=submit]")
    sync_api.expect(page.locator("#found-title")).to_have_text("Found for “red” and <b>grass.png")
    assert finds(page)[:2] == ["i20", "i19"]  # halfway between red and green: item r is at 88 r / 39 degrees
    page.set_input_files("#file", {"name": "torn.png", "mimeType": "image/png", "buffer": GREEN_PNG[:40]})
    page.wait_for_selector("#found-state .warn")
    assert page.inner_text("#found-state .warn") == "image not read"
    assert "cannot be decoded" in page.get_attribute("#found-state .warn", "title")
    assert finds(page)[:2] == ["i0", "i1"]
    page.click("#let-go")
    page.wait_for_selector("#held", state="hidden")
    page.evaluate(DROP, ["x.txt", "text/plain", [1]])
    page.wait_for_selector("#toast")
    assert "is not an image" in page.inner_text("#toast")


def test_an_empty_search_does_not_cancel_the_running_search(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=seeker")
    page.wait_for_selector("#picks .card")
    routes = []
    page.route("**/v1/search", lambda route: routes.append(route))
    page.fill("#words", "red")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask.busy")
    page.fill("#words", "")
    page.keyboard.press("Enter")
    routes[0].continue_()
    page.wait_for_selector("#finds .card")
    page.wait_for_selector("#ask:not(.busy)")
    assert page.inner_text("#found-title") == "Found for “red”"


def test_the_response_is_dropped_after_its_file_is_removed(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=seeker")
    page.wait_for_selector("#picks .card")
    routes = []
    page.route("**/v1/search", lambda route: routes.append(route))
    page.evaluate(DROP, ["grass.png", "image/png", list(GREEN_PNG)])
    page.wait_for_selector("#ask.busy")
    page.click("#let-go")
    page.wait_for_selector("#ask:not(.busy)")
    with page.expect_response("**/v1/search"):
        routes[0].continue_()
    page.wait_for_timeout(50)
    assert page.is_hidden("#found")


def test_similar_items_show_similarity_by_channel(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=alike")
    page.click('#picks [data-item="i8"] .hit')
    page.wait_for_selector("#alike li")
    assert page.inner_text('#alike [data-item="i7"] .chips').split("\n") == ["text 1.00", "behaviour 0.98"]
    assert page.inner_text('#alike [data-item="i9"] .chips') == "behaviour 0.97"


def test_nothing_is_wider_than_a_phone(page: Any, site: tuple[str, Flaky]) -> None:
    for path in ("/?user=ann", "/docs"):
        page.goto(site[0] + path)
        page.wait_for_selector("#picks .card, .opblock")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_shows_that_the_store_does_not_respond(page: Any, site: tuple[str, Flaky]) -> None:
    site[1].away = True
    try:
        page.goto(f"{site[0]}/?user=of%20whom%20nothing%20was%20read")
        page.wait_for_selector(".warn")
        assert "the feature store does not respond" in page.inner_text("#state")
        assert "so the history is not known" in page.inner_text("#hint")
        assert "the history cannot be shown" in page.inner_text("#past")
    finally:
        site[1].away = False
    page.wait_for_timeout(200)
    page.goto(f"{site[0]}/?user=ann")
    page.wait_for_selector(".model")
    assert "degraded" not in page.inner_text("#state")
    site[1].away = True
    try:
        page.reload()
        page.wait_for_selector(".warn")
        assert "the items fit the history of some minutes ago" in page.inner_text("#hint")
        assert page.locator("#past .card").count() > 0
    finally:
        site[1].away = False


def test_every_page_has_one_main_heading(page: Any, site: tuple[str, Flaky]) -> None:
    for path in ("/?user=ann", "/docs"):
        page.goto(site[0] + path)
        page.wait_for_selector("#picks .card, .opblock")
        assert page.locator("h1").count() == 1


def test_a_reaction_says_what_it_posts(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=ann")
    page.wait_for_selector("#picks .card")
    titles = page.eval_on_selector_all('#picks [data-item="i7"] .react', "all => all.map(button => button.title)")
    assert titles == ["Like (rating 3.5)", "Dislike (rating 1)"]  # not_interested would count as nothing here
    label = page.get_attribute('#picks [data-item="i7"] .like', "aria-label")
    assert label == "Like (rating 3.5): Item <b>7</b>"


def test_a_dislike_leaves_the_list_unpersonal_and_an_undo_takes_it_back(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=critic")
    page.click('#picks [data-item="i2"] .dislike')
    page.wait_for_selector('#past [data-item="i2"]')
    sync_api.expect(page.locator("#toast")).to_contain_text("Disliked: Item <b>2</b> (rating 1).")
    assert "i2" not in picks(page)  # it was seen
    assert page.is_visible("#state .popular")
    page.click("#toast button")
    page.wait_for_selector('#picks [data-item="i2"]')
    assert past(page) == []


def test_an_event_of_this_tab_can_be_undone_in_the_history(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=ann")
    page.wait_for_selector("#past .card")
    assert page.locator("#past button").count() == 0  # this tab has not posted them
    page.click('#picks [data-item="i20"] .like')
    page.wait_for_selector('#past [data-item="i20"] button')
    page.reload()
    page.click('#past [data-item="i20"] button')
    page.wait_for_selector('#past [data-item="i20"]', state="detached")


def test_the_list_shows_what_a_reaction_changed(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=mover")
    page.wait_for_selector("#picks .card")
    before = set(picks(page))
    page.click('#picks [data-item="i20"] .like')
    page.wait_for_selector("#picks .fresh")
    fresh = page.eval_on_selector_all("#picks .fresh", "cards => cards.map(card => card.dataset.item)")
    assert set(fresh) == set(picks(page)) - before
    sync_api.expect(page.locator("#toast")).to_contain_text(f"{len(fresh)} items of the list are new, with a frame.")


def test_a_reaction_to_a_result_keeps_the_results(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=finder")
    page.wait_for_selector("#picks .card")
    page.fill("#words", "red")
    page.keyboard.press("Enter")
    page.click('#finds [data-item="i1"] .like')
    page.wait_for_selector('#past [data-item="i1"]')
    assert finds(page)[:2] == ["i0", "i1"]


def test_the_next_page_continues_the_list(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=pager")
    page.wait_for_selector("#picks .card")
    first = picks(page)
    page.click("#picks-more")
    page.wait_for_selector("#picks .card:nth-child(25)")
    every = picks(page)
    assert every[:24] == first
    assert len(every) == len(set(every)) == 38  # of 40, i3 is hidden and i4, i5 are one product
    assert page.is_hidden("#picks-more")


def test_words_and_taste_are_mixed(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=mixer")
    page.wait_for_selector("#picks .card")
    page.fill("#words", "red")
    page.keyboard.press("Enter")
    page.wait_for_selector("#finds .card")
    assert page.is_hidden("#mix")  # there is no taste yet
    page.click('#picks [data-item="i20"] .like')
    page.wait_for_selector("#mix", state="visible")
    assert finds(page)[0] == "i0"
    page.evaluate("w => { w.value = 100; w.dispatchEvent(new Event('change')); }", page.query_selector("#weight"))
    page.wait_for_selector('#finds [data-item="i20"]:first-child')  # the nearest to the user


def test_filters_narrow_lists(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=picky")
    page.click("#filters summary")
    page.click("#filter-fields .pill:has-text('odd')")
    page.wait_for_selector('#picks [data-item="i0"]', state="detached")
    assert {int(item[1:]) % 2 for item in picks(page)} == {1}
    assert page.inner_text("#filters-count") == "1 in use"
    assert page.locator("#filter-fields fieldset").count() == 1  # all prices are the same


def test_the_drawer_says_why_and_why_not(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=ann")
    page.click('#picks [data-item="i7"] .hit')
    page.wait_for_selector("#drawer section")
    assert page.inner_text("#drawer h3 >> nth=0") == "Why for ann"
    page.click('#alike [data-item="i8"] .hit')  # ann has seen it
    sync_api.expect(page.locator("#drawer-title")).to_have_text("Item <b>8</b>")
    sync_api.expect(page.locator("#drawer h3 >> nth=0")).to_have_text("Why not for ann")
    assert "has seen the item" in page.inner_text("#drawer .reason")
    page.click("#drawer summary")
    assert "item_id\ti8" in page.inner_text("#drawer table")


def test_a_sentence_says_who_a_user_is(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=somebody")
    page.wait_for_selector("#picks .card")
    assert page.inner_text("#who") == "0 events"
    for item in ("i10", "i12"):
        page.click(f'#picks [data-item="{item}"] .like')
        page.wait_for_selector(f'#past [data-item="{item}"]')
    assert page.inner_text("#who").lower() == "likes even, 2 events"


def test_a_toast_is_in_front_of_the_drawer(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=ann")
    page.click('#picks [data-item="i7"] .hit')
    page.wait_for_selector("#alike li")
    page.evaluate("import('/static/lib/dom.js').then(dom => dom.toast('it failed'))")
    middle = "document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2)"
    at = f"(b => {middle}.closest('#toast') !== null)(document.getElementById('toast').getBoundingClientRect())"
    assert page.evaluate(at)
    page.keyboard.press("Escape")
    page.wait_for_selector("#drawer", state="hidden")
    page.wait_for_function(f"() => {at}")  # the page moves it when it hears that the drawer is closed


LUMINANCE = """([selector, pseudo]) => {
  const light = (colour) => {
    const parts = colour.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const element = document.querySelector(selector);
  const style = getComputedStyle(element, pseudo);
  const pair = [light(style.color), light(getComputedStyle(element).backgroundColor)].sort();
  return (pair[1] + 0.05) / (pair[0] + 0.05) * Number(style.opacity);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_placeholders_can_be_read(page: Any, site: tuple[str, Flaky], theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    page.goto(f"{site[0]}/?user=ann")
    page.wait_for_selector("#picks .card")
    for selector in ("#user", "#words"):
        assert page.evaluate(LUMINANCE, [selector, "::placeholder"]) >= 4.5


def with_search_by(page: Any, kinds: list[str]) -> None:
    """Have /v1/about list these kinds of queries."""
    page.route("**/v1/about", lambda route: route.fulfill(json=route.fetch().json() | {"search_by": kinds}))


@pytest.mark.parametrize(
    ("kinds", "label", "placeholder"),
    [
        (["text"], "", ""),
        (["text", "image"], "Add a picture", ", or drop a picture anywhere"),
        (
            ["text", "audio", "video"],
            "Add a sound or a video",
            ", or drop a sound or a video anywhere",
        ),
    ],
)
def test_only_what_can_be_searched_by_is_offered(
    page: Any, site: tuple[str, Flaky], kinds: list[str], label: str, placeholder: str
) -> None:
    with_search_by(page, kinds)
    page.goto(f"{site[0]}/?user=ann")
    page.wait_for_selector("#picks .card")
    assert page.is_visible("#add") == bool(label)
    assert page.inner_text("#add-what").removesuffix("Add ") == label
    assert page.get_attribute("#words", "placeholder") == f"Search by words{placeholder}"
    if "image" not in kinds:
        page.evaluate(DROP, ["grass.png", "image/png", list(GREEN_PNG)])
        assert page.inner_text("#toast") == "grass.png: the items cannot be searched by picture"
        assert page.is_hidden("#held")


def test_an_id_of_signs_is_one_user(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(site[0])
    page.wait_for_selector("#picks .card")
    for user in ("x/similar", "a?b#c", "%2F", "%ff", "a+b", " "):
        page.fill("#user", user)
        page.click("#pick button[type=submit]")
        sync_api.expect(page.locator("#picks-title")).to_have_text(f"For {user}")
        page.click('#picks [data-item="i10"] .like')
        page.wait_for_selector('#past [data-item="i10"]')
    page.fill("#user", "..")
    page.click("#pick button[type=submit]")
    assert "no URL can hold it" in page.inner_text("#toast")


def test_every_text_has_its_place_and_every_place_its_text() -> None:
    static = Path(__file__).parent.parent / "serving" / "static"
    keys = set(re.findall(r'^  "([\w.]+)":', (static / "strings" / "en.js").read_text(), re.MULTILINE))
    files = [file for file in static.rglob("*.*") if file.suffix in (".html", ".js") and "vendor" not in file.parts]
    used, groups = set[str](), set[str]()
    for file in files:
        if file.parent.name == "strings":
            continue
        text = file.read_text()
        used |= set(re.findall(r'"([a-z]\w*\.\w+)"', text))
        groups |= set(re.findall(r"`([a-z]\w*\.)\$\{", text))
    unused = {key for key in keys - used if not key.startswith(tuple(groups))}
    assert unused == set()
    assert {key for key in used if key.split(".")[0] in {name.split(".")[0] for name in keys}} - keys == set()


def test_files_are_small() -> None:
    static = Path(__file__).parent.parent / "serving" / "static"
    files = [file for file in static.rglob("*.*") if file.is_file() and "vendor" not in file.parts]
    assert sum(file.stat().st_size for file in files) < 200_000


def test_small_pictures_are_seen(browser: Any, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    wide.write_bytes(picture(np.full((20, 80, 3), (9, 9, 200), np.uint8), "PNG"))
    with (
        toy_site(tmp_path, images={7: str(wide), 8: str(wide), 1: str(wide)}) as (url, _),
        watched_page(browser, url, viewport={"width": 1440, "height": 900}) as page,
    ):
        page.goto(f"{url}/?user=ann")
        page.click('#picks [data-item="i7"] .hit')
        for place in ('#picks [data-item="i7"]', '#alike [data-item="i8"]', '#past [data-item="i8"]'):
            page.wait_for_selector(f"{place} img.whole", state="attached")
            sizes = page.eval_on_selector(
                f"{place} img",
                "img => [img.clientWidth, 2 * parseFloat(getComputedStyle(img).paddingLeft)]",
            )
            assert sizes[0] - sizes[1] >= 0.8 * sizes[0], place


def test_a_reaction_by_keyboard_leads_to_its_undo(page: Any, site: tuple[str, Flaky]) -> None:
    page.goto(f"{site[0]}/?user=typist")
    page.wait_for_selector("#picks .card")
    page.focus('#picks [data-item="i20"] .hit')
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector('#past [data-item="i20"]')
    page.wait_for_function("() => document.activeElement.closest('#toast') !== null")
    page.keyboard.press("Enter")
    page.wait_for_selector('#past [data-item="i20"]', state="detached")
    page.wait_for_function("() => document.activeElement.id === 'picks'")
