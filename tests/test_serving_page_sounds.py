"""Search by a sound, from a file and from the microphone, in a real browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from media import sound
from page_site import toy_site, watched_page
from service_harness import Flaky

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Flaky]]:
    with toy_site(tmp_path_factory.mktemp("site"), sounds=True) as made:
        yield made


@pytest.fixture
def page(browser: Any, site: tuple[str, Flaky]) -> Iterator[Any]:
    with watched_page(browser, site[0], permissions=["microphone"]) as opened:
        opened.goto(f"{site[0]}/?user=listener")
        opened.wait_for_selector("#picks .card")
        yield opened


def finds(page: Any) -> list[str]:
    return page.eval_on_selector_all("#finds .card", "cards => cards.map(card => card.dataset.item)")


def test_a_sound_finds_items(page: Any) -> None:
    page.set_input_files("#file", {"name": "bark.wav", "mimeType": "audio/wav", "buffer": sound()})
    page.wait_for_selector("#finds .card")
    assert finds(page)[:2] == ["i39", "i38"]  # every sound is green here, and the last items are
    assert page.inner_text("#found-title") == "Found for bark.wav"
    assert page.is_hidden("#preview")


def test_the_microphone_is_recorded_until_it_is_stopped(page: Any) -> None:
    page.click("#record")
    sync_api.expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
    assert page.inner_text("#record") == "Stop"
    page.wait_for_timeout(700)  # of the browser's test tone
    page.click("#record")
    page.wait_for_selector("#finds .card")
    assert finds(page)[:2] == ["i39", "i38"]
    assert page.inner_text("#found-title") == "Found for recorded sound"
    assert page.inner_text("#record") == "Record"


def test_a_microphone_that_is_refused_is_told(browser: Any, site: tuple[str, Flaky]) -> None:
    with watched_page(browser, site[0]) as page:
        page.add_init_script(
            "navigator.mediaDevices.getUserMedia = async () => { throw new Error('Permission denied'); }"
        )
        page.goto(f"{site[0]}/?user=listener")
        page.wait_for_selector("#picks .card")
        page.click("#record")
        page.wait_for_selector("#toast:has-text('No sound from the microphone: Permission denied')")
