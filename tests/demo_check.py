"""Check of the trained demo, run by `make demo-check`: page, responses, effect of an event, clean shutdown.

Run as a script from the folder in which `recsys train` wrote its bundle. Prints a summary and exits 0, or raises.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def call(url: str, body: object | None = None) -> Any:
    """The response to a GET, or to a POST when there is a body: parsed JSON, or text of any other type."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read().decode()
        return json.loads(text) if "json" in response.headers["content-type"] else text


def main() -> None:
    """Serve the current bundle on a free port and check it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = f"http://127.0.0.1:{port}"
    recsys = Path(sys.executable).with_name("recsys")
    with tempfile.TemporaryDirectory() as log:
        server = subprocess.Popen([recsys, "serve", "--port", str(port), "--log", log], env=os.environ)
        try:
            wait_ready(site, server)
            check(site)
        finally:
            server.send_signal(signal.SIGINT)
            status = server.wait(timeout=30)
    assert status in (0, -signal.SIGINT, 130), f"the service ended with status {status}"
    print("demo-check: all checks passed")


def wait_ready(site: str, server: "subprocess.Popen[bytes]") -> None:
    """Wait until /readyz returns 200, at most two minutes."""
    deadline = time.monotonic() + 120
    while True:
        try:
            call(f"{site}/readyz")
            return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def check(site: str) -> None:
    """Check the page, a known user, the effect of an event, a cold user, similar items, text search and an image."""
    assert "<html" in call(f"{site}/")
    user = call(f"{site}/v1/users?limit=1")["users"][0]
    first = call(f"{site}/v1/users/{user}/recommendations?limit=10")
    shown = [item["item_id"] for item in first["items"]]
    assert len(set(shown)) == 10, shown
    assert first["source"] == "model", first["source"]
    assert first["degraded"] == [], first["degraded"]
    like = call(f"{site}/v1/about")["reactions"]["like"]
    event = {"user_id": user, "item_id": shown[0], **like, "request_id": first["request_id"]}
    result = call(f"{site}/v1/events", event)
    assert result["accepted"] == 1, result
    second = [item["item_id"] for item in call(f"{site}/v1/users/{user}/recommendations?limit=10")["items"]]
    assert shown[0] not in second, "the response holds an item that the user has seen"
    cold = call(f"{site}/v1/users/nobody-has-this-name/recommendations?limit=10")
    assert cold["source"] == "popular", cold["source"]
    near = call(f"{site}/v1/items/{shown[0]}/similar?limit=5")["items"]
    assert shown[0] not in [item["item_id"] for item in near]
    found = call(f"{site}/v1/search", {"text": "a journey into space", "limit": 5})["items"]
    assert len(found) == 5, found
    pictures = [item["image"] for item in first["items"] if item["image"]]
    if pictures:
        with urllib.request.urlopen(site + pictures[0], timeout=10) as picture:
            assert picture.headers["content-type"].startswith("image/"), picture.headers["content-type"]
    print(f"user {user}: {shown[:3]} … then {second[:3]} …; similar to {shown[0]}: {near[0]['item_id']} …;")
    print(f"a journey into space: {', '.join(item['title'] for item in found)};")
    print(f"{len(pictures)} of 10 with a picture; trace {first['trace']}")


if __name__ == "__main__":
    main()
