"""Outcomes of exposures: a small log by hand, rules of attribution one by one, and a person's rows erased."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from typer.testing import CliRunner

from features.erasure.erase import Scope, erase_user
from features.erasure.known import known_of
from features.errors import LogError
from features.log.event_log import EventLog
from features.log.outcomes import table
from features.log.outcomes.table import COLUMNS, write_outcomes
from features.log.records import Event, EventUndone, Exploration, Exposure, Record, UsersMerged, line, line_of
from recsys.cli.main import app

DAY = 86_400_000_000
START = 20_000 * DAY  # 2024-10-04
WEEK = 7 * DAY


def at(day: float) -> datetime:
    return datetime(2024, 10, 4, tzinfo=UTC) + timedelta(days=day)


def shown(name: str, user: str, day: float, *items: str, **more: Any) -> Exposure:
    n = len(items)
    facts = {"request_id": name, "user_id": user, "timestamp": START + int(day * DAY), "items": items}
    rest: dict[str, Any] = {
        "placement": "home",
        "fingerprint": "f",
        "variant": "default",
        "source": "model",
        "degraded": (),
        "scores": tuple(float(n - i) for i in range(n)),
        "propensities": (1.0,) * n,
        "reasons": ("recent",) * n,
    }
    return Exposure(**{**facts, **rest, **more})


def did(user: str, item: str, kind: str, day: float, request: str | None = None, **more: Any) -> Event:
    facts: dict[str, Any] = {"event_id": f"{user}{item}{kind}{day}{request}", "request_id": request, **more}
    return Event(user_id=user, item_id=item, event=kind, timestamp=START + int(day * DAY), **facts)


def append(log: Path, *records: Record) -> None:
    writer = EventLog(log)
    writer.append_now(records)
    writer.close()


def outcomes(tmp_path: Path, *records: Record, within: int = WEEK, now: float = 100) -> list[dict[str, Any]]:
    append(tmp_path / "log", *records)
    write_outcomes(tmp_path / "log", tmp_path / "out.parquet", within, now=START + int(now * DAY))
    return pl.read_parquet(tmp_path / "out.parquet").to_dicts()


def counts(rows: list[dict[str, Any]], kind: str = "buy") -> dict[tuple[str, str], int]:
    """(request, item) -> number of events, where there are any."""
    return {(row["request_id"], row["item_id"]): row[f"{kind}_count"] for row in rows if row[f"{kind}_count"]}


def test_a_small_log_by_hand(tmp_path: Path) -> None:
    explored = Exploration("try", "pools-1", 0.5, 7, (22,), ("b",), (("z",),), (22,))
    first = shown("r1", "ann", 0, "a", "z", propensities=(1.0, 0.5), reasons=("own", "recent"), first_position=21)
    first = Exposure(**{name: getattr(first, name) for name in first.__slots__[1:]} | {"exploration": explored})
    rows = outcomes(
        tmp_path,
        first,
        shown("r2", "", 2, "a", placement="similar", source="popular", item_id="q"),
        did("ann", "a", "view", 0.5, "r1", position=21),
        did("ann", "a", "view", 0.25, "r1"),
        did("ann", "a", "rating", 1, value=4.0),
        did("ann", "a", "rating", 2, value=3.0),
        did("bob", "a", "view", 3, "r2"),
        did("ann", "c", "buy", 1),
        now=8,
    )
    common = {"placement": "home", "fingerprint": "f", "variant": "default", "source": "model", "timestamp": at(0)}
    buys = {"buy_at": None, "buy_count": 0}
    ratings, views = {"rating_at": None, "rating_count": 0, "rating_value": None}, {"view_at": None, "view_count": 0}
    of_first = {"request_id": "r1", "user_id": "ann", **common, "complete": True}
    assert rows == [
        {
            **of_first,
            "item_id": "a",
            "position": 21,
            "score": 2.0,
            "propensity": 1.0,
            "reason": "own",
            "explored": False,
            **buys,
            "rating_at": at(1),
            "rating_count": 2,
            "rating_value": 7.0,
            "view_at": at(0.25),
            "view_count": 2,
        },
        {
            **of_first,
            "item_id": "z",
            "position": 22,
            "score": 1.0,
            "propensity": 0.5,
            "reason": "recent",
            "explored": True,
            **buys,
            **ratings,
            **views,
        },
        {
            "request_id": "r2",
            "user_id": None,
            **common,
            "placement": "similar",
            "source": "popular",
            "timestamp": at(2),
            "complete": False,  # its week ends on day 9
            "item_id": "a",
            "position": 1,
            "score": 1.0,
            "propensity": 1.0,
            "reason": "recent",
            "explored": False,
            **buys,
            **ratings,
            "view_at": at(3),
            "view_count": 1,
        },
    ]


def test_an_event_without_a_request_belongs_to_the_latest_exposure_before_it(tmp_path: Path) -> None:
    rows = outcomes(
        tmp_path,
        *(shown(f"r{day}", "ann", day, "a", "b") for day in (1, 2, 3)),
        shown("other", "bob", 2.2, "a"),
        did("ann", "a", "buy", 2.5),  # r2
        did("ann", "a", "buy", 3.0),  # at the time of r3
        did("ann", "a", "buy", 10.0),  # the last moment of the week of r3
        did("ann", "a", "buy", 10.1),  # too late
        did("ann", "b", "buy", 0.9),  # before all
        did("cat", "a", "buy", 2.5),  # was shown nothing
    )
    assert counts(rows) == {("r2", "a"): 1, ("r3", "a"): 2}


def test_an_event_with_a_request_belongs_to_it_alone(tmp_path: Path) -> None:
    rows = outcomes(
        tmp_path,
        shown("r1", "ann", 1, "a"),
        shown("r2", "ann", 2, "a"),
        did("ann", "a", "buy", 3, "r1"),  # not to the latest
        did("bob", "a", "buy", 3, "r1"),  # of another user: ann was logged in elsewhere
        did("ann", "b", "buy", 3, "r1"),  # the answer did not hold b
        did("ann", "a", "buy", 3, "unknown"),
        did("ann", "a", "buy", 8.1, "r1"),  # too late for r1, and not of r2
        did("ann", "a", "buy", 0.1, "r1"),  # the clock of the device is behind
        did("ann", "a", "buy", -0.1, "r1"),  # by more than a day
        did("ann", "a", "buy", 4, ""),  # an empty request names none
    )
    assert counts(rows) == {("r1", "a"): 3, ("r2", "a"): 1}


def test_corrections_and_repeated_events(tmp_path: Path) -> None:
    rows = outcomes(
        tmp_path,
        shown("r1", "phone", 1, "a", "b", "c"),
        shown("r2", "phone", 5, "a"),  # after the merge: another person may use the device
        UsersMerged(user_id="ann", from_id="phone", timestamp=START + 3 * DAY, until=START + 3 * DAY),
        did("ann", "a", "buy", 4),  # of ann, who was shown r1 as `phone`
        did("phone", "b", "buy", 2),
        did("ann", "c", "buy", 2, event_id="undone"),
        EventUndone(user_id="ann", event_id="undone", timestamp=START),
        did("ann", "a", "buy", 4),  # sent again
        did("phone", "a", "buy", 6),
    )
    assert counts(rows) == {("r1", "a"): 1, ("r1", "b"): 1, ("r2", "a"): 1}
    assert {row["request_id"]: row["user_id"] for row in rows} == {"r1": "ann", "r2": "phone"}


def test_records_of_earlier_versions_have_no_reasons(tmp_path: Path) -> None:
    append(tmp_path / "log", shown("new", "ann", 2, "a", "b"))
    (path,) = (tmp_path / "log" / "exposures").glob("*.log")
    record = orjson.loads(line(shown("old", "ann", 1, "a", "b"))[9:])
    for name in ("first_position", "reasons", "exploration", "sample"):
        del record[name]
    path.chmod(0o600)
    path.write_bytes(line_of(orjson.dumps(record)) + path.read_bytes())
    append(tmp_path / "log", did("ann", "a", "buy", 3))
    rows = outcomes(tmp_path)
    facts = [(row["request_id"], row["position"], row["reason"], row["explored"]) for row in rows]
    old, new = [("old", 1, None, False), ("old", 2, None, False)], [("new", 1, "recent", False)]
    assert facts == [*old, *new, ("new", 2, "recent", False)]


def test_logs_without_exposures_and_answers_without_items(tmp_path: Path) -> None:
    assert outcomes(tmp_path, did("ann", "a", "buy", 1)) == []
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert frame.columns == [*COLUMNS, "buy_at", "buy_count"]
    assert frame.schema["buy_at"] == pl.Datetime("us", "UTC")
    rows = outcomes(tmp_path, shown("r1", "ann", 0), shown("r2", "ann", 0, "a"))
    assert counts(rows) == {("r2", "a"): 1}
    assert len(rows) == 1


def test_shares_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = [f"u{n}" for n in range(7)], [f"i{n}" for n in range(11)]
    records: list[Record] = []
    for n in range(60):
        records.append(shown(f"r{n}", users[n % 7], n / 3, *(items[(n + j) % 11] for j in range(4))))
        records.append(did(users[n % 5], items[(n * n) % 11], "buy", n / 3 + 1, f"r{n - 1}" if n % 2 else None))
    one = outcomes(tmp_path, *records)
    monkeypatch.setattr(table, "SHARD_BYTES", 1000)
    several = outcomes(tmp_path)
    assert len(one) == 240
    assert sum(counts(one).values()) > 10
    assert sorted(map(str, one)) == sorted(map(str, several))


def test_seldom_types_get_no_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_TYPES", 2)
    records = [did("ann", "a", kind, 1 + n / 10) for n, kind in enumerate(["x", "y", "y", "z", "z"])]
    append(tmp_path / "log", shown("r", "ann", 0, "a"), *records)
    report = write_outcomes(tmp_path / "log", tmp_path / "out.parquet", WEEK)
    assert (report.types, report.left_out) == (("y", "z"), ("x",))
    assert (report.events, report.by_request, report.by_user, report.rows, report.answers) == (5, 0, 5, 1, 1)
    assert pl.read_parquet(tmp_path / "out.parquet").columns[-4:] == ["y_at", "y_count", "z_at", "z_count"]


def test_a_person_is_erased_from_log_and_outcomes(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out.parquet"
    how = Exploration("try", "pools-1", 0.5, 7, (1,), ("a",), (("b",),), ())
    rows = outcomes(
        tmp_path,
        shown("r1", "ann of here", 0, "a", exploration=how),
        shown("r2", "bob", 0, "a", "b"),
        did("ann of here", "a", "buy", 1),
    )
    assert len(rows) == 3
    scope = Scope(log, others=(out,))
    known = known_of(scope, "ann of here")
    assert [exposure["exploration"]["policy"] for exposure in known["log"]["exposures"]] == ["try"]
    assert [row["buy_count"] for row in known["other files"][str(out)]] == [1]
    report = erase_user(scope, "ann of here")
    assert (report.n_left, [place.found for place in report.places]) == (0, [2, 1])
    assert pl.read_parquet(out).get_column("user_id").to_list() == ["bob", "bob"]
    assert known_of(scope, "ann of here")["log"] == {}
    write_outcomes(log, out, WEEK)
    assert pl.read_parquet(out).get_column("user_id").to_list() == ["bob", "bob"]


def test_the_command(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out.parquet"
    append(log, shown("r", "ann", 0, "a"), did("ann", "a", "buy", 1), did("ann", "b", "buy", 1))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["log", "outcomes", str(out), "--log", str(log), *arguments])

    result = run("--json", "--within", "36h")
    assert orjson.loads(result.stdout) == {
        "answers": 1,
        "rows": 1,
        "complete": 1,
        "events": 2,
        "by_request": 0,
        "by_user": 1,
        "types": ["buy"],
        "left_out": [],
        "damaged": 0,
    }
    assert run().stdout == (
        f"{out}: 1 items of 1 answers; 1 windows are over\n"
        "2 events: 0 belong to the answer that they name, 1 to the latest one to their user, 1 to none\n"
    )
    assert run("--within", "soon").exit_code == 2
    with pytest.raises(LogError, match=r"the outcomes cannot be written: .*"):
        write_outcomes(log, tmp_path / "none" / "out.parquet", WEEK)
