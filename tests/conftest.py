"""What every test shares: few threads, read once by OpenMP when the first library that uses it is imported."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest


@pytest.fixture
def large():
    """An embedding service of as many dimensions as Gemini has at least."""
    from fake_embeddings import FakeEmbeddings, G

    with FakeEmbeddings(G) as running:
        yield running


@pytest.fixture
def clock():
    """Time that passes by sleeping only."""
    from fake_embeddings import Clock

    return Clock()


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A database with MLflow's tables: making them takes seconds, copying none."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "template.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(template, tmp_path, monkeypatch):
    """A fresh MLflow in the working folder, which is a temporary one."""
    monkeypatch.chdir(tmp_path)  # artifacts lie in ./mlruns
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"
