"""Vectors as parquet: those that the service uses, with the key of their space."""

import json

import numpy as np
import polars as pl
import pytest
from toy_data import Lines, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.pipelines import export_vectors as module
from experiments.pipelines.batch_slates import write_slates
from experiments.pipelines.export_vectors import export_vectors
from experiments.pipelines.train import train
from experiments.tracking.mlflow import NullTracker
from features.erasure.erase import Scope, erase_user
from features.errors import ConfigError, FileError
from features.log.event_log import EventLog
from features.progress import silent
from recsys.bundle.io import TOWERS, behaviour_space, load_bundle
from recsys.cli.main import app


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """40 users, 12 items; "looker" has looked at an item and taken none."""
    folder = tmp_path_factory.mktemp("vectors")
    write_tables(folder / "data", length=7)
    path = folder / "data" / "events.csv"
    events = pl.read_csv(path)
    looked = events.head(1).with_columns(pl.lit("looker").alias("user_id"), pl.lit("look").alias("event"))
    pl.concat([events, looked]).write_csv(path)
    config = load_config(toy_config(folder), {"RECSYS__DATA__LOG": str(folder / "log")})
    EventLog(folder / "log").close()
    bundle, _ = train(config, NullTracker(), Lines())
    return load_bundle(bundle), load_dataset(config), folder


def facts(path):
    return json.loads(pl.read_parquet_metadata(path)["recsys.vectors"])


def test_the_vectors_are_those_of_the_service(trained, tmp_path, monkeypatch):
    bundle, dataset, _ = trained
    monkeypatch.setattr(module, "USERS_AT_ONCE", 7)
    report = export_vectors(bundle, tmp_path, progress=silent)
    assert (report.items, report.users, report.cold) == (12, 40, 1)
    items, users = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("items", "users"))
    d = report.dimension
    assert items.schema == {"item_id": pl.String, "vector": pl.Array(pl.Float32, d)}
    assert users.schema == {"user_id": pl.String, "vector": pl.Array(pl.Float32, d)}
    assert items["item_id"].to_list() == list(bundle.catalog.ids.ids)
    np.testing.assert_array_equal(items["vector"].to_numpy(), bundle.recommender.vectors)
    assert users["user_id"].to_list() == sorted({*dataset.users.ids} - {"looker"})
    row = dataset.users.rows(["u3"])
    rows = bundle.catalog.ids.rows(dataset.catalog.ids.ids)
    assert rows.tolist() == list(range(12))
    states = dataset.events.states(row, np.array([dataset.events.latest + 1]))
    expected = bundle.recommender.towers.user_vectors(states, bundle.recommender.vectors)[0]
    np.testing.assert_allclose(users.filter(pl.col("user_id") == "u3")["vector"][0].to_numpy(), expected, atol=1e-5)
    for name in ("items", "users"):
        written = facts(tmp_path / f"{name}.parquet")
        assert written["bundle"] == bundle.fingerprint
        assert written["space"]["dimension"] == d
        assert written["space"]["revision"] == behaviour_space(bundle.path / TOWERS, d).revision
        assert written["until"] == dataset.events.latest + 1
    assert {path.name for path in tmp_path.iterdir()} == {"items.parquet", "users.parquet"}


def test_the_first_dimensions(trained, tmp_path):
    bundle, _, _ = trained
    export_vectors(bundle, tmp_path, dimension=3, progress=silent)
    items = pl.read_parquet(tmp_path / "items.parquet")["vector"].to_numpy()
    np.testing.assert_array_equal(items, bundle.recommender.vectors[:, :3])
    assert pl.read_parquet(tmp_path / "users.parquet")["vector"].to_numpy().shape == (40, 3)
    assert facts(tmp_path / "users.parquet")["space"] | {"revision": ""} == {
        "model": "two towers",
        "revision": "",
        "dimension": 3,
        "prompt": "",
        "preprocessing": "",
        "normalisation": "",
    }
    with pytest.raises(ConfigError, match=r"^--dimension 999: the vectors of .* have 8; choose 1 to 8$"):
        export_vectors(bundle, tmp_path, dimension=999, progress=silent)


def test_the_command(trained, tmp_path):
    bundle, _, folder = trained
    arguments = ["vectors", "export", "--out", str(tmp_path), "--bundles", str(folder / "bundles")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "12 items and 40 users, 8 dimensions\n1 users have no positive event" in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--dimension", "2", "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["dimension"] == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="the folder of the vectors cannot be written"):
        export_vectors(bundle, tmp_path / "file", progress=silent)


def test_a_user_who_is_erased_is_in_no_vector_and_no_slate(trained, tmp_path):
    bundle, _, folder = trained
    vectors, slates = tmp_path / "vectors", tmp_path / "slates"
    export_vectors(bundle, vectors, progress=silent)
    write_slates(bundle, slates, k=3, shard=16, part=(1, 3), progress=silent)  # one shard of three
    scope = Scope(folder / "log", bundle.data, (), (slates,), (vectors,), (folder / "bundles",))
    assert erase_user(scope, "u3").n_left == 0
    assert "u3" not in pl.read_parquet(vectors / "users.parquet")["user_id"].to_list()
    assert facts(vectors / "users.parquet")["bundle"] == bundle.fingerprint
    for part in (1, 2, 3):  # the job goes on where it was, with the same users in each shard
        write_slates(bundle, slates, k=3, shard=16, part=(part, 3), progress=silent)
    rest = pl.concat([pl.read_parquet(path) for path in sorted(slates.glob("part-*.parquet"))])
    assert rest["user_id"].unique(maintain_order=True).to_list() == sorted(
        {"looker", *(f"u{n}" for n in range(40))} - {"u3"}
    )
    assert rest.group_by("user_id").len()["len"].unique().to_list() == [3]
    export_vectors(bundle, vectors, progress=silent)
    assert "u3" not in pl.read_parquet(vectors / "users.parquet")["user_id"].to_list()


def test_a_shard_whose_users_are_all_erased_is_empty(trained, tmp_path):
    bundle, _, folder = trained
    write_slates(bundle, tmp_path, k=3, shard=1, part=(1, 41), progress=silent)
    second = pl.read_parquet(tmp_path / "users.parquet")["user_id"][1]
    erase_user(Scope(folder / "log", bundle.data, (), (tmp_path,)), second)
    assert write_slates(bundle, tmp_path, k=3, shard=1, part=(2, 41), progress=silent).rows == 0
    first, empty = (pl.read_parquet(tmp_path / f"part-0000{number}.parquet") for number in (0, 1))
    assert (len(empty), empty.schema) == (0, first.schema)
