"""The console in a real browser, against a real service: what an administrator does there changes what people see."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from service_harness import GREEN_PNG, HOME, Flaky, serving
from test_serving_console_routes import manifest, publish
from toy_service import RULES, ToyFiller, ToyShelf, toy_bundle, toy_encoders, toy_settings, toy_upsert, with_contents
from watched_pages import watched_page

from serving.access.key_file import create_key
from serving.app import create_app

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

EXPERIMENT = "experiments: [{name: even, variants: {first: {share: 0.3, rules: first.yaml}}}]"
FIRST = "rules: [{name: the campaign, pin: {item: i9, position: 1}}]"
VIEWS = ("now", "freshness", "bundle", "experiments", "items", "rules", "users")


def service(folder: Path, store: Flaky, **settings: Any) -> Any:
    """A service with rules, an experiment, and a bundle that was published after another one."""
    (folder / "rules.yaml").write_text("rules: []\n")
    (folder / "first.yaml").write_text(FIRST)
    (folder / "experiments.yaml").write_text(EXPERIMENT)
    new = manifest(0.3)
    publish(folder / "bundles", manifest(0.2), 1_000_000)
    bundle = with_contents(toy_bundle(folder, 40, fingerprint=publish(folder / "bundles", new, 2_000_000)))
    bundle.manifest.update(metrics=new["metrics"])
    shelf = ToyShelf(bundle)
    files = {name: folder / f"{name}.yaml" for name in ("rules", "experiments")}
    return create_app(
        toy_settings(folder, follow_seconds=0.05, **files, **settings),
        load=shelf.load,
        upsert=toy_upsert,
        place=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        filler=ToyFiller(folder),
        connect=lambda _: store,
        encoders=toy_encoders,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(service(tmp_path_factory.mktemp("site"), Flaky(RULES))) as url:
        yield url


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Any]:
    with watched_page(browser, site, viewport={"width": 1280, "height": 900}) as opened:
        yield opened


def view(page: Any, site: str, name: str) -> Any:
    """Open a view of the console."""
    page.goto("about:blank")
    page.goto(f"{site}/console#{name}")
    return page.locator(f"#view .{name}")


def items(site: str, user: str = "nobody") -> list[str]:
    answer = httpx2.get(site + HOME.format(user, 4, "home")).json()
    return [item["item_id"] for item in answer["items"]]


def ids(listed: Any) -> list[str]:
    found: list[str] = listed.locator("li[data-item]").evaluate_all("rows => rows.map(row => row.dataset.item)")
    return found


def says(locator: Any, text: str) -> None:
    sync_api.expect(locator).to_contain_text(text)


def read(cells: Any, texts: str | list[str]) -> None:
    sync_api.expect(cells).to_have_text(texts)


def test_a_hidden_item_is_gone_for_everybody_until_it_is_shown_again(page: Any, site: str) -> None:
    shown = view(page, site, "items")
    page.get_by_label("Words or id of an item").fill("i1")
    page.get_by_role("button", name="Search").click()
    row = shown.locator('li[data-item="i1"]')
    row.get_by_role("button", name="Hide Item <b>1</b>").click()
    says(page.locator("#toast"), "Item <b>1</b> is hidden")
    says(row, "hidden")
    assert items(site) == ["i0", "i2", "i4", "i6"]  # i3 is not available, i5 is a variant of i4
    page.goto(f"{site}/?user=nobody")
    page.wait_for_selector('#picks [data-item="i6"]')
    assert page.locator('#picks [data-item="i1"]').count() == 0
    view(page, site, "items")
    page.get_by_label("Words or id of an item").fill("i1")
    page.get_by_role("button", name="Search").click()
    says(row, "hidden")
    row.get_by_role("button", name="Show Item <b>1</b>").click()
    page.locator("#toast").get_by_role("button", name="Undo").click()
    says(page.locator("#toast"), "is hidden")
    page.locator("#toast").get_by_role("button", name="Undo").click()
    says(page.locator("#toast"), "may be shown again")
    for _ in range(200):  # from the next update of the catalogue on
        if "i1" in items(site):
            break
        page.wait_for_timeout(50)
    assert items(site) == ["i0", "i1", "i2", "i4"]


def test_a_changed_rule_is_checked_tried_and_saved(page: Any, site: str) -> None:
    shown = view(page, site, "rules")
    text, said = page.get_by_label("Rules as JSON"), shown.get_by_role("status").first
    sync_api.expect(text).to_have_value('{\n  "rules": []\n}')
    text.fill("{")
    page.get_by_role("button", name="Check").click()
    says(said, "This is not JSON")
    text.fill(json.dumps({"rules": [{"name": "a", "pin": {"item": "none", "position": 1}}]}))
    page.get_by_role("button", name="Check").click()
    says(said, "it pins item none, which is not in the catalogue")
    text.fill(json.dumps({"rules": [{"name": "a", "pin": {"item": "i8", "position": 1}}]}))
    page.get_by_role("button", name="Check").click()
    says(said, "1 rule, and it can be used.")
    page.get_by_label("User").fill("nobody")
    page.get_by_role("button", name="Try").click()
    lists = shown.locator(".slate")
    sync_api.expect(lists).to_have_count(2)
    assert [ids(lists.nth(at))[:3] for at in (0, 1)] == [["i8", "i0", "i1"], ["i0", "i1", "i2"]]
    read(lists.nth(0).locator(".chip").first, "was 7")
    assert items(site)[0] == "i0"  # nothing is saved yet
    page.get_by_role("button", name="Save").click()
    says(said, "Saved.")
    assert items(site) == ["i8", "i0", "i1", "i2"]
    httpx2.put(f"{site}/v1/rules", json={"rules": []})
    page.get_by_role("button", name="Save").click()
    says(said, "read the rules again")
    assert items(site)[0] == "i0"
    shown.get_by_role("button", name="Read again").click()
    says(said, "These are the rules in use.")
    assert json.loads(text.input_value()) == {"rules": []}


def test_figures_are_live_and_open_what_they_come_from(page: Any, site: str) -> None:
    page.clock.install()
    shown = view(page, site, "now")
    says(shown, "Since the start of the service")
    for _ in range(10):
        items(site)
    page.clock.run_for(5000)
    says(shown, "read every 5 seconds")

    def figure(name: str) -> Any:
        return shown.locator(".tile-figure").filter(has=page.get_by_text(name, exact=True)).locator(".source")

    lists = figure("Lists")
    assert 0 < float(lists.inner_text()) <= 2  # ten lists in five seconds or more
    assert figure("Fallbacks").inner_text() == "10"
    stages = shown.get_by_role("region", name="Stages of a list")
    assert sorted(stages.locator("tr th[scope=row]").all_inner_texts()) == ["log", "rank", "store"]
    assert all(text.endswith(" ms") for text in stages.locator("td:nth-child(n+3)").all_inner_texts())
    says(shown.get_by_role("region", name="Routes"), "/v1/users/{user_id}/recommendations")
    lists.click()
    dialog = page.locator("#source[open]")
    says(dialog, "GET /metrics")
    says(dialog.locator("pre"), 'recsys_answers_total{degraded="false",placement="home",source="popular"}')
    page.keyboard.press("Escape")
    sync_api.expect(dialog).to_have_count(0)


def test_quantiles_of_a_histogram(page: Any, site: str) -> None:
    """Of 10 observations, 4 are up to 0.1, 9 up to 0.5, and one is larger; the fifth is at 0.1 + 0.4 / 5."""
    page.goto(f"{site}/console")
    text = "\n".join(
        f'a_bucket{{le="{bound}",s="x\\"y"}} {count}' for bound, count in (("0.1", 4), ("0.5", 9), ("+Inf", 10))
    )
    found = page.evaluate(
        """async (text) => {
          const { parse, gained, quantile, by } = await import("/static/console/metrics.js");
          const list = gained(parse(text));
          const none = gained(parse(text), parse(text));
          const quantiles = [0.2, 0.5, 0.99].map(at => quantile(list, "a", at));
          return [...quantiles, quantile(none, "a", 0.5), by(list, "a_bucket", "s")];
        }""",
        text,
    )
    assert found[0]["value"] == pytest.approx(0.05)
    assert found[1]["value"] == pytest.approx(0.18)
    assert found[2] == {"value": 0.5, "beyond": True}
    assert found[3:] == [None, [['x\\"y', 23]]]


def test_figures_of_the_bundle_stand_beside_those_before(page: Any, site: str) -> None:
    shown = view(page, site, "bundle")
    row = shown.locator("tr", has_text="NDCG@10")
    read(row.locator("td"), ["0.3 [0.29, 0.31]", "0.2 [0.19, 0.21]", "+0.1 intervals apart"])
    read(shown.locator("tr", has_text="MRR@10").locator("td"), ["0.25", "0.25", "±0"])
    row.locator(".source").first.click()
    says(page.locator("#source pre"), '"ndcg_at_10"')


def test_the_state_of_the_parts_and_the_experiments(page: Any, site: str) -> None:
    shown = view(page, site, "freshness")
    says(shown, "No component has a problem.")
    says(shown.locator("tr", has_text="Last refresh of the store"), "2 users, 3 events")
    says(shown.locator("tr", has_text="Last night"), "recsys nightly has not run")
    says(shown.locator("tr", has_text="Published").first, "accepted")
    shown = view(page, site, "experiments")
    read(shown.locator("tr", has_text="first").locator("td"), ["30%", "first.yaml", "–", "yes"])
    read(shown.locator("tr", has_text="control").locator("td"), ["70%", "–", "–", "yes"])


def test_an_item_is_added_with_a_picture_and_edited(page: Any, site: str) -> None:
    shown = view(page, site, "items")
    page.get_by_role("button", name="Add an item").click()
    dialog = page.locator("#item[open]")
    dialog.get_by_label("Id", exact=True).fill("draft/7")
    dialog.get_by_label("Title").fill("Toys in <Space>")
    dialog.get_by_label("Categories, with commas").fill("odd, toys")
    dialog.get_by_label("Price").fill("-1")
    dialog.get_by_label("Picture").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": GREEN_PNG})
    dialog.get_by_role("button", name="Add").click()
    says(dialog.get_by_role("alert"), "price")
    dialog.get_by_label("Price").fill("7.5")
    dialog.get_by_role("button", name="Add").click()
    row = shown.locator('li[data-item="draft/7"]')
    says(row, "Toys in <Space>")
    stored = httpx2.get(f"{site}/v1/items/draft%2F7").json()["fields"]
    assert (stored["categories"], stored["price"], stored["image"]) == (["odd", "toys"], 7.5, "stored")
    row.get_by_role("button", name="Edit").click()
    dialog.get_by_label("Title").fill("Toys in space")
    dialog.get_by_label("Price").fill("")
    dialog.get_by_role("button", name="Save").click()
    says(row, "Toys in space")
    after = httpx2.get(f"{site}/v1/items/draft%2F7").json()["fields"]
    assert after == {**stored, "title": "Toys in space", "price": None}


def test_a_user_is_looked_up_explained_and_erased(page: Any, site: str) -> None:
    event = {"user_id": "eve", "item_id": "i8", "event": "rating", "value": 5}
    assert httpx2.post(f"{site}/v1/events", json=event).status_code == 202
    shown = view(page, site, "users")
    page.get_by_label("User", exact=True).fill("eve")
    page.get_by_role("button", name="Look up").click()
    says(shown.locator("tr", has_text="i8"), "rating 5")
    page.get_by_label("Variant").select_option("even:first")
    page.get_by_role("button", name="Show the list").click()
    says(shown.locator(".slate li").first, "Chosen by the shop")
    assert ids(shown.locator(".slate"))[:2] == ["i9", "i7"]
    page.get_by_label("Item", exact=True).fill("i8")
    page.get_by_role("button", name="Ask").click()
    says(shown, "the user has seen the item")
    erase = page.get_by_role("button", name="Erase this person")
    sync_api.expect(erase).to_be_disabled()
    page.get_by_label("Type eve to confirm").fill("ev")
    sync_api.expect(erase).to_be_disabled()
    page.get_by_label("Type eve to confirm").fill("eve")
    erase.click()
    says(shown, "eve is erased.")
    read(shown.locator("tr", has_text="event log").locator("td"), ["1", "0"])  # the list was not logged


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820])
def test_no_view_is_wider_than_its_window(browser: Any, site: str, width: int, theme: Any) -> None:
    with watched_page(browser, site, viewport={"width": width, "height": 900}, color_scheme=theme) as page:
        for name in VIEWS:
            shown = view(page, site, name)
            page.wait_for_function("name => document.querySelector(`#view .${name}`)?.children.length", arg=name)
            assert shown.count() == page.locator("h1").count() == 1
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert page.locator("#refused").is_hidden()


def test_a_key_of_a_small_role_is_refused_in_words(tmp_path: Path, browser: Any) -> None:
    file = tmp_path / "keys.jsonl"
    reader, admin = create_key(file, "reader", "read"), create_key(file, "admin", "admin")
    with serving(service(tmp_path, Flaky(RULES), keys=file)) as url, watched_page(browser, url) as page:
        page.goto(f"{url}/console#rules")
        page.fill("#key", reader)
        page.click("#unlock button")
        says(page.locator("#refused"), "admin")
        page.goto(f"{url}/console#now")
        says(page.locator("#view .now"), "Requests")
        page.goto(f"{url}/console#rules")
        page.get_by_role("button", name="Use another key").click()
        page.fill("#key", admin)
        page.click("#unlock button")
        sync_api.expect(page.get_by_label("Rules as JSON")).to_have_value('{\n  "rules": []\n}')
        says(page.locator("#status"), "40 items")
