"""Shared fixtures, and a small number of threads that do not spin. OpenMP reads both once, when it is loaded."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # other jobs on the machine must not fail a test
settings.load_profile("untimed")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--use-fake-device-for-media-stream",  # a tone instead of a microphone
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def large():
    """A fake embedding service with the smallest number of dimensions that Gemini offers."""
    from fake_embeddings import FakeEmbeddings, G

    with FakeEmbeddings(G) as running:
        yield running


@pytest.fixture
def clock():
    """A clock that advances only when the code sleeps."""
    from fake_embeddings import Clock

    return Clock()


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A database file with the tables of MLflow. Creating the tables takes seconds; copying the file does not."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "template.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(template, tmp_path, monkeypatch):
    """The address of an empty MLflow database in the working folder, which is a temporary folder."""
    monkeypatch.chdir(tmp_path)  # artifacts are stored in ./mlruns
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is there already."""
    reason = "playwright is not installed: pip install playwright"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    if CHROMIUM is None:
        pytest.skip("chromium is not on PATH")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()
