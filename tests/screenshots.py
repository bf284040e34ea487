"""Pictures of every page, light and dark, of the bundle that is current: docs/images/NAME-THEME.jpg.

Starts the service itself. The current bundle should be that of `make demo-media`: it has pictures and sounds.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
USER = "simulated-0003"
WIDE, PHONE = (1440, 900), (390, 844)


def shop(page: Any, url: str) -> None:
    page.goto(f"{url}/?user={USER}")
    page.wait_for_selector("#picks .card")


def drawer(page: Any, url: str) -> None:
    shop(page, url)
    page.click("#picks .card:nth-child(2) .hit")
    page.wait_for_selector("#alike li")


def search(page: Any, url: str) -> None:
    shop(page, url)
    page.fill("#words", "a bird that swims")
    page.keyboard.press("Enter")
    page.wait_for_selector("#finds .card")


def item_map(page: Any, url: str) -> None:
    page.goto(f"{url}/map?user={USER}")
    page.wait_for_selector("#lit-items li")


def console(page: Any, url: str) -> None:
    page.goto(f"{url}/console")
    for _ in range(22):  # visitors, for four looks at the figures
        page.wait_for_timeout(500)
        page.request.get(f"{url}/v1/users/{USER}/recommendations")


def console_rules(page: Any, url: str) -> None:
    page.goto(f"{url}/console#rules")
    page.wait_for_selector("#view textarea")


def docs(page: Any, url: str) -> None:
    page.goto(f"{url}/docs")
    page.wait_for_selector(".opblock")


PAGES = {
    "shop": (shop, WIDE),
    "shop-phone": (shop, PHONE),
    "item": (drawer, WIDE),
    "search": (search, WIDE),
    "map": (item_map, WIDE),
    "console": (console, WIDE),
    "console-rules": (console_rules, WIDE),
    "docs": (docs, WIDE),
}
"""Name of a picture -> how the page comes to what it shows, and the size of the screen."""


def main() -> None:
    """Write all pictures."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.yaml"
        rules.write_text("rules: []\n")
        run = "from recsys.cli import run; run()"
        command = [sys.executable, "-c", run, "serve", "--port", str(port), "--log", f"{folder}/log"]
        service = subprocess.Popen(
            [*command, "--rules", str(rules)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        try:
            wait_until_ready(url)
            take_all(url)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)


def wait_until_ready(url: str) -> None:
    """Wait until the service has its store and its encoders."""
    for _ in range(120):
        time.sleep(0.5)
        try:
            ready = httpx2.get(f"{url}/readyz", timeout=5).json()["status"] == "ready"
            if ready and httpx2.post(f"{url}/v1/search", json={"text": "bird"}, timeout=60).status_code == 200:
                return
        except httpx2.HTTPError:
            continue
    raise SystemExit("the service is not ready: train first, e.g. make demo-media")


def note(errors: list[str], error: object) -> None:
    errors.append(str(error))


def take_all(url: str) -> None:
    """Take the pictures. A page that is wider than its screen, or logs an error, ends the run."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for theme in ("light", "dark"):
            for name, (come_to, (width, height)) in PAGES.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
                )
                page = context.new_page()
                errors: list[str] = []
                page.on("pageerror", partial(note, errors))
                come_to(page, url)
                page.wait_for_load_state("networkidle")
                too_wide = page.evaluate("document.documentElement.scrollWidth") > width
                if errors or too_wide:
                    raise SystemExit(f"{name}, {theme}: {errors or 'wider than the screen'}")
                IMAGES.mkdir(exist_ok=True)
                page.screenshot(path=IMAGES / f"{name}-{theme}.jpg", type="jpeg", quality=82)
                context.close()
                print(f"docs/images/{name}-{theme}.jpg", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
