"""`make demo` serves at once, and serves image search without a restart once the images are embedded."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import polars as pl
import pytest
from media import picture
from service_harness import serving
from toy_data import toy_config, write_tables
from toy_service import ToyEyes, ToyWords, toy_settings
from typer.testing import CliRunner

from experiments import dataset
from features.arrays import Floats
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Limits
from features.content.spaces import Encoder, SpaceKey, unit
from features.store.memory import MemoryStore
from recsys.cli import main as cli
from serving.app import create_app

N = 24
GREYS = np.random.default_rng(0).integers(0, 256, (N, 8))
"""(N, 8): the grey of the eight stripes in each item's image; its title stands for them, too."""

ROTATION = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]


class Words(ToyWords):
    """Text encoder: the greys of the item named in a title, in a rotated space."""

    key = SpaceKey("texts", "1", 8)
    tasks = ("document", "query")

    def words(self, texts: Any) -> Floats:
        rows = [int(re.findall(r"\d+", text)[0]) for text in texts]
        return unit(((GREYS[rows] - 128) @ ROTATION).astype(np.float32))


class Eyes(ToyEyes):
    """Image encoder: the brightness of eight stripes."""

    key = SpaceKey("images", "1", 8)
    tasks = ("document", "query")

    def see(self, frames: list[Any]) -> Floats:
        return np.stack([f.reshape(224, 8, 28, 3).mean((0, 2, 3)) for f in frames]).astype(np.float32) - 128


def encoders(config: object, decoders: DecoderPool, limits: Limits, models: Path) -> dict[str, Encoder]:
    return {"text": Words(limits), "image": Eyes(decoders, limits)}


def stripes(row: int) -> bytes:
    grey = np.repeat(np.repeat(GREYS[row][None, :, None], 32, axis=0), 4, axis=1)
    return picture(np.repeat(grey, 3, axis=2).astype(np.uint8), "PNG")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configuration over tables of items with images, and encoders that read them."""
    monkeypatch.setattr(dataset, "open_encoders", encoders)
    write_tables(tmp_path / "data", n_items=N)
    items = pl.read_csv(tmp_path / "data" / "items.csv")
    items.with_columns(image=pl.format("{}.png", "item_id")).write_csv(tmp_path / "data" / "items.csv")
    for row in range(N):
        (tmp_path / "data" / f"i{row}.png").write_bytes(stripes(row))
    alignment = {"nested": [4, 8], "steps": 4}
    return toy_config(tmp_path, encoder={"kind": "builtin"}, alignment=alignment, training={"epochs": 1})


def recsys(*arguments: object) -> None:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture
def client(config: Path) -> Iterator[httpx2.Client]:
    """Client of a service whose bundle was trained before the images were embedded."""
    recsys("train", config, "--no-track")
    app = create_app(
        toy_settings(config.parent, follow_seconds=0.05), connect=lambda rules: MemoryStore(rules), encoders=encoders
    )
    with serving(app) as url, httpx2.Client(base_url=url, timeout=30) as client:
        yield client


def test_a_running_service_serves_images_once_they_are_embedded(config: Path, client: httpx2.Client) -> None:
    def search(row: int) -> Any:
        return client.post("/v1/search", files={"image": stripes(row)}).json()

    first = client.get("/v1/about").json()["bundle"]
    assert "cannot be searched by image" in search(0)["detail"]
    recsys("embed", config)
    recsys("train", config, "--no-track")
    deadline = time.monotonic() + 20
    while (second := client.get("/v1/about").json()["bundle"]) == first:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    responses = [search(row) for row in range(N)]
    assert [response["items"][0]["item_id"] for response in responses] == [f"i{row}" for row in range(N)]
    assert {response["bundle"] for response in responses} == {second}
    assert responses[0]["items"][0]["near"]["image"] == pytest.approx(1, abs=1e-2)
    words = client.post("/v1/search", json={"text": "Title 7"}).json()
    assert words["items"][0]["item_id"] == "i7"
    image = client.get(f"/media/{words['items'][0]['item_id']}")
    assert image.content == stripes(7)


STUB_COMMAND = """#!{python}
import os, sys, time
if sys.argv[1] in ("embed", "serve"):
    with open(sys.argv[1] + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(sys.argv[1] + ".part", sys.argv[1])
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        pass
"""


def test_ctrl_c_ends_the_background_embedding_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "ratings.csv").touch()
    command = tmp_path / ".venv" / "bin" / "recsys"
    command.parent.mkdir(parents=True)
    command.write_text(STUB_COMMAND.format(python=sys.executable))
    command.chmod(0o755)
    makefile = Path(__file__).parent.parent / "Makefile"
    make = subprocess.Popen(
        # a job in the background ignores SIGINT, and its children would, too
        ["env", "--default-signal=INT", "make", "-s", "-f", makefile, "-o", "install", "demo"],
        cwd=tmp_path,
        env=os.environ | {"RECSYS_DATA": str(tmp_path)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in ("embed", "serve")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(make.pid, signal.SIGINT)  # as a terminal does
    make.wait(60)
    for name in ("serve", "embed"):
        while is_alive(int((tmp_path / name).read_text())):
            assert time.monotonic() < deadline, f"{name} is still running"
            time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
