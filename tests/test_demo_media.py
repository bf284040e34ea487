"""The configuration of `make demo-media` from a package to the answers of a service."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from service_harness import serving
from stamp_package import NAME, STAMPS, deb
from test_demo import N, encoders, recsys, stripes
from toy_service import toy_settings

from experiments import dataset
from features.store.memory import MemoryStore
from serving.app import create_app

SETTINGS = {
    "DATA__PATH": "data",
    "DATA__LOG": "log",
    "BUNDLES": "bundles",
    "CACHE": "cache",
    "ALIGNMENT": "{nested: [4, 8], steps: 4}",
    "TOWERS": "{dimension: 8, layers: 1, heads: 2, history: 20}",
    "TRAINING": "{epochs: 1}",
    "RERANKER": "null",
    "BASELINES": "{popular: {}}",
}
"""What makes the demo small."""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Client of a service whose bundle was trained on N stamps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset, "open_encoders", encoders)
    files: dict[str, bytes] = {}
    for row in range(N):
        place = f"{STAMPS}/{'animals' if row % 2 else 'tools'}/s{row}"
        files |= {f"{place}.png": stripes(row), f"{place}.txt": f"Stamp {row}.\nde.utf8=Marke {row}\n".encode()}
    monkeypatch.setenv("RECSYS__DATA__ORIGIN", str(deb(tmp_path / f"{NAME}.deb", files)))
    for key, value in SETTINGS.items():
        monkeypatch.setenv(f"RECSYS__{key}", value)
    recsys("data", "get", "demo-media")
    recsys("embed", "demo-media")
    recsys("train", "demo-media", "--no-track")
    app = create_app(toy_settings(tmp_path), connect=lambda rules: MemoryStore(rules), encoders=encoders)
    with serving(app) as url, httpx2.Client(base_url=url, timeout=30) as client:
        yield client


def test_from_a_package_to_a_service_that_says_that_its_shoppers_are_simulated(client: httpx2.Client) -> None:
    about = client.get("/v1/about").json()
    assert about["simulated"] is True
    assert about["items"] == N
    assert about["reactions"]["like"] == {"event": "click", "value": None}
    found = client.post("/v1/search", files={"image": stripes(7)}).json()["items"][0]
    assert (found["item_id"], found["title"]) == ("animals-s7", "Stamp 7")
    assert client.get("/media/animals-s7").content == stripes(7)
    assert client.post("/v1/search", json={"text": "Stamp 4"}).json()["items"][0]["item_id"] == "tools-s4"
