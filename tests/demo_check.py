"""What `make demo-check` asks of the demo once it is trained: a page, answers, an event's effect, a clean end.

Run as a script from the folder that `recsys train` wrote its bundle in. Exits 0 and prints what was seen, or raises.
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


def ask(url: str, body: object | None = None) -> Any:
    """The answer of a GET, or of a POST where there is a body: JSON, or text where it is not."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read().decode()
        return json.loads(text) if "json" in answer.headers["content-type"] else text


def main() -> None:
    """Serve the current bundle on a free port and use it as a person would."""
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
    print("demo-check: everything answered as it should")


def wait_ready(site: str, server: "subprocess.Popen[bytes]") -> None:
    """Until /readyz says yes; at most two minutes."""
    until = time.monotonic() + 120
    while True:
        try:
            ask(f"{site}/readyz")
            return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.2)


def check(site: str) -> None:
    """A page; a known user; an event that changes the next answer; a stranger; similar items; words; a picture."""
    assert "<html" in ask(f"{site}/")
    user = ask(f"{site}/v1/users?limit=1")["users"][0]
    first = ask(f"{site}/v1/users/{user}/recommendations?k=10")
    shown = [item["item_id"] for item in first["items"]]
    assert len(set(shown)) == 10, shown
    assert first["source"] == "model", first["source"]
    assert first["degraded"] == [], first["degraded"]
    event = {"user_id": user, "item_id": shown[0], "event": "rating", "value": 5.0, "request_id": first["request_id"]}
    told = ask(f"{site}/v1/events", event)
    assert told["accepted"] == 1, told
    second = [item["item_id"] for item in ask(f"{site}/v1/users/{user}/recommendations?k=10")["items"]]
    assert shown[0] not in second, "a seen item came back"
    stranger = ask(f"{site}/v1/users/nobody-has-this-name/recommendations?k=10")
    assert stranger["source"] == "popular", stranger["source"]
    near = ask(f"{site}/v1/items/{shown[0]}/similar?k=5")["items"]
    assert shown[0] not in [item["item_id"] for item in near]
    found = ask(f"{site}/v1/search", {"text": "a journey into space", "k": 5})["items"]
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
