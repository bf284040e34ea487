"""Every page for people who do not see well, or use the keyboard: the rules of axe, one main heading, no overflow."""

from collections.abc import Iterator
from typing import Any

import pytest
from page_site import toy_site, watched_page
from service_harness import Flaky

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

PAGES = {
    "/?user=ann": "#picks .card",
    "/?user=ann&item=i8": "#alike li",
    "/map?user=ann": "#lit-items li",
}
"""Address of a page, and what it has when it is complete."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Flaky]]:
    with toy_site(tmp_path_factory.mktemp("site")) as made:
        yield made


def violations(page: Any) -> list[str]:
    """What axe finds, with the elements."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:120]}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1440])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_keeps_the_rules(browser: Any, site: tuple[str, Flaky], path: str, width: int, theme: str) -> None:
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": theme, "reduced_motion": "reduce"}
    with watched_page(browser, site[0], **options) as page:
        page.goto(site[0] + path)
        page.wait_for_selector(PAGES[path])
        if path.startswith("/?user=ann") and "item" not in path:
            page.click("#filters summary")
            page.fill("#words", "red")
            page.keyboard.press("Enter")
            page.wait_for_selector("#finds .card")
        assert violations(page) == []
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_axe_sees_what_is_wrong(browser: Any, site: tuple[str, Flaky]) -> None:
    with watched_page(browser, site[0]) as page:
        page.goto(f"{site[0]}/?user=ann")
        page.wait_for_selector("#picks .card")
        page.evaluate("document.querySelector('main').append(document.createElement('button'))")
        page.evaluate("document.getElementById('hint').style.color = '#bbb'")
        found = {line.split(":")[0] for line in violations(page)}
    assert found == {"button-name", "color-contrast"}
