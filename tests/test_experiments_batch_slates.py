"""The batch job of slates: equal to single recommendations, resumed after a kill, one job for each folder."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from toy_data import Lines, toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.pipelines import batch_slates as batch
from experiments.pipelines.batch_slates import write_slates
from experiments.pipelines.train import train
from experiments.tracking.mlflow import NullTracker
from features.errors import ConfigError, FileError
from features.ids import IdMap
from features.interactions import Ragged
from features.progress import silent
from recsys.bundle.io import load_bundle
from recsys.cli.main import app
from recsys.interfaces import Candidates


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """40 users, 12 items; i4 and i5 are variants of one product, i7 is unavailable, i8 is published in 2999."""
    folder = tmp_path_factory.mktemp("batch")
    write_tables(folder / "data", length=7)
    path = folder / "data" / "items.csv"
    name = pl.col("item_id")
    pl.read_csv(path).with_columns(
        pl.when(name.is_in(["i4", "i5"])).then(pl.lit("g")).alias("group_id"),
        (name != "i7").alias("available"),
        pl.when(name == "i8").then(pl.lit("2999-01-01")).alias("published_at"),
    ).write_csv(path)
    config = load_config(toy_config(folder), {})
    bundle, _ = train(config, NullTracker(), Lines())
    return load_bundle(bundle), load_dataset(config)


def read(folder):
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet"))])


@pytest.mark.parametrize("placement", ["home", "again"])
def test_each_slate_equals_the_recommendation_for_that_user_alone(trained, tmp_path, placement):
    bundle, dataset = trained
    report = write_slates(bundle, tmp_path, k=5, placement=placement, shard=16, progress=silent)
    assert (report.shards, report.existing_shards, report.users) == (3, 0, 40)
    table = read(tmp_path)
    assert report.rows == len(table)
    assert table.get_column("user_id").unique(maintain_order=True).to_list() == sorted(dataset.users.ids)
    groups = {"i4": "g", "i5": "g"}
    for user in dataset.users.ids:
        row = dataset.users.row(user)
        state = dataset.events.states(np.array([row]), np.array([dataset.events.latest + 1]))
        events_of_user = slice(int(state.items.begin[0]), int(state.items.end[0]))
        rows = bundle.catalog.ids.rows([dataset.catalog.ids.ids[item] for item in state.items.flat[events_of_user]])
        in_bundle_rows = type(state)(
            state.users,
            state.as_of,
            Ragged.of([rows.tolist()]),
            state.times[events_of_user],
            state.positive[events_of_user],
            state.seen[events_of_user],
        )
        seen = None if placement == "again" else in_bundle_rows.seen_items()
        for n_candidates in (5, 12):  # all items, when variants leave fewer than 5 products
            allowed = ~np.isin(bundle.catalog.ids.ids, ["i7", "i8"])
            found = bundle.recommender.recommend(in_bundle_rows, n_candidates, allow=allowed, exclude=seen)
            expected, products = [], set()
            for item in [bundle.catalog.ids.ids[r] for r in found.rows[0] if r >= 0]:
                if groups.get(item, item) not in products:
                    products.add(groups.get(item, item))
                    expected.append(item)
            if len(expected) >= 5:
                break
        slate = table.filter(pl.col("user_id") == user)
        assert slate.get_column("item_id").to_list() == expected[:5]
        assert slate.get_column("position").to_list() == list(range(1, len(slate) + 1))
        assert set(slate.get_column("source")) <= {"model"}
        assert "i7" not in expected


def test_a_killed_job_is_resumed_and_parts_share_a_folder(trained, tmp_path, monkeypatch):
    bundle, _ = trained
    complete = tmp_path / "complete"
    write_slates(bundle, complete, k=3, shard=8, progress=silent)
    shared, calls = tmp_path / "shared", []
    original = batch._slates

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(batch, "_slates", killed)
    with pytest.raises(KeyboardInterrupt):
        write_slates(bundle, shared, k=3, shard=8, progress=silent)
    assert len(list(shared.glob("part-*"))) == 2
    first = write_slates(bundle, shared, k=3, part=(1, 2), shard=8, progress=silent)
    second = write_slates(bundle, shared, k=3, part=(2, 2), shard=8, progress=silent)
    assert (first.shards, first.existing_shards, second.shards, second.existing_shards) == (3, 1, 2, 1)
    assert len(calls) == 3 + 3  # only the killed shard is computed again
    assert read(shared).equals(read(complete))
    assert sorted(path.name for path in shared.iterdir()) == sorted(path.name for path in complete.iterdir())


def with_a_new_user(dataset):
    """The data set after the service has logged one more event, of a new user."""
    events = dataset.events
    extended = replace(
        events,
        users=np.append(events.users, events.n_users),
        items=np.append(events.items, 0),
        times=np.append(events.times, events.latest + 10),
        positive=np.append(events.positive, True),
        seen=np.append(events.seen, True),
        n_users=events.n_users + 1,
        limits=None,
        places=None,
    )
    return replace(dataset, users=IdMap((*dataset.users.ids, "a new user")), events=extended, hash="another")


def test_events_logged_during_a_job_belong_to_the_next_job(trained, tmp_path, monkeypatch):
    bundle, dataset = trained
    write_slates(bundle, tmp_path / "before", k=3, shard=8, progress=silent)
    write_slates(bundle, tmp_path / "half", k=3, shard=8, part=(1, 2), progress=silent)
    extended = with_a_new_user(dataset)
    monkeypatch.setattr(batch, "load_dataset", lambda *_: extended)
    write_slates(bundle, tmp_path / "half", k=3, shard=8, part=(2, 2), progress=silent)
    assert read(tmp_path / "half").equals(read(tmp_path / "before"))


def test_of_two_runs_that_start_together_one_sets_users_and_time(trained, tmp_path, monkeypatch):
    bundle, dataset = trained
    later = with_a_new_user(dataset)
    local, barrier, write = threading.local(), threading.Barrier(2, timeout=60), pl.DataFrame.write_parquet
    monkeypatch.setattr(batch, "load_dataset", lambda *_: local.dataset)

    def run(folder, data, part=(1, 1)):
        local.dataset = data
        write_slates(bundle, folder, k=3, shard=8, part=part, progress=silent)

    for folder, data in (("now", dataset), ("then", later)):
        run(tmp_path / folder, data)

    def write_and_wait(frame, file, **options):
        write(frame, file, **options)
        if file.name.endswith("users.parquet"):
            barrier.wait()  # both runs have seen no manifest, and neither has moved its file into place

    monkeypatch.setattr(pl.DataFrame, "write_parquet", write_and_wait)
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(run, tmp_path / "once", data, (i, 2)) for i, data in ((1, dataset), (2, later))]
        [part.result() for part in parts]
    first = json.loads((tmp_path / "once" / "manifest.json").read_text())
    alone = tmp_path / ("now" if first["until"] == dataset.events.latest + 1 else "then")
    assert first == json.loads((alone / "manifest.json").read_text())
    assert pl.read_parquet(tmp_path / "once" / "users.parquet").equals(pl.read_parquet(alone / "users.parquet"))
    rows = ["user_id", "position"]
    assert read(tmp_path / "once").select(rows).equals(read(alone).select(rows))
    assert {path.name for path in (tmp_path / "once").iterdir()} == {path.name for path in alone.iterdir()}


def test_a_users_table_of_another_origin_is_not_overwritten(trained, tmp_path):
    pl.DataFrame({"user_id": ["mine"]}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(ConfigError, match=r"users\.parquet is not of slates"):
        write_slates(trained[0], tmp_path, k=3, progress=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_slates_are_full_when_many_items_are_variants_of_one_product(trained):
    bundle, dataset = trained
    frame = bundle.catalog.frame.with_columns(
        pl.when(pl.col("item_id").is_in(["i0", "i11"])).then("item_id").otherwise(pl.lit("g")).alias("group_id")
    )
    three_products = replace(bundle, catalog=replace(bundle.catalog, frame=frame))
    names = pl.Series("user_id", sorted(dataset.users.ids))
    in_bundle_rows = batch.load_served(bundle, silent)
    until = in_bundle_rows.events.latest + 1
    table = batch._slates(three_products, in_bundle_rows, names, until, 3, repeats=True)
    assert table.group_by("user_id").len().get_column("len").to_list() == [3] * 40


def test_a_folder_of_another_job_is_refused(trained, tmp_path):
    bundle, _ = trained
    write_slates(bundle, tmp_path, k=3, progress=silent)
    assert json.loads((tmp_path / "manifest.json").read_text())["bundle"] == bundle.fingerprint
    with pytest.raises(ConfigError, match=r"another job are there \(k 3 there, 4 here\)"):
        write_slates(bundle, tmp_path, k=4, progress=silent)
    with pytest.raises(ConfigError, match="placement 'nowhere': the bundle has home, again"):
        write_slates(bundle, tmp_path, k=3, placement="nowhere", progress=silent)
    with pytest.raises(ConfigError, match="part 3/2"):
        write_slates(bundle, tmp_path, k=3, part=(3, 2), progress=silent)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="slates cannot be written"):
        write_slates(bundle, tmp_path / "file" / "in", k=3, progress=silent)


def test_the_command_writes_slates(trained, tmp_path):
    bundle, _ = trained
    root = str(bundle.path.parent)
    command = ["slates", str(tmp_path / "out"), "--bundles", root, "--placement", "again", "--k", "2"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1])["users"] == 40
    assert len(read(tmp_path / "out")) == 80
    done = CliRunner().invoke(app, [*command, "--part", "one"])
    assert isinstance(done.exception, ConfigError)


def test_slates_without_a_row_say_why(trained, tmp_path):
    bundle, dataset = trained
    nothing = replace(dataset, catalog=replace(dataset.catalog, available=np.zeros(len(dataset.catalog), bool)))
    until = dataset.events.latest + 1
    assert batch._no_rows(nothing, until, "home").startswith("no item is available and published: see `available`")
    assert "the users have seen all items, and placement home has no repeats" in batch._no_rows(
        dataset, until, "home"
    )
    assert write_slates(bundle, tmp_path, k=5, progress=silent).note == ""


def test_the_manifest_of_a_job_and_what_the_command_says(trained, tmp_path):
    bundle, dataset = trained
    out = tmp_path / "out"
    command = ["slates", str(out), "--bundles", str(bundle.path.parent), "--k", "2", "--placement", "again"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.stdout == f"{out}: 80 rows for 40 users written; 0 of 1 shards existed before\n"
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.stdout == f"{out}: 0 rows for 0 users written; 1 of 1 shards existed before\n"
    assert json.loads((out / "manifest.json").read_text()) == {
        "bundle": bundle.fingerprint,
        "placement": "again",
        "k": 2,
        "shard": 4096,
        "data_hash": dataset.hash,
        "users": 40,
        "until": dataset.events.latest + 1,
    }
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "part-00000.parquet", "users.parquet"]
    table = read(out)
    assert table.schema == {
        "user_id": pl.String,
        "position": pl.Int32,
        "item_id": pl.String,
        "score": pl.Float32,
        "source": pl.String,
    }
    assert table.filter(user_id="u0").get_column("position").to_list() == [1, 2]
    assert batch.USERS_AT_ONCE == 256


def test_four_times_as_many_candidates_are_asked_for_until_a_slate_is_full(trained):
    """All items but i7 and i8 are variants of one product, or of a second one at the end of the list."""
    bundle, dataset = trained[0], batch.load_served(trained[0], silent)
    asked = []

    class Recommender:
        def recommend(self, states, k, *, allow, exclude):
            asked.append((len(states), k))
            rows = np.flatnonzero(allow)[:k]
            padded = np.full((len(states), k), -1)
            padded[:, : len(rows)] = rows
            return Candidates(padded, np.where(padded >= 0, -padded, -np.inf).astype(np.float32))

    n = len(bundle.catalog)
    groups = np.zeros(n, np.int64)
    until = dataset.events.latest + 1
    groups[np.flatnonzero(dataset.catalog.available & dataset.catalog.published_by(until))[-1]] = 1
    stand_in: Any = SimpleNamespace(catalog=bundle.catalog, recommender=Recommender())
    users = pl.Series(dataset.users.ids[:3])
    states = dataset.events.states(np.arange(3), np.full(3, until))
    table = batch._block(stand_in, dataset, users, states, groups, 2, True)
    assert asked == [(3, 2), (3, 8), (3, 12)]
    assert table.get_column("position").to_list() == [1, 2] * 3
    asked.clear()
    table = batch._block(stand_in, dataset, users, states, groups, 1, True)
    assert asked == [(3, 1)]


RULED = """
rules:
- name: first
  pin: {item: i3, position: 1}
- name: never
  exclude: {items: [i1, i2]}
"""


def test_slates_follow_the_rules_of_a_shop(trained, tmp_path):
    bundle, _ = trained
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULED)
    write_slates(bundle, tmp_path / "plain", k=4, placement="again", progress=silent)
    write_slates(bundle, tmp_path / "ruled", k=4, placement="again", rules=rules, progress=silent)
    plain, ruled = read(tmp_path / "plain"), read(tmp_path / "ruled")
    assert len(ruled) == len(plain) == 160
    assert ruled.filter(position=1).get_column("item_id").unique().to_list() == ["i3"]
    assert not {"i1", "i2"} & set(ruled.get_column("item_id"))
    assert {"i1", "i2"} & set(plain.get_column("item_id"))
    write_slates(bundle, tmp_path / "ruled", k=4, placement="again", rules=rules, progress=silent)  # the same job
    with pytest.raises(ConfigError, match=r"another job are there \(rules \w+ there, None here\)"):
        write_slates(bundle, tmp_path / "ruled", k=4, placement="again", progress=silent)
    rules.write_text("rules:\n- {name: a, pin: {item: i7, position: 1}}")
    with pytest.raises(ConfigError, match=r"rules\.yaml line 2: rule 'a' is not applied: it pins item i7"):
        write_slates(bundle, tmp_path / "other", k=4, rules=rules, progress=silent)
    command = ["slates", str(tmp_path / "x"), "--bundles", str(bundle.path.parent), "--rules", "no.yaml"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, ConfigError)
