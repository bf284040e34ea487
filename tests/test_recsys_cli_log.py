"""`recsys log`: status, export and prune."""

import os
import time
from pathlib import Path

import orjson
import polars as pl
import pytest
from log_files import event, exposure, legacy_segment, put
from typer.testing import CliRunner

from features.errors import ConfigError, LogError
from features.log.event_log import EventLog
from features.log.readers import advance
from features.log.records import EXPOSURES
from features.log.segments import exclusive, segment_paths
from features.log.upkeep.prune import LOCK
from recsys.cli.main import app


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log with a segment of an earlier version, and old exposures that a reader lacks one of."""
    folder = tmp_path / "log"
    writer = EventLog(folder, segment_bytes=1)
    writer.append_now([event(1), exposure(1), put("a", 1)])
    writer.append_now([exposure(2)])
    writer.close()
    first, second = segment_paths(folder / "exposures")
    for path in (first, second):
        os.utime(path, (time.time() - 31 * 86_400,) * 2)
    advance(folder, "mirror", EXPOSURES, {f"exposures/{first.name}": first.stat().st_size})
    monkeypatch.setenv("RECSYS_SERVE__LOG", str(folder))
    return folder


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["log", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_status(log: Path) -> None:
    status = orjson.loads(run("status", "--json"))
    assert [(s["stream"], s["segments"], s["records"]) for s in status["streams"]] == [
        ("events", 1, 1),
        ("exposures", 2, 2),
        ("items", 1, 1),
        ("corrections", 0, 0),
    ]
    (reader,) = status["readers"]
    assert (reader["name"], reader["behind"]) == ("mirror", segment_paths(log / "exposures")[1].stat().st_size)
    assert [(h["stream"], h["segments"]) for h in status["held"]] == [("exposures", 1)]
    text = run("status", "--log", str(log), "--check")
    assert "bytes over the limit kept: the reader 'mirror'" in text
    assert "1970-01-01 00:00" in text
    assert "reader mirror: exposures, " in text
    assert "if it no longer exists" not in text
    assert len(segment_paths(log / "exposures")) == 2
    file = log / "readers" / "mirror.json"
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | {"advanced": 0}))
    assert f"run it, or delete {file} if it no longer exists" in run("status").replace("\n", "")


def test_export(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("export", "--out", str(out)) == "1 new records in 1 files\n"
    assert pl.read_parquet(out / "*.parquet")["event_id"].to_list() == ["e1"]
    report = orjson.loads(run("export", "exposures", "--out", str(tmp_path / "shown"), "--reader", "x", "--json"))
    assert report == {"stream": "exposures", "records": 2, "days": ["1970-01-01"], "damaged": 0}
    assert (log / "readers" / "x.json").exists()
    with pytest.raises(ConfigError, match="'clicks' is no stream of the log; choose from events, exposures, items"):
        run("export", "clicks", "--out", str(out))


def test_prune(log: Path) -> None:
    legacy_segment(log, [event(9)])
    text = run("prune", "--dry-run")
    assert "exposures: 1 segments, " in text
    assert "bytes would be deleted\nexposures: 1 segments, " in text
    assert "bytes over the limit kept: the reader 'mirror', which last advanced at 20" in text
    assert len(segment_paths(log / "exposures")) == 2
    text = run("prune")
    assert "1 segments of an earlier version taken over\n1 segments of item changes compacted\n" in text
    assert len(segment_paths(log / "exposures")) == 1
    report = orjson.loads(run("prune", "--json"))
    assert (report["deleted"], report["taken_over"], len(report["held"])) == ([], 0, 1)
    assert "nothing to delete" in run("prune")


def test_the_limits_are_settings_of_the_service(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_SERVE__EXPOSURES_DAYS", "inf")
    assert "nothing to delete" in run("prune")
    monkeypatch.setenv("RECSYS_SERVE__EXPOSURES_BYTES", "1")
    monkeypatch.setenv("RECSYS_SERVE__EVENTS_DAYS", "0.5")
    for path in segment_paths(log / "events"):
        os.utime(path, (0, 0))
    text = run("prune", "--dry-run")
    assert "exposures: 1 segments, " in text
    assert "events: 1 segments, " in text
    assert "no reader has exported them: recsys log export events --reader NAME" in text
    monkeypatch.setenv("RECSYS_SERVE__EXPOSURES_DAYS", "-1")
    with pytest.raises(ConfigError, match=r"^environment variable RECSYS_SERVE__EXPOSURES_DAYS = '-1': must be more"):
        run("prune")


def test_mistakes(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: there is no such folder; --log takes the folder of the event log"):
        run("status", "--log", str(tmp_path / "none"))
    with exclusive(log / LOCK), pytest.raises(LogError, match="another process prunes"):
        run("prune")


NO_LOG = (
    "is no event log: it has none of events, exposures, items, corrections, media, vectors, readers, erased.json, "
    "audit.jsonl"
)


@pytest.mark.parametrize("arguments", [("status",), ("export", "--out", "exports"), ("prune",)])
def test_a_folder_that_is_no_log_is_told(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "items.csv").touch()
    with pytest.raises(ConfigError) as caught:
        run(*arguments, "--log", str(tmp_path / "wrong"))
    assert str(caught.value) == f"{tmp_path}/wrong {NO_LOG}; --log takes the folder of the event log"
    assert [path.name for path in (tmp_path / "wrong").iterdir()] == ["items.csv"]  # no lock of the upkeep either
    for name in ("empty", "only-read", "new-disk"):
        (tmp_path / name).mkdir()
    (tmp_path / "only-read" / "readers").mkdir()  # of a store that was refreshed before the first event
    (tmp_path / "new-disk" / "lost+found").mkdir()
    for name in ("empty", "only-read", "new-disk"):
        run("status", "--log", str(tmp_path / name))


def test_a_pipe_among_the_segments_is_told_and_not_waited_for(log: Path, tmp_path: Path) -> None:
    os.mkfifo(log / "events" / "00000000000000000007-1.log")
    for arguments in (("status",), ("export", "--out", str(tmp_path / "out")), ("prune",)):
        with pytest.raises(LogError, match=r"events/00000000000000000007-1\.log: not a regular file: move it, or "):
            run(*arguments)


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        (("log", "export", "--out", "o"), ("--reader", ""), "empty: give it a text"),
        (("log", "export", "--out", "o"), ("--reader", "a\udcff"), "with control characters (U+DCFF): remove"),
        (("events", "consume", "clicks"), ("--group", "g\udcff"), "with control characters (U+DCFF): remove"),
        (("events", "consume", "clicks"), ("--group", ""), "empty: give it a text"),
        (("events", "consume", "clicks"), ("--consumer", ""), "empty: give it a text"),
        (("events", "consume", "clicks"), ("--idle", "inf"), "31536000"),
        (("events", "consume", "clicks"), ("--idle", "1e300"), "31536000"),
        (("events", "consume"), ("a\nb",), "with control characters (U+000A): remove"),
        (("tune", "toy"), ("--only", ""), "empty: give it a text"),
    ],
)
def test_a_name_or_a_number_that_no_server_takes_is_a_wrong_option(
    command: tuple[str, ...], option: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(app, [*command, *option])
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_an_export_cannot_take_the_name_of_the_store(log: Path, tmp_path: Path) -> None:
    with pytest.raises(LogError) as caught:
        run("export", "--out", str(tmp_path / "out"), "--reader", "feature-store")
    assert str(caught.value) == (
        "reader 'feature-store' is the feature store, which every refresh registers: choose another name"
    )
