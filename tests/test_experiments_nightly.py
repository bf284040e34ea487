"""The nightly loop on a tiny data set: what is published, what stays served, what a night leaves when it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from toy_data import DAY, START, Lines, toy_config

from experiments.config import load_config
from experiments.evaluation.decision import Decision
from experiments.pipelines import held_back, nightly
from experiments.pipelines.night_report import FAILED, NOTHING_NEW, PUBLISHED, REFUSED
from experiments.pipelines.train import train
from experiments.preflight import publishing
from experiments.tracking.mlflow import NullTracker
from features.errors import ConfigError, DataError, FileError, StoreError
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from recsys.bundle.formats import read_manifest
from recsys.bundle.io import load_bundle, trained_events
from recsys.bundle.registry import current_bundle, list_bundles
from recsys.cli.main import main
from recsys.retrieval.index import Index

ROOT = Path(__file__).parent.parent
BUNDLES = Path("bundles")
ITEMS, USERS = 40, 40


def write_days(days):
    """Tables of so many days: each user takes two items a day, always the next ones of a ring."""
    data = Path("data")
    data.mkdir(exist_ok=True)
    names = [f"i{i}" for i in range(ITEMS)]
    categories = [f'["{"odd" if i % 2 else "even"}"]' for i in range(ITEMS)]
    pl.DataFrame({"item_id": names, "title": names, "categories": categories}).write_csv(data / "items.csv")
    user, day, event = (a.ravel() for a in np.meshgrid(range(USERS), range(days), range(2), indexing="ij"))
    first = np.random.default_rng(0).integers(0, ITEMS, USERS)
    micros = START + day * DAY + (user * 60 + event * 40_000) * 10**6
    pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"i{i}" for i in (first[user] + 2 * day + event) % ITEMS],
            "event": "take",
            "timestamp": pl.Series(micros).cast(pl.Datetime("us", "UTC")).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ"),
        }
    ).write_csv(data / "events.csv")


def config(**sections):
    """The configuration of the working folder: towers alone."""
    training = {"epochs": 4, "learning_rate": 0.01, "batch_events": 16}
    settings: dict[str, object] = {"reranker": None, "baselines": {"popular": {}}, "training": training}
    return load_config(toy_config(Path(), **{**settings, **sections}), {})


def night(tracker=None, reporter=None, *, full_every=7, redis_url=None, **sections):
    tracker, reporter = tracker or NullTracker(), reporter or Lines()
    return nightly.nightly(config(**sections), tracker, reporter, redis_url=redis_url, full_every=full_every)


def served():
    return load_bundle(current_bundle(BUNDLES))


def learned():
    """Number of events that the served bundle was trained on."""
    keys = trained_events(served())
    assert keys is not None
    return len(keys)


def written():
    return json.loads((BUNDLES / "nightly.json").read_text())


class Recorder(NullTracker):
    """Keeps tags, figures and how the run ended."""

    def __init__(self):
        self.kept, self.figures, self.failed = {}, {}, None

    def start(self, experiment, parameters, tags):
        self.kept |= tags

    def tags(self, values):
        self.kept |= values

    def metrics(self, values, step=None):
        self.figures |= values

    def finish(self, failed=False, pruned=False):
        self.failed = failed


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder after its first night, with six days of events: (folder, report, tracker)."""
    folder, back, tracker = tmp_path_factory.mktemp("first"), Path.cwd(), Recorder()
    os.chdir(folder)
    try:
        write_days(6)
        report = night(tracker, training={"epochs": 1, "learning_rate": 0.003})  # and something left to learn
    finally:
        os.chdir(back)
    return folder, report, tracker


@pytest.fixture
def six(first, tmp_path, monkeypatch):
    """A copy of the folder after the first night, as the working folder; the fingerprint that is served."""
    shutil.copytree(first[0], tmp_path / "run", symlinks=True)
    monkeypatch.chdir(tmp_path / "run")
    return first[1].current


@pytest.fixture
def seven(six):
    """The same, with the events of one more day."""
    write_days(7)
    return six


def test_the_first_night_trains_from_scratch_and_publishes(first):
    folder, report, tracker = first
    assert (report.status, report.kind, report.served) == (PUBLISHED, "full", None)
    bundle = load_bundle(current_bundle(folder / BUNDLES))
    assert bundle.fingerprint == report.current
    assert "from" not in bundle.manifest
    assert bundle.recommender.fitted_until == START + 5 * DAY + (39 * 60 + 40_000) * 10**6
    assert [row["name"] for row in report.tables[0]["rows"]] == ["popular", "two towers"]
    assert [(step["step"], step["status"], step["note"]) for step in report.steps] == [
        ("refresh", "skipped", "REDIS_URL is not set"),
        ("embed", "skipped", "encoder is null"),
        ("read", "done", ""),
        ("train", "done", ""),
        ("publish", "done", ""),
    ]
    assert (tracker.kept["nightly"], tracker.kept["nightly.current"]) == (PUBLISHED, report.current)
    assert "data_hash" in tracker.kept
    assert report.data[:2] == [
        "items: 40 rows read, 40 kept, 0 rejected",
        "events: 480 rows read, 480 kept, 0 rejected",
    ]
    assert tracker.failed is False


def test_a_night_with_new_events_continues_judges_and_publishes(seven):
    tracker, lines = Recorder(), Lines()
    report = night(tracker, lines)
    assert (report.status, report.kind, report.served) == (PUBLISHED, "warm start", seven)
    bundle = served()
    assert bundle.fingerprint == report.current != seven
    assert (bundle.manifest["from"], bundle.manifest["warm_starts"]) == (seven, 1)
    # half of the new day is held back while the candidate is judged; what is served knows all 560 events
    assert (report.held_back["events"], report.held_back["users"]) == (40, 40)
    assert report.held_back["from"] == "2024-01-07T11:06:40.000000 UTC"
    assert learned() == 560
    assert bundle.recommender.fitted_until == START + 6 * DAY + (39 * 60 + 40_000) * 10**6
    # both were judged on the same events in both placements, with the same split
    assert [table["placement"] for table in report.tables] == ["home", "again"]
    assert bundle.manifest["metrics"] == report.tables
    for table in report.tables:
        assert [row["name"] for row in table["rows"]] == [f"served {seven}", "two towers"]
        assert (table["ours"], table["users"], table["events"]) == ("two towers", 40, 40)
        assert table["note"] == (
            "held back, prequential: models see only events before 2024-01-07T11:06:40.000000 UTC"
        )
        assert table["split_hashes"] == [report.held_back["split_hashes"][table["placement"]]]
    assert bundle.manifest["split_hash"] == report.tables[0]["split_hashes"][0]
    assert bundle.manifest["decision"] == json.loads(json.dumps(report.decision))
    assert written() == json.loads(json.dumps(report.__dict__))
    assert report.lines()[-1] == (
        "judged without the 40 positive events from 2024-01-07T11:06:40.000000 UTC on; published with all events"
    )
    assert set(tracker.figures) >= {"home.ndcg_change", "again.ndcg_change"}
    assert tracker.kept["nightly.reason"] == report.reason


def test_a_night_without_new_events_says_so(six):
    report = night()
    assert (report.status, report.current) == (NOTHING_NEW, six)
    assert report.lines()[0] == "toy: nothing new: no positive event is new since the served bundle was trained"
    assert list_bundles(BUNDLES) == [current_bundle(BUNDLES)]


def broken(monkeypatch):
    """The training gives the items random vectors."""
    real = held_back.continue_training

    def continue_badly(*arguments):
        fitted = real(*arguments)
        vectors = np.random.default_rng(0).normal(size=fitted.recommender.vectors.shape).astype(np.float32)
        worse = replace(fitted.recommender, vectors=vectors, index=Index(vectors))
        return replace(fitted, recommender=worse, retrieval=worse)

    monkeypatch.setattr(held_back, "continue_training", continue_badly)


def test_a_worse_model_is_not_published_and_the_next_night_learns_its_events(seven, monkeypatch):
    with monkeypatch.context() as patch:
        broken(patch)
        report = night()
    assert (report.status, report.current) == (REFUSED, seven)
    assert report.reason.startswith("worse than what is served: home: NDCG@10 -0.")
    assert [step["step"] for step in report.steps][-1] == "compare"
    assert served().fingerprint == seven
    assert list_bundles(BUNDLES) == [current_bundle(BUNDLES)]
    write_days(8)
    report = night()
    assert report.status == PUBLISHED
    assert report.held_back["events"] == 80  # of two days: half of them, which is the last day
    assert learned() == 640


def test_too_few_new_users_publish_nothing(six):
    with Path("data/events.csv").open("a") as file:
        file.writelines(f"u{n},i{n},take,2024-01-08T0{n}:00:00Z\n" for n in range(9))
    report = night()
    assert (report.status, report.current, report.kind) == (REFUSED, six, "")
    assert report.reason == "too few users to judge: held back 5; 30 are needed; the events count again the next time"


def test_new_events_of_one_time_wait_for_others(six):
    with Path("data/events.csv").open("a") as file:
        file.writelines(f"u{n},i{n},take,2024-01-08T00:00:00Z\n" for n in range(40))
    report = night()
    assert (report.status, report.current) == (REFUSED, six)
    assert report.reason.startswith(
        "all new events have the time 2024-01-08T00:00:00.000000 UTC: none can be learned"
    )


@pytest.fixture
def accepting(monkeypatch):
    """Every candidate is accepted, however short its training was."""
    monkeypatch.setattr(nightly, "decide", lambda *given, **options: Decision(True, "accepted"))


def test_every_so_many_bundles_one_is_trained_from_scratch(seven, accepting):
    kinds, once = [], {"epochs": 1, "learning_rate": 0.01}
    for day in (7, 8, 9):
        write_days(day)
        kinds.append(night(full_every=3, training=once).kind)
        manifest = served().manifest
        kinds.append(manifest.get("warm_starts", 0))
    assert kinds == ["warm start", 1, "warm start", 2, "full", 0]
    assert learned() == 2 * 40 * 9
    assert len(manifest["metrics"]) == 2


def test_full_nights_also_learn_items_of_the_held_back_day(six, accepting):
    """An item that becomes frequent on the held-back day is unknown to the candidate, and served afterwards."""
    write_days(7)
    with Path("data/items.csv").open("a") as file:
        file.write("late,late,\n")
    with Path("data/events.csv").open("a") as file:
        file.writelines(f"u{n},late,take,2024-01-07T23:00:{n:02}Z\n" for n in range(3))
    data = {"min_train_events": 3}
    sections = {"data": config().data.model_dump(mode="json") | data, "training": {"epochs": 1}}
    assert night(full_every=1, **sections).status == PUBLISHED
    assert "late" in served().catalog.ids


class Failure(Exception):
    """An error that is none of the product."""


@pytest.mark.parametrize(
    ("step", "module", "name", "error"),
    [
        ("refresh", nightly, "refresh_store", StoreError("no store")),
        ("embed", nightly, "embed_contents", OSError(28, "No space left on device", "data/cache")),
        ("read", nightly, "load_dataset", DataError("no table")),
        ("hold back", nightly, "check_comparable", ConfigError("other data")),
        ("train", held_back, "continue_training", MemoryError()),
        ("compare", held_back, "evaluate", Failure("odd")),
        ("finish", held_back, "new_events", DataError("odd")),
        ("publish", nightly, "write_bundle", FileError("disk full")),
        ("publish", nightly, "publish_bundle", KeyboardInterrupt()),
    ],
)
def test_a_failed_step_is_named_and_what_is_served_stays(seven, monkeypatch, step, module, name, error):
    def fail(*arguments, **options):
        raise error

    tracker, lines = Recorder(), Lines()
    encoder = {"encoder": {"kind": "builtin"}} if step == "embed" else {}
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(type(error)):
            night(tracker, lines, redis_url="redis://localhost:1/0" if step == "refresh" else None, **encoder)
    assert f"nightly: step {step} failed; {seven} stays served" in lines.lines
    assert served().fingerprint == seven
    report = written()
    assert (report["status"], report["current"]) == (FAILED, seven)
    assert report["steps"][-1]["step"] == step
    assert report["steps"][-1]["status"] == FAILED
    assert report["reason"].startswith(f"step {step}: ")
    assert (tracker.failed, tracker.kept["nightly"]) == (True, FAILED)


def run_command(monkeypatch, *words):
    """Exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["recsys", *words])
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_exit_statuses_and_output_of_the_command(seven, monkeypatch, capfd):
    monkeypatch.delenv("REDIS_URL", raising=False)
    config()
    command = ("nightly", "toy.yaml", "--no-track")
    with monkeypatch.context() as patch:
        broken(patch)
        assert run_command(monkeypatch, *command) == 0
    assert capfd.readouterr().out.startswith("toy: not published (warm start): worse than what is served: home")
    assert run_command(monkeypatch, *command, "--json") == 0
    report = json.loads(capfd.readouterr().out)
    assert report["status"] == PUBLISHED
    assert run_command(monkeypatch, *command) == 0
    assert f"served before: {report['current']}; served now: {report['current']}" in capfd.readouterr().out
    shutil.rmtree("data")
    assert run_command(monkeypatch, *command) == 1
    error = capfd.readouterr().err
    assert "nightly: step read failed" in error
    assert error.splitlines()[-1].startswith("error: ")


def test_the_store_is_refreshed_at_redis_url(seven):
    server = RedisServer()
    try:
        report = night(redis_url=server.url)
        watermark = RedisStore(server.url, config().data.events, timeout=1.0).watermark()
    finally:
        server.stop()
    assert report.steps[0]["status"] == "done"
    assert report.steps[0]["note"] == "40 users and 560 events from the tables, 0 events from the log"
    assert watermark is not None
    assert watermark.filled


def test_a_second_run_ends_at_once_while_one_trains(six):
    settings = config()
    before = (BUNDLES / "nightly.json").read_text()
    with publishing(settings):
        for run in (night, lambda: train(settings, NullTracker(), Lines())):
            with pytest.raises(FileError, match=f"bundles: process {os.getpid()} trains a bundle and publishes it"):
                run()
        with publishing(settings, publish=False):  # a run that publishes nothing is not in the way
            pass
    assert (BUNDLES / "nightly.json").read_text() == before
    assert night().status == NOTHING_NEW


def test_a_bundle_that_somebody_publishes_meanwhile_stays(seven, monkeypatch):
    real = nightly.write_bundle

    def write(*arguments):
        path = real(*arguments)
        (BUNDLES / "current").unlink()
        (BUNDLES / "other").mkdir()
        (BUNDLES / "current").symlink_to("other")
        return path

    monkeypatch.setattr(nightly, "write_bundle", write)
    report = night()
    assert (report.status, report.current) == (REFUSED, "other")
    assert report.reason.startswith("other was published meanwhile; ")


def test_a_leave_last_out_split_is_refused(six):
    with pytest.raises(ConfigError, match=r"split\.kind is leave-last-out"):
        night(split={"kind": "leave-last-out"})


KILLED = """
import os, signal, sys
from pathlib import Path
import experiments.pipelines.nightly as nightly
from experiments.config import load_config
from experiments.tracking.mlflow import NullTracker
import recsys.bundle.io as io
import torch._dynamo  # an optimiser imports it, which takes each child seconds

class Quiet:
    def say(self, text): pass
    def steps(self, what, total): return lambda done: None

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

for module, name in ((nightly, "load_dataset"), (nightly, "compare_with_served"), (io, "checksum_of"),
                     (nightly, "publish_bundle"), (nightly.Night, "write"), (None, "")):
    if module is None:
        os.chdir(sys.argv[1])
    child = os.fork()
    if not child:
        if module is not None:
            setattr(module, name, die)
        nightly.nightly(load_config(Path("toy.yaml"), {}), NullTracker(), Quiet())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.readlink("bundles/current"), flush=True)
"""
"""Five nights in the same folder, each killed at another place, and one elsewhere that is not disturbed; prints how
each ended, and what is served then."""


def test_a_night_that_was_killed_ends_the_same_when_it_is_run_again(seven, tmp_path, monkeypatch):
    config()
    shutil.copytree(".", tmp_path / "undisturbed", symlinks=True)
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # no thread before the fork
    command = [sys.executable, "-c", KILLED, str(tmp_path / "undisturbed")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    *before, last, undisturbed = [line.split() for line in done.stdout.splitlines()]
    assert before == [[str(-signal.SIGKILL), seven]] * 4
    assert (last[0], last[1] != seven) == (str(-signal.SIGKILL), True)  # killed after it had published
    again = night()
    assert again.status == NOTHING_NEW
    assert not list(BUNDLES.glob(".writing-*"))
    state = read_manifest(current_bundle(BUNDLES))
    assert undisturbed == ["0", state["fingerprint"]]
    monkeypatch.chdir(tmp_path / "undisturbed")
    assert state["files"] == read_manifest(current_bundle(BUNDLES))["files"]
