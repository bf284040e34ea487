"""`recsys bench page`: what a person waits for on the pages, in a real browser without a graphics card."""

import shutil
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.runner import Bar, Result
from experiments.bench.serve.benchmark import CLIENTS, arrivals
from experiments.bench.serve.service import RECOMMEND, Cores, Service, serving
from experiments.bench.serve.world import SHORT_USERS, USERS, build
from features.errors import ConfigError, DependencyError

FLAGS = ("--no-sandbox", "--disable-gpu")
"""Of Chromium: the processor draws, whatever the machine has."""

WATCH = """
sessionStorage.setItem("key", KEY);
let clicked = 0;
addEventListener("click", () => { clicked = performance.now(); }, true);
new MutationObserver((changes) => {
  if (!changes.some((change) => change.target.id === "picks" && change.addedNodes.length)) return;
  if (!window.firstList) window.firstList = performance.now();
  else if (clicked && !window.newList) window.newList = performance.now() - clicked;
}).observe(document, { childList: true, subtree: true });
"""
"""Milliseconds from the navigation to the first list of cards, and from a click to the next list."""

FRAMES = """async (seconds) => {
  const plane = document.getElementById("plane");
  const box = plane.getBoundingClientRect();
  const place = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, cancelable: true };
  let frames = 0;
  const begun = performance.now();
  while (performance.now() - begun < 1000 * seconds) {
    plane.dispatchEvent(new WheelEvent("wheel", { ...place, deltaY: frames % 80 < 40 ? -30 : 30 }));
    await new Promise(requestAnimationFrame);
    frames++;
  }
  return (1000 * frames) / (performance.now() - begun);
}"""
"""Frames a second while the map is zoomed in and out at every frame."""


def run(*, short: bool = False, seed: int = 0, items: int = 100_000, runs: int = 5, seconds: float = 5.0) -> Result:
    """The storefront and the map of a service with keys, one worker. Figures are medians of the runs.

    items: of the catalogue, and points of the map; seconds: of each look at the map. short: 1,000 items, one run, no
    bars. Raises DependencyError without playwright or Chromium.
    """
    if seconds <= 0 or runs < 1 or items < 1000:
        raise ConfigError(
            f"--seconds {seconds:g} --runs {runs} --items {items}: seconds above 0, runs from 1 and items from "
            "1,000 on are needed"
        )
    if short:
        items, runs, seconds = 1000, 1, 0.5
    with tempfile.TemporaryDirectory(prefix="recsys-page-") as name, _browser() as browser:
        folder = Path(name)
        world = build(folder, items, SHORT_USERS if short else USERS, "exact" if short else "hnsw", seed)
        with serving(folder / "one", world, 1, 4, Cores.of_machine()) as service:
            saturated = service.load(RECOMMEND, list(world.users), clients=CLIENTS, seconds=seconds)
            rate = saturated.accepted.sum() / float((saturated.at + saturated.seconds).max())
            found = [_idle(browser, service, world.users[run], seconds) for run in range(runs)]
            with _load(service, world.users, rate / 2, 3.0 * runs, seed):
                loaded = [_reaction(browser, service, world.users[runs + run])[1] for run in range(runs)]
    figures = {name: statistics.median(each[name] for each in found) for name in found[0]}
    figures["reaction to new list at half load, ms"] = statistics.median(loaded)
    return Result(
        {"items": items, "requests a second of half load": rate / 2, **figures}, [] if short else _bars(figures)
    )


@contextmanager
def _browser() -> Iterator[Any]:
    """A headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise DependencyError("bench page drives a browser: pip install playwright") from error
    if (program := shutil.which("chromium")) is None:
        raise DependencyError("bench page needs the program chromium: install it, e.g. apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


def _idle(browser: Any, service: Service, user: str, seconds: float) -> dict[str, float]:
    """All figures of a service that has nothing else to do."""
    first, new = _reaction(browser, service, user)
    page = _page(browser, service)
    page.goto(f"{service.address}/map")
    page.wait_for_selector("body[data-ready]")
    frames = page.evaluate(FRAMES, seconds)
    page.context.close()
    return {"first view, ms": first, "reaction to new list, ms": new, "frames of the map a second": frames}


def _reaction(browser: Any, service: Service, user: str) -> tuple[float, float]:
    """Milliseconds until the first list of a page that no cache has, and from a Like to the new list."""
    page = _page(browser, service)
    page.goto(f"{service.address}/?user={user}")
    page.wait_for_selector("#picks .card")
    first = page.evaluate("window.firstList")
    page.wait_for_timeout(500)
    page.click("#picks .like")
    page.wait_for_function("() => window.newList")
    new = page.evaluate("window.newList")
    page.context.close()
    return float(first), float(new)


def _page(browser: Any, service: Service) -> Any:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(WATCH.replace("KEY", repr(service.key)))
    return context.new_page()


@contextmanager
def _load(service: Service, users: tuple[str, ...], rate: float, seconds: float, seed: int) -> Iterator[None]:
    """Other visitors ask meanwhile, so many a second."""
    asked = arrivals(rate, seconds, np.random.default_rng(seed))
    load = threading.Thread(target=service.load, args=(RECOMMEND, list(users)), kwargs={"arrivals": asked})
    load.start()
    try:
        yield
    finally:
        load.join()


def _bars(figures: dict[str, float]) -> list[Bar]:
    return [
        Bar("first view, ms", figures["first view, ms"], "<=", 1000.0),
        Bar("reaction to new list at half load, ms", figures["reaction to new list at half load, ms"], "<=", 200.0),
        Bar("frames of the map a second", figures["frames of the map a second"], ">=", 30.0),
    ]
