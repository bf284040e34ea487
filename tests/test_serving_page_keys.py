"""The demo page of a service that has keys, in a real browser."""

from pathlib import Path
from typing import Any

import pytest
from service_harness import GREEN_PNG, Flaky, serving
from toy_service import RULES, ToyFiller, ToyShelf, toy_bundle, toy_encoders, toy_settings, toy_upsert, with_contents

from serving.access.key_file import create_key
from serving.app import create_app

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")


def test_the_page_asks_for_a_key_and_says_what_it_may_not(tmp_path: Path, browser: Any) -> None:
    file = tmp_path / "keys.jsonl"
    reader, writer = create_key(file, "reader", "read"), create_key(file, "writer", "write")
    (tmp_path / "green.png").write_bytes(GREEN_PNG)
    shelf = ToyShelf(
        with_contents(toy_bundle(tmp_path, 40, images={0: str(tmp_path / "green.png"), 2: "absent.png"}))
    )
    app = create_app(
        toy_settings(tmp_path, keys=file),
        load=shelf.load,
        upsert=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        filler=ToyFiller(tmp_path),
        connect=lambda _: Flaky(RULES),
        encoders=toy_encoders,
    )
    with serving(app) as url:
        context = browser.new_context()
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda log: errors.append(log.text) if "Content Security Policy" in log.text else None)

        def use(key: str) -> None:
            page.wait_for_selector("#unlock", state="visible")
            page.fill("#key", key)
            page.click("#unlock button")

        page.goto(f"{url}/?user=eve")
        page.wait_for_selector("#hint:has-text('the call needs an API key')")
        use("rk_wrong")
        page.wait_for_selector("#hint:has-text('the API key is not known')")
        use(f" {reader}\n")
        page.wait_for_selector("#picks .card")
        assert page.is_hidden("#unlock")
        page.wait_for_selector('#picks [data-item="i0"] img[src^="blob:"]')  # fetched with the key
        assert (
            page.eval_on_selector('#picks [data-item="i0"] img', "img => img.decode().then(() => img.naturalWidth)")
            == 8
        )
        page.wait_for_selector('#picks [data-item="i2"] .tile')  # a picture that there is not
        page.click('#picks [data-item="i20"] .like')
        page.wait_for_selector("#toast:has-text('needs a key of the role write')")
        page.evaluate("sessionStorage.clear()")
        page.reload()
        use(writer)
        page.wait_for_selector('#picks [data-item="i20"]')
        page.click('#picks [data-item="i20"] .like')
        page.wait_for_selector('#past [data-item="i20"]')
        page.reload()  # the key stays in the tab
        page.wait_for_selector('#past [data-item="i20"]')
        page.goto(f"{url}/docs")
        page.wait_for_selector(".opblock")
        context.close()
        assert errors == []
