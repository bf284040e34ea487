"""`recsys users`: erase and export."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import orjson
import polars as pl
import pytest
from log_files import event
from toy_data import toy_config, write_tables
from typer.testing import CliRunner

from experiments.config import load_config
from features.errors import ConfigError, FileError, LogError, StoreError
from features.log.event_log import EventLog
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from recsys.cli.main import app


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    yield running
    running.stop()


@pytest.fixture
def config(tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables of 40 users, a log with events of u1 and u2, their slates, and a store that was refreshed."""
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path / "data")
    log = EventLog(tmp_path / "log")
    log.append_now([event(1, "u1"), event(2, "u2")])
    log.close()
    (tmp_path / "slates").mkdir()
    pl.DataFrame({"user_id": ["u1", "u2"]}).write_parquet(tmp_path / "slates" / "part-00000.parquet")
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("RECSYS_SERVE__LOG", str(tmp_path / "log"))
    monkeypatch.setenv("RECSYS__DATA__LOG", str(tmp_path / "log"))
    path = Path(toy_config(tmp_path))
    RedisStore(server.url, load_config(path).data.events)._bulk.run(lambda client: client.flushall())
    CliRunner().invoke(app, ["features", "refresh", str(path)], catch_exceptions=False)
    return path


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["users", *arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout


def test_erase(config: Path, tmp_path: Path, server: RedisServer) -> None:
    options = ["--config", str(config), "--slates", str(tmp_path / "slates")]
    lines = run("erase", "u1", *options, "--dry-run").splitlines()
    assert any(line.startswith("event log ") and ": 1 would be erased; searched: " in line for line in lines)
    assert "found nowhere" not in lines
    assert len(RedisStore(server.url, load_config(config).data.events).read_users(["u1"])[0].items) == 14
    text = run("erase", "u1", *options)
    assert f"event log {tmp_path}/log: 1 erased; searched: " in text
    assert f"slates {tmp_path}/slates: 1 erased; searched: 1 files, " in text
    assert f"feature store {server.url}: 2 erased; searched: " in text
    assert "table events: 13 rows stay in your file and are left out when tables are read from now on" in text
    assert text.endswith("found nowhere\n")
    assert pl.read_parquet(tmp_path / "slates" / "*.parquet")["user_id"].to_list() == ["u2"]
    store = RedisStore(server.url, load_config(config).data.events, timeout=1.0)
    assert [len(state.items) for state in store.read_users(["u1", "u2"])] == [0, 14]
    CliRunner().invoke(app, ["features", "refresh", str(config)], catch_exceptions=False)
    assert [len(state.items) for state in store.read_users(["u1", "u2"])] == [0, 14]
    report = orjson.loads(run("erase", "u2", *options, "--json"))
    assert (report["n_left"], report["tables"], report["dry_run"]) == (0, {"events": 13}, False)
    assert [place["found"] for place in report["places"]] == [1, 1, 2]
    assert "u2" not in {str(value) for value in report.values()}


def test_outcomes_of_runs_and_experiments_are_erased(config: Path) -> None:
    files = (Path("mlruns/1/abc/artifacts/outcomes/outcomes.parquet"), Path("data/experiments/x/abc.parquet"))
    for file in files:
        file.parent.mkdir(parents=True)
        pl.DataFrame({"user": ["u1", "u2"], "rank": [1.0, 2.0]}).write_parquet(file, metadata={"seed": "0"})
    assert run("erase", "u1", "--config", str(config)).endswith("found nowhere\n")
    for file in files:
        assert pl.read_parquet(file).rows() == [("u2", 2.0)]
        assert pl.read_parquet_metadata(file)["seed"] == "0"


def test_what_is_left_ends_with_status_1(config: Path, tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "note.txt").write_text("customer-17 complained")
    text = run("erase", "customer-17", "--config", str(config), status=1)
    assert text.endswith("LEFT: mlruns/note.txt\nfound in 1 places; run the command again\n")
    assert orjson.loads(run("erase", "customer-17", "--json", status=1))["n_left"] == 1


def test_export(config: Path, tmp_path: Path) -> None:
    known = orjson.loads(run("export", "u1", "--config", str(config), "--slates", str(tmp_path / "slates")))
    assert (len(known["tables"]["events"]), len(known["log"]["events"])) == (13, 1)
    assert list(known["slates"].values()) == [[{"user_id": "u1"}]]
    assert [len(state["events"]) for state in known["store"].values()] == [14]
    assert run("export", "u1", "--out", str(tmp_path / "u1.json")).startswith(f"{tmp_path / 'u1.json'}: ")
    assert stat.S_IMODE((tmp_path / "u1.json").stat().st_mode) == 0o600
    assert orjson.loads((tmp_path / "u1.json").read_bytes())["notes"] == [
        "tables and rejected rows were not searched: no configuration is known, give --config"
    ]


def test_mistakes(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: there is no such folder; --log takes the folder"):
        run("erase", "u1", "--log", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"data is no event log: it has none of .*; --log takes the folder"):
        run("erase", "u1", "--log", str(tmp_path / "data"))
    with pytest.raises(ConfigError, match=r"^the user id: with control characters \(U\+000A\): remove"):
        run("export", "a\n")
    result = CliRunner().invoke(app, ["users", "erase", "u1", "--slates", ""])
    assert (result.exit_code, "the path is empty: name a file or a folder" in result.stderr) == (2, True)
    monkeypatch.setenv("REDIS_URL", f"unix://{tmp_path}/none.sock")
    with pytest.raises(StoreError, match="there is no such socket"):
        run("erase", "u1", "--config", str(config))


def test_a_wrong_option_is_told_before_anything_is_erased(config: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "toy.parquet").write_text("name: toy")
    log = {path: path.read_bytes() for path in (tmp_path / "log").rglob("*") if path.is_file()}
    for option, name, message in (
        ("--exports", "none", f"exports {tmp_path}/none: no such file; check the path"),
        ("--slates", "none", f"slates {tmp_path}/none: no such file; check the path"),
        ("--also", "pipe", f"other files {tmp_path}/pipe: a pipe (FIFO); write it to a regular file"),
        ("--bundles", "none", f"{tmp_path}/none: no such folder of bundles"),
        ("--bundles", "toy.yaml", f"{tmp_path}/toy.yaml: a file; --bundles takes the folder"),
    ):
        with pytest.raises(ConfigError) as caught:
            run("erase", "u1", "--config", str(config), option, str(tmp_path / name))
        assert str(caught.value).startswith(message)
    assert {path: path.read_bytes() for path in (tmp_path / "log").rglob("*") if path in log} == log
    assert not (tmp_path / "log" / "erased.json").exists()
    with pytest.raises(FileError, match=r"delete it if it was one; if not, name another file$"):
        run("export", "u1", "--config", str(config), "--also", str(tmp_path / "toy.parquet"))


def test_a_pipe_among_the_segments_is_told(config: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log" / "events" / "00000000000000000007-1.log")
    for command in ("erase", "export"):
        with pytest.raises(LogError, match=r"00000000000000000007-1\.log: not a regular file: move it, or choose"):
            run(command, "u1", "--config", str(config))
