"""A trained bundle and a real service: puts and deletes survive SIGKILL and reach the next training."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import pytest
from item_server import encoders, steps, stripes
from service_harness import b64
from toy_data import toy_config, write_tables
from typer.testing import CliRunner

from experiments import dataset
from recsys.cli import main as cli

N, NEW = 24, 30
SERVER = Path(__file__).parent / "item_server.py"


def recsys(*arguments: object) -> None:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configuration of a trained bundle of items with titles, images and sounds."""
    monkeypatch.setattr(dataset, "open_encoders", encoders)
    write_tables(tmp_path / "data", n_items=N)
    items = pl.read_csv(tmp_path / "data" / "items.csv")
    media = {"image": pl.format("{}.png", "item_id"), "audio": pl.format("{}.wav", "item_id")}
    items.with_columns(**media).write_csv(tmp_path / "data" / "items.csv")
    for row in range(N):
        (tmp_path / "data" / f"i{row}.png").write_bytes(stripes(row))
        (tmp_path / "data" / f"i{row}.wav").write_bytes(steps(row))
    alignment = {"nested": [4, 8], "steps": 4}
    config = toy_config(tmp_path, encoder={"kind": "builtin"}, alignment=alignment, training={"epochs": 1})
    recsys("embed", config)
    recsys("train", config, "--no-track")
    return config


class Running:
    """A service in a separate process. `kill` sends SIGKILL, so it cannot clean up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.start()

    def start(self) -> None:
        with (self.folder / "service.log").open("ab") as response:
            command = [sys.executable, str(SERVER), str(self.folder), str(self.port)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=response, stderr=response, env=environment)
        deadline = time.monotonic() + 90
        while True:
            assert self.process.poll() is None, (self.folder / "service.log").read_text()
            assert time.monotonic() < deadline
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def put(self, item: str, row: int, **more: Any) -> None:
        fields = {"title": f"Title {row}", "image": b64(stripes(row)), "audio": b64(steps(row)), **more}
        response = self.client.put(f"/v1/items/{item}", json=fields)
        assert response.status_code == 202, response.text

    def first(self, row: int) -> list[str]:
        """The first result of a search by the title, the image and the sound of an item."""
        queries = ({"text": f"Title {row}"}, {"image": b64(stripes(row))}, {"audio": b64(steps(row))})
        return [self.search(query | {"limit": 1}).json()["items"][0]["item_id"] for query in queries]

    def search(self, query: dict[str, Any]) -> httpx2.Response:
        """The response to a search, retried while the service is busy (503)."""
        deadline = time.monotonic() + 60
        while (response := self.client.post("/v1/search", json=query)).status_code == 503:
            assert time.monotonic() < deadline, response.text
            time.sleep(0.1)
        return response

    def wait_for(self, item: str, row: int) -> None:
        """Wait deadline searches by title, image and sound find an item first."""
        deadline = time.monotonic() + 60
        while self.first(row) != [item] * 3:
            assert time.monotonic() < deadline, (self.first(row), self.client.get(f"/v1/items/{item}").text)
            time.sleep(0.02)
        assert self.client.get(f"/v1/items/{item}").json()["status"] == "live"

    def all_items(self, row: int) -> set[str]:
        """Item ids in the responses of all routes."""
        slates = [
            self.client.get("/v1/users/u1/recommendations?limit=100&placement=again"),
            self.client.get("/v1/users/nobody/recommendations?limit=100"),
            self.client.get("/v1/items/i0/similar?limit=100"),
            self.search({"text": f"Title {row}", "limit": 100}),
            self.search({"image": b64(stripes(row)), "audio": b64(steps(row)), "limit": 100}),
        ]
        assert {slate.status_code for slate in slates} == {200}
        return {item["item_id"] for slate in slates for item in slate.json()["items"]}


@pytest.fixture
def running(config: Path) -> Iterator[Running]:
    service = Running(config.parent)
    yield service
    service.kill()
    service.client.close()


@pytest.mark.soak
def test_items_survive_kill_9_and_the_next_training_knows_them(config: Path, running: Running) -> None:
    running.put("new", NEW, categories=["even"])
    running.wait_for("new", NEW)
    running.put("i3", NEW + 1)  # replaces an item of the bundle
    running.wait_for("i3", NEW + 1)
    assert "new" in running.all_items(NEW)
    slates = [
        running.client.get("/v1/users/u1/recommendations?limit=100&placement=again"),
        running.client.get("/v1/users/nobody/recommendations?limit=100"),
        running.client.get("/v1/items/i0/similar?limit=100"),
    ]
    assert all("new" in {item["item_id"] for item in slate.json()["items"]} for slate in slates)
    response = running.client.delete("/v1/items/new")
    assert response.status_code == 200
    assert "new" not in running.all_items(NEW)

    running.put("kept", NEW)
    running.kill()  # directly after the 202
    running.start()
    assert "new" not in running.all_items(NEW)
    running.wait_for("kept", NEW)
    running.wait_for("i3", NEW + 1)
    assert running.client.delete("/v1/items/i5").status_code == 200
    running.kill()
    running.start()
    assert not {"new", "i5"} & running.all_items(5)

    before = running.client.get("/v1/about").json()["bundle"]
    recsys("embed", config)
    recsys("train", config, "--no-track")
    deadline = time.monotonic() + 60
    while running.client.get("/v1/about").json()["bundle"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    catalog = pl.read_parquet(config.parent / "bundles" / "current" / "items.parquet")
    rows = {row["item_id"]: row for row in catalog.to_dicts()}
    assert [rows[item]["available"] for item in ("kept", "i3", "new", "i5")] == [True, True, False, False]
    assert Path(rows["kept"]["image"]).read_bytes() == stripes(NEW)
    assert (rows["i3"]["title"], rows["i3"]["categories"]) == (f"Title {NEW + 1}", None)
    running.wait_for("kept", NEW)
    assert not {"new", "i5"} & running.all_items(NEW)
