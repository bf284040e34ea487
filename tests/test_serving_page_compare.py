"""Two variants of an experiment side by side, in a real browser."""

from pathlib import Path
from typing import Any

import pytest
from page_site import toy_site, watched_page

from features.log.reader import read
from features.log.records import EXPOSURES

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

EXPERIMENTS = """
experiments:
- name: campaign
  variants:
    pinned: {share: 0.5, rules: pinned.yaml}
    open: {share: 0.5}
"""


def column(page: Any, side: int) -> list[list[str]]:
    """Item and note of each row of a side."""
    rows = "rows => rows.map(row => [row.dataset.item, row.querySelector('.kinds')?.textContent ?? ''])"
    return page.eval_on_selector_all(f"#columns ol:nth-child({side}) li", rows)


def test_two_variants_side_by_side(tmp_path: Path, browser: Any) -> None:
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS)
    (tmp_path / "pinned.yaml").write_text("rules:\n- {name: pin, pin: {item: i30, position: 1}}\n")
    with (
        toy_site(tmp_path, experiments=tmp_path / "experiments.yaml") as (url, _),
        watched_page(browser, url, viewport={"width": 1200, "height": 900}) as page,
    ):
        page.goto(f"{url}/?user=ann")
        page.wait_for_selector("#columns li")
        sides = page.locator("#sides select")
        assert sides.first.locator("option").all_inner_texts() == ["campaign:control", "campaign:pinned", "campaign:open"]
        logged = len(read(tmp_path / "log", stream=EXPOSURES).records)
        sides.nth(0).select_option("campaign:open")
        sides.nth(1).select_option("campaign:pinned")
        page.wait_for_selector('#columns ol:nth-child(2) li:first-child[data-item="i30"]')
        page.wait_for_selector('#columns ol:nth-child(1) li:first-child[data-item="i7"]')
        left, right = column(page, 1), column(page, 2)
        assert left[:2] == [["i7", "place 2 on the other side"], ["i9", "place 3 on the other side"]]
        assert right[:2] == [["i30", "only here"], ["i7", "place 1 on the other side"]]
        assert len(read(tmp_path / "log", stream=EXPOSURES).records) == logged  # a preview shows nobody anything


def test_without_experiments_nothing_is_compared(tmp_path: Path, browser: Any) -> None:
    with toy_site(tmp_path) as (url, _), watched_page(browser, url) as page:
        page.goto(f"{url}/?user=ann")
        page.wait_for_selector("#picks .card")
        assert page.is_hidden("#compare")
