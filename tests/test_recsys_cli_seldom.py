"""What the commands print and how they end in cases that runs meet seldom."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from features.erasure.erase import ErasedPlace, ErasureReport
from features.errors import BundleError, ConfigError, DataError
from features.store.jobs.refresh import RefreshReport
from features.store.jobs.status import StoreStatus
from recsys import cli
from recsys.bundle.io import trained_events
from recsys.bundle.registry import publish_bundle
from recsys.bundle.serving_copy import load_serving_bundle
from recsys.bundle.upsert import upsert_items
from recsys.cli import features as features_cli
from recsys.cli import log as log_cli
from recsys.cli import main as main_cli
from recsys.cli import options, users
from serving.event_consumer import ConsumerReport

Printed = pytest.CaptureFixture[str]


def ended(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> Any:
    """The exit status of the command when it does `work`; 0 when it does not exit."""
    monkeypatch.setattr(main_cli, "_run", work)
    try:
        main_cli.main()
    except SystemExit as end:
        return end.code
    return 0


def raises(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


MEMORY = "error: out of memory: use a machine with more, or lower sizes"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (DataError("first\n  second \n\n"), 1, "error: first; second"),
        (BrokenPipeError(), 1, ""),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "error: x: No space left on device; free space"),
        (MemoryError(), 1, f"{MEMORY} (MemoryError)"),
        (MemoryError("no room"), 1, "error: out of memory: no room; use a machine with more, or lower sizes"),
        (RuntimeError("CUDA out of memory"), 1, f"{MEMORY} (RuntimeError: CUDA out of memory)"),
        (RuntimeError("can't allocate memory"), 1, f"{MEMORY} (RuntimeError: can't allocate memory)"),
        (
            ModuleNotFoundError("no", name="optuna.samplers"),
            1,
            "error: this command needs the package optuna: install this project with the extra `train`",
        ),
        (SystemExit(7), 7, ""),
    ],
)
def test_how_a_command_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: Printed, error: BaseException, status: int, line: str
) -> None:
    assert ended(monkeypatch, raises(error)) == status
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", bool(line))
    assert shown.err.startswith(line)


@pytest.mark.parametrize(
    "error", [RuntimeError("a mistake"), ModuleNotFoundError("no", name="other.x"), ModuleNotFoundError("no")]
)
def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        ended(monkeypatch, raises(error))
    assert caught.value is error


@pytest.mark.parametrize(("result", "status"), [(0, 0), (None, 0), (3, 3), (130, 130)])
def test_the_status_of_a_command(monkeypatch: pytest.MonkeyPatch, capsys: Printed, result: Any, status: int) -> None:
    asked: list[dict[str, Any]] = []

    def command(**given: Any) -> Any:
        asked.append(given)
        return result

    monkeypatch.setattr(main_cli, "app", command)
    assert ended(monkeypatch, main_cli._run) == status
    assert asked == [{"prog_name": "recsys", "standalone_mode": False}]
    assert capsys.readouterr().err == ("error: interrupted\n" if status == 130 else "")


def test_output_that_nobody_takes_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[str, int]] = []

    class Full:
        def flush(self) -> None:
            raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(os, "dup2", lambda source, to: moved.append((os.readlink(f"/proc/self/fd/{source}"), to)))
    main_cli._give_up_output()
    assert moved == []
    monkeypatch.setattr(sys, "stdout", Full())
    main_cli._give_up_output()
    assert moved == [("/dev/null", 1)]


def test_an_interruption_while_modules_are_loaded(monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    monkeypatch.setattr(main_cli, "main", raises(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as caught:
        cli.run()
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "error: interrupted\n")


REPORT = RefreshReport(users=1234, table_events=5678, log_events=9, damaged=1)


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        (
            REPORT,
            [
                "updated",
                "  1,234 users and 5,678 events from the tables",
                "  9 events from the log, 1 damaged lines skipped",
            ],
        ),
        (
            replace(
                REPORT,
                rebuilt=True,
                why="new rules",
                added=["a", "b", "c"],
                removed=["d", "e", "f", "g"],
                rejected=1000,
                dropped=2,
                late=3000,
            ),
            [
                "filled from the beginning: new rules",
                "  3 files added: a, b, c",
                "  4 files removed: d, e, f, …",
                "  1,234 users and 5,678 events from the tables",
                "  1,000 rows are not valid, or of erased users: `recsys data check` says why",
                "  9 events from the log, 1 damaged lines skipped",
                "  2 stores of other rules, which nobody has read for 30 days, are deleted",
                "  3,000 of the events are older than the newest one before",
            ],
        ),
    ],
)
def test_the_report_of_a_refresh(capsys: Printed, report: RefreshReport, lines: list[str]) -> None:
    features_cli._print(report, as_json=False)
    assert capsys.readouterr().out.splitlines() == lines


STATUS = StoreStatus(
    filled=True,
    generation="g1",
    age=7_200.4,
    latest=5,
    users=1_500,
    bytes=3 << 20,
    limit=0,
    bytes_per_user=2.0,
    evicted=False,
    behind=2_000,
    new=[],
    changed=[],
    warning="",
    runs=[],
)


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (
            STATUS,
            [
                "filled, refreshed 7,200 s ago, generation g1",
                "  1,500 users, 3.0 MiB used by the server",
                "  2,000 bytes of the log are not read yet",
            ],
        ),
        (
            replace(
                STATUS,
                filled=False,
                generation="",
                age=None,
                limit=5 << 30,
                evicted=True,
                new=["a", "b", "c", "d"],
                changed=["e"],
                runs=[{"rebuilt": n == 0, "seconds": n, "table_events": 1000, "log_events": n} for n in range(7)],
            ),
            [
                "not filled: run `recsys features refresh`, never refreshed, generation none",
                "  1,500 users, 3.0 MiB of 5,120 MiB used by the server",
                "  2,000 bytes of the log are not read yet",
                "  new rows in a, b, c, …",
                "  changed or removed rows in e",
                "  the server has deleted keys to make room: a running service fills the store again",
                "  rebuilt in 0 s: 1,000 + 0 events",
                *(f"  updated in {n} s: 1,000 + {n} events" for n in range(1, 5)),
            ],
        ),
    ],
)
def test_the_status_of_a_store(monkeypatch: pytest.MonkeyPatch, status: StoreStatus, lines: list[str]) -> None:
    @contextmanager
    def opened(name: str, log: Path | None) -> Any:
        yield name, "tables", log

    def store_status(store: Any, tables: Any, folder: Any) -> StoreStatus:
        assert (store, tables, folder) == ("toy", "tables", None)
        return status

    monkeypatch.setattr(features_cli, "_opened", opened)
    monkeypatch.setattr("features.store.jobs.status.store_status", store_status)
    result = CliRunner().invoke(main_cli.app, ["features", "status", "toy"])
    assert result.output.splitlines() == lines


def test_the_report_of_a_consumer(capsys: Printed) -> None:
    log_cli._show(ConsumerReport(accepted=1_000, dead=2), "clicks:dead")
    assert capsys.readouterr().out == "1,000 events accepted, 2 entries moved to clicks:dead\n"
    log_cli._show(ConsumerReport(claimed=3_000, lost=4_000), "clicks:dead")
    assert capsys.readouterr().out.splitlines() == [
        "0 events accepted, 0 entries moved to clicks:dead",
        "3,000 entries taken over from other consumers",
        "4,000 entries were deleted from the stream before they were read: raise its MAXLEN",
    ]


def test_the_report_of_an_erasure(capsys: Printed) -> None:
    places = (
        ErasedPlace("event log", "state/log", 1_000, 2_000, 3_000, 2, ("a from byte 5", "b")),
        ErasedPlace("feature store", "unix://x", 4, 0, 5, 0, ()),
    )
    report = ErasureReport(False, 7, places, {"events": 6_000}, 8_000, ("exports were not searched",))
    users._show(report)
    assert capsys.readouterr().out.splitlines() == [
        "event log state/log: 3,000 erased; searched: 1,000 files, 2,000 bytes",
        "feature store unix://x: 5 erased; searched: 4 keys",
        "table events: 6,000 rows stay in your file and are left out when tables are read from now on",
        "8,000 lines have arrived for this id since: they belong to a new person",
        "note: exports were not searched",
        "LEFT: a from byte 5",
        "LEFT: b",
        "found in 2 places; run the command again",
    ]
    users._show(replace(report, dry_run=True, arrived=0, notes=()))
    assert capsys.readouterr().out.splitlines() == [
        "event log state/log: 3,000 would be erased; searched: 1,000 files, 2,000 bytes",
        "feature store unix://x: 5 would be erased; searched: 4 keys",
        "table events: 6,000 rows stay in your file and would be left out",
    ]
    users._show(replace(report, places=places[1:], tables={}, arrived=0, notes=()))
    assert capsys.readouterr().out.splitlines()[1:] == ["found nowhere"]


def test_a_host_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^the host is empty: give an address with --host"):
        options.bind("", 0)


def test_a_link_that_cannot_be_replaced_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_bundle(tmp_path / "old")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Read-only"):
        publish_bundle(tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"current", "published.jsonl"}
    assert os.readlink(tmp_path / "current") == "old"


def test_a_bundle_that_is_not_loaded_takes_no_items() -> None:
    bundle: Any = SimpleNamespace(recommender=SimpleNamespace(index=[]))
    with pytest.raises(TypeError, match="items are upserted into a loaded bundle, with a MutableIndex, given list"):
        upsert_items(bundle, None, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "fits"), [([1, 2], True), ([[1]], False), ([1.5], False)], ids=["keys", "matrix", "numbers"]
)
def test_keys_of_trained_events(tmp_path: Path, values: Any, fits: bool) -> None:
    import numpy as np

    array = np.array(values)
    array = array if array.dtype == np.float64 else array.astype(np.uint64)
    np.save(tmp_path / "trained_events.npy", array)
    bundle: Any = SimpleNamespace(path=tmp_path, manifest={"files": {"trained_events.npy": {}}})
    if fits:
        keys = trained_events(bundle)
        assert keys is not None
        assert keys.tolist() == [1, 2]
    else:
        with pytest.raises(BundleError) as caught:
            trained_events(bundle)
        assert str(caught.value).endswith(f"{array.dtype} of shape {array.shape}, not uint64 (n,); train again")
    bundle.manifest["files"] = {}
    assert trained_events(bundle) is None


def test_a_manifest_that_the_system_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text("{}")

    def refuse(self: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    path = tmp_path / "manifest.json"
    with pytest.raises(BundleError) as caught:
        load_serving_bundle(tmp_path)
    assert str(caught.value) == f"{path}: cannot be read: Input/output error; the disk reports a fault: check it"
