"""Pages in a browser whose test fails on an error in the console, or a request to another host."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watched_page(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """A page of the site at `url`. context: options of the browser's context.

    A status of 4xx that the page asked for is no error: a test looks at what the page says of it.
    """
    opened = browser.new_context(**context)
    page = opened.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    allowed = (url, f"blob:{url}", "data:")
    page.on("request", lambda request: errors.append(request.url) if not request.url.startswith(allowed) else None)
    page.on(
        "console",
        lambda log: errors.append(log.text) if log.type == "error" and "status of 4" not in log.text else None,
    )
    yield page
    opened.close()
    assert errors == []
