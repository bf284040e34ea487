"""The documentation of the API at /docs in a real browser: calls, their examples, codes of errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_harness import Flaky, serving
from toy_service import RULES, ToyFiller, ToyShelf, toy_bundle, toy_encoders, toy_settings, toy_upsert
from watched_pages import watched_page

from serving.access.key_file import create_key
from serving.app import create_app
from serving.errors import PROBLEMS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL of a service with keys, and a key that reads."""
    folder = tmp_path_factory.mktemp("site")
    key = create_key(folder / "keys.jsonl", "reader", "read")
    app = create_app(
        toy_settings(folder, keys=folder / "keys.jsonl"),
        load=(shelf := ToyShelf(toy_bundle(folder, 40))).load,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        filler=ToyFiller(folder),
        connect=lambda _: Flaky(RULES),
        encoders=toy_encoders,
    )
    with serving(app) as url:
        yield url, key


@pytest.fixture(params=[390, 1440])
def page(request: Any, browser: Any, site: tuple[str, str]) -> Iterator[Any]:
    with watched_page(browser, site[0], viewport={"width": request.param, "height": 900}) as page:
        yield page


def test_calls_are_listed_and_run_with_the_key_of_the_tab(page: Any, site: tuple[str, str]) -> None:
    url, key = site
    page.goto(f"{url}/docs")
    call = page.locator("#operations-users-list_users")
    call.locator(".opblock-summary-control").click()
    call.locator(".execute").click()
    sync_api.expect(call.locator(".live-responses-table .response .response-col_status").first).to_contain_text("401")
    page.evaluate("key => sessionStorage.setItem('key', key)", key)
    call.locator(".execute").click()
    sync_api.expect(call.locator(".live-responses-table .microlight").first).to_contain_text('"users": [')
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.locator("h1").count() == 1


def test_names_and_examples_can_be_read(page: Any, site: tuple[str, str]) -> None:
    page.goto(f"{site[0]}/docs")
    page.wait_for_selector(".opblock")
    for call in ("users-get_recommendations", "search-search_items"):
        page.click(f"#operations-{call} .opblock-summary-control")
    name = page.locator('[data-param-name="placement"] .parameter__name')
    line = (
        "name => parseFloat(getComputedStyle(name).lineHeight) || 1.5 * parseFloat(getComputedStyle(name).fontSize)"
    )
    assert name.bounding_box()["height"] < 1.5 * name.evaluate(line)  # in one line
    assert page.input_value('[data-param-name="user_id"] input') == "1"
    body = page.locator("#operations-search-search_items textarea").first
    assert "toys that come to life" in body.input_value()
    assert body.get_attribute("aria-label") == "Body or media type"


def test_the_type_of_a_problem_leads_to_its_code(page: Any, site: tuple[str, str]) -> None:
    page.goto(f"{site[0]}/docs#unknown_item")
    row = page.locator("#unknown_item")
    sync_api.expect(row).to_be_in_viewport()
    assert row.locator("td").all_inner_texts() == ["unknown_item", PROBLEMS["unknown_item"][1]]
    assert page.locator("#codes tr[id]").count() == len(PROBLEMS)


def test_the_library_has_its_licence() -> None:
    vendor = ROOT / "serving" / "static" / "vendor"
    script, notice = (ROOT / "serving" / "static" / "vendor.sh").read_text(), (ROOT / "NOTICE").read_text()
    names = [folder.name for folder in vendor.iterdir()]
    assert names
    for name in names:
        assert (vendor / name / "LICENSE").is_file()
        assert f"fetch {name} " in script
        assert f"{name} (serving/static/vendor)" in notice
