"""`recsys doctor`: a real bundle, log and server; what is wrong with each is found and said."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
from toy_data import FACTS, noise, toy_stage
from typer.testing import CliRunner

from features.log.event_log import EventLog
from features.log.records import Event
from features.store.base import ServerFacts
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from recsys.bundle.io import save_bundle
from recsys.bundle.registry import publish_bundle
from recsys.cli.main import app
from serving import doctor as module
from serving.access.key_file import create_key
from serving.doctor import Doctor
from serving.settings import ServeSettings

ALL = ["versions", "bundle", "index", "encoders", "store", "clock", "log", "disk", "keys", "rules", "experiments"]


@pytest.fixture
def settings(tmp_path):
    stage, catalog, statistics = toy_stage(noise())
    publish_bundle(save_bundle(tmp_path / "bundles", catalog, stage, statistics, FACTS, None))
    return ServeSettings(bundles=tmp_path / "bundles", log=tmp_path / "log")


def checks(settings):
    """Name -> (status, text)."""
    return {check.name: (check.status, check.text) for check in Doctor(settings).run()}


def test_a_service_that_can_start(settings):
    found = checks(settings)
    assert list(found) == ALL
    assert {name for name, (status, _) in found.items() if status != "ok"} == {"bundle"}
    status, text = found["bundle"]
    assert status == "warning"  # the events of the toy data are of 2024
    assert "30 items, trained on events until 2024-" in text
    assert "train again, every night with `recsys nightly`" in text
    assert found["index"][1] == "100% of 30 items are found by their own vectors"
    assert found["store"][1].startswith("a private server, /")
    assert not (settings.log).exists()  # nothing was made


def test_without_a_bundle_the_other_checks_go_on(settings):
    (settings.bundles / "current").unlink()
    found = checks(settings)
    assert list(found) == [name for name in ALL if name not in ("index", "encoders")]
    assert found["bundle"][0] == "failed"
    assert "no bundle is published there" in found["bundle"][1]


def test_a_damaged_bundle(settings):
    (bundle,) = (path for path in settings.bundles.iterdir() if path.is_dir() and not path.is_symlink())
    with (bundle / "vectors.npy").open("r+b") as file:
        file.write(b"x")
    assert "truncated or tampered with" in checks(settings)["bundle"][1]


def test_an_index_that_does_not_find_its_items(settings, monkeypatch):
    blind: Any = Blind()
    bundle = Doctor(settings)._bundle
    monkeypatch.setattr(Doctor, "_bundle", replace(bundle, recommender=replace(bundle.recommender, index=blind)))
    status, text = checks(settings)["index"]
    assert (status, text[:3]) == ("warning", "0% ")
    assert "effort" in text


class Blind:
    """Finds the first item whatever is asked."""

    def search(self, queries, k):
        from recsys.interfaces import Candidates

        return Candidates.empty(len(queries), k)


@pytest.fixture
def server():
    server = RedisServer()
    yield server
    server.stop()


def test_a_server_that_answers(settings, server):
    found = checks(settings.model_copy(update={"redis_url": server.url}))
    assert found["store"][0] == "ok"
    assert "answers in" in found["store"][1]
    assert "1,024 MiB" in found["store"][1]
    assert found["clock"][1].endswith("that of the store's server agrees")


def test_a_server_that_does_not(settings):
    found = checks(settings.model_copy(update={"redis_url": "redis://user:planted@localhost:1"}))
    assert found["store"][0] == "failed"
    assert "nothing listens there" in found["store"][1]
    assert "planted" not in str(found)
    assert found["clock"][0] == "ok"


@pytest.mark.parametrize(
    ("facts", "check", "status", "text"),
    [
        (ServerFacts(warning="it may delete keys"), "store", "warning", "it may delete keys"),
        (ServerFacts(evicted=3), "store", "warning", "deleted 3 keys to make room"),
        (ServerFacts(time=1), "clock", "failed", "that of the store's server differs by -"),
    ],
)
def test_a_server_that_tells_of_trouble(settings, server, monkeypatch, facts, check, status, text):
    monkeypatch.setattr(RedisStore, "facts", lambda self: facts)
    found = checks(settings.model_copy(update={"redis_url": server.url}))
    assert found[check][0] == status
    assert text in found[check][1]


def test_the_log(settings, monkeypatch):
    log = EventLog(settings.log)
    event = Event(event_id="e", user_id="u", item_id="i", event="take", timestamp=2**62 // 1000, value=None)
    log.submit([event]).result()
    log.close()
    found = checks(settings)
    assert "1 events" in found["log"][1]
    assert found["clock"][0] == "warning"
    assert "which is to come: set the clock" in found["clock"][1]
    segment = next((settings.log / "events").glob("*.log"))
    segment.write_bytes(b"damaged line\n" + segment.read_bytes())
    assert "1 lines are damaged" in checks(settings)["log"][1]


def test_a_log_that_cannot_be_written(settings):
    settings.log.write_text("a file")
    assert checks(settings)["log"][0] == "failed"


def test_a_full_disk(settings, monkeypatch):
    usage = shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    assert checks(settings)["disk"][0] == "warning"


def test_files_of_a_shop(settings, tmp_path):
    (tmp_path / "rules.yaml").write_text("rules: [{name: a, exclude: {items: [i1]}}]")
    (tmp_path / "experiments.yaml").write_text("experiments: [{name: a, variants: {b: {share: 2}}}]")
    paths = {name: tmp_path / f"{name}.yaml" for name in ("rules", "experiments")}
    found = checks(settings.model_copy(update=paths))
    assert found["rules"] == ("ok", f"{tmp_path}/rules.yaml: 1 rules")
    assert found["experiments"][0] == "failed"
    assert "line 1" in found["experiments"][1]


def test_keys(settings, tmp_path):
    path = tmp_path / "keys.jsonl"
    create_key(path, "shop", "write")
    keyed = settings.model_copy(update={"keys": path})
    assert checks(keyed)["keys"] == ("ok", f"{path}: 1 keys")
    create_key(path, "old", "read", expires="2024-01-01")
    status, text = checks(keyed)["keys"]
    assert status == "warning"
    assert "2 keys; old expired, or will within 14 days" in text
    path.write_text("")
    assert checks(keyed)["keys"][0] == "warning"
    path.write_text("{}")
    assert checks(keyed)["keys"][0] == "failed"


def test_the_command(settings, monkeypatch):
    monkeypatch.setenv("RECSYS_SERVE__BUNDLES", str(settings.bundles))
    monkeypatch.setenv("RECSYS_SERVE__LOG", str(settings.log))
    monkeypatch.delenv("REDIS_URL", raising=False)
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0
    assert "trained on events until" in shown.stdout
    (settings.bundles / "current").unlink()
    failed = CliRunner().invoke(app, ["doctor", "--json"])
    assert failed.exit_code == 1
    assert [check["status"] for check in json.loads(failed.stdout)["checks"] if check["name"] == "bundle"] == [
        "failed"
    ]
