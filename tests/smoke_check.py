"""What `make smoke` asks of an installed wheel: every module is imported; the demo is trained for a pass and served.

Run in an empty folder with the Python that the wheel is installed for. Exits 0 and prints what it saw, or raises.
"""

import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

RECSYS = Path(sys.executable).with_name("recsys")
PEERS = "experiments.bench.peers"
"""Scripts for environments of their own."""


def import_all() -> int:
    """Import every module from the wheel; returns how many there are."""
    count = 0
    for name in ("features", "recsys", "serving", "experiments"):
        package = importlib.import_module(name)
        assert Path(str(package.__file__)).is_relative_to(sys.prefix), f"{name} comes from {package.__file__}"
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.startswith(f"{PEERS}."):
                importlib.import_module(module.name)
                count += 1
    return count


def serve() -> list[str]:
    """Serve the bundle on a free port and ask for the recommendations of a user."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([RECSYS, "serve", "--port", str(port), "--log", "log"])
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/users?limit=1", timeout=5) as response:
                    user = json.load(response)["users"][0]
                break
            except (urllib.error.URLError, ConnectionError, IndexError):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        url = f"http://127.0.0.1:{port}/v1/users/{user}/recommendations?limit=3"
        with urllib.request.urlopen(url, timeout=10) as response:
            answer = json.load(response)
        assert answer["source"] == "model", answer
        return [item["title"] for item in answer["items"]]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def main() -> None:
    """Import, train, serve."""
    assert not any(Path().iterdir()), "run it in an empty folder"
    modules = import_all()
    environment = os.environ | {
        "RECSYS__TRAINING__EPOCHS": "1",
        "RECSYS__RERANKER__GROUPS": "300",
        "RECSYS__BASELINES": '{"popular": {}}',
    }
    subprocess.run([RECSYS, "data", "get", "demo"], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run([RECSYS, "train", "demo", "--no-track"], check=True, env=environment, stdout=subprocess.DEVNULL)
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"smoke: Python {version}: {modules} modules imported; trained and served: {', '.join(serve())}")


if __name__ == "__main__":
    main()
