"""The analysis of a running test: figures by hand, what is left out, alarms, refusals."""

import json
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from experiments.evaluation.online import analyse
from features.errors import DataError
from features.log.outcomes.table import COLUMNS
from recsys.cli.main import app

HEAD = {
    "placement": "home",
    "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
    "fingerprint": "f",
    "source": "api",
    "item_id": "i",
    "position": 1,
    "score": 0.5,
    "propensity": 1.0,
    "reason": "recent",
    "explored": False,
    "complete": True,
}


def write(path, rows):
    """rows: (request, user, variant, clicks), or with a fifth value: whether the window is over."""
    lines = [
        HEAD
        | dict(zip(("request_id", "user_id", "variant", "click_count"), row, strict=False))
        | {"complete": len(row) < 5 or row[4]}
        for row in rows
    ]
    pl.DataFrame(lines).select(*COLUMNS, "click_count").write_parquet(path)
    return path


def test_figures_by_hand(tmp_path):
    # arm a: u1 two answers, 3 clicks; u2 one answer, none. Arm b: u3 one answer of two items, 2 clicks; u4 two, 4
    rows = [("1", "u1", "a", 2), ("2", "u1", "a", 1), ("3", "u2", "a", 0)]
    rows += [("4", "u3", "b", 1), ("4", "u3", "b", 1), ("5", "u4", "b", 4), ("6", "u4", "b", 0)]
    found = analyse(write(tmp_path / "o.parquet", rows), ["click"])
    assert (found.control, found.users, found.in_several) == ("a", {"a": 2, "b": 2}, 0)
    assert found.sample_ratio_p == 1
    figures = {row.metric: row for row in found.changes}
    per_user = figures["click per user"]
    assert (per_user.control_value, per_user.arm_value, per_user.change.mean) == (1.5, 3, 1.5)
    assert (figures["users with click"].control_value, figures["users with click"].arm_value) == (0.5, 1)
    assert (figures["click per answer"].control_value, figures["click per answer"].arm_value) == (
        1,
        2,
    )  # 3 / 3, 6 / 3
    # variances 4.5 / 2 and 2 / 2 of the means: an error of 3.25 ** .5; detectable 2.801585 times it
    assert per_user.detectable == pytest.approx(2.801585 * 3.25**0.5, rel=1e-5)
    assert per_user.always.low < per_user.change.mean < per_user.always.high
    assert all(row.p_adjusted >= row.p for row in found.changes)


def test_what_is_left_out_is_counted(tmp_path):
    rows: list[tuple[object, ...]] = [
        ("1", "u1", "a", 1),
        ("2", "u2", "a", 1),
        ("3", "u3", "b", 1),
        ("4", "u4", "b", 1),
    ]
    rows += [("5", "both", "a", 9), ("6", "both", "b", 9), ("7", None, "a", 9), ("8", "u1", "a", 9, False)]
    found = analyse(write(tmp_path / "o.parquet", rows), ["click"])
    assert (found.in_several, found.anonymous, found.open_rows) == (1, 1, 1)
    assert {row.arm_value for row in found.changes} == {1}
    assert {row.change.mean for row in found.changes} == {0}


def test_one_of_several_experiments(tmp_path):
    rows = [
        ("1", "u1", "x:old,y:p", 1),
        ("2", "u2", "x:old,y:q", 2),
        ("3", "u3", "x:new", 3),
        ("4", "u4", "x:new,y:q", 5),
    ]
    rows += [("5", "u5", "none", 7), ("6", "u6", "xx:old", 7)]
    found = analyse(write(tmp_path / "o.parquet", rows), ["click"], experiment="x", control="old")
    assert found.users == {"new": 2, "old": 2}
    assert found.changes[0].change.mean == 4 - 1.5


def test_the_time_before_explains_variance(tmp_path):
    rng = np.random.default_rng(0)
    before = rng.poisson(5, 400)
    now = before + rng.poisson(1, 400)
    past = write(tmp_path / "p.parquet", [(f"p{u}", f"u{u}", "-", int(n)) for u, n in enumerate(before)])
    rows = [(f"r{u}", f"u{u}", "ab"[u % 2], int(n)) for u, n in enumerate(now)]
    found = analyse(write(tmp_path / "o.parquet", rows), ["click"], before=past)
    plain, adjusted = (
        next(row.change for row in found.changes if row.metric == name)
        for name in ("click per user", "click per user, CUPED")
    )
    assert adjusted.high - adjusted.low < 0.6 * (plain.high - plain.low)  # of 6 parts of variance, 5 are known before
    assert adjusted.low < 0 < adjusted.high


def test_a_variant_that_names_experiments_needs_the_name_of_one(tmp_path):
    path = write(tmp_path / "o.parquet", [("1", "u1", "x:a,y:b", 1), ("2", "u2", "default", 1)])
    with pytest.raises(DataError, match="`variant` names experiments, x, y: name one"):
        analyse(path, ["click"])


def test_the_control_of_the_service_is_the_control(tmp_path):
    rows = [(f"{u}", f"u{u}", "x:control" if u % 2 else "x:a", u) for u in range(8)]
    found = analyse(write(tmp_path / "o.parquet", rows), ["click", "click"], experiment="x")
    assert found.control == "control"
    assert len(found.changes) == 3  # a type that is named twice counts once


def test_an_arm_of_one_user_is_not_compared_and_one_without_users_is_an_alarm(tmp_path):
    rows = [(f"{u}", f"u{u}", "ab"[u % 2], 1) for u in range(40)] + [("x", "tester", "test", 9)]
    path = write(tmp_path / "o.parquet", rows)
    found = analyse(path, ["click"])
    assert {row.arm for row in found.changes} == {"b"}
    assert found.users == {"a": 20, "b": 20, "test": 1}
    assert analyse(path, ["click"], shares={"a": 1, "b": 1, "lost": 1}).warning


def test_an_assignment_that_is_not_as_planned_is_an_alarm(tmp_path):
    rows = [(f"{u}", f"u{u}", "a" if u < 700 else "b", 0) for u in range(1000)]
    path = write(tmp_path / "o.parquet", rows)
    found = analyse(path, ["click"])
    assert "broken" in found.warning
    assert "broken" in str(found.render().title)
    assert analyse(path, ["click"], shares={"a": 7, "b": 3}).warning == ""


@pytest.mark.parametrize(
    ("types", "options", "message"),
    [
        (["buy"], {}, "no event of type buy; it has click"),
        (["click"], {"control": "c"}, "arms with users: a 2, b 2; at least two are needed, the control among them"),
        (["click"], {"experiment": "x"}, "arms with users: none"),
        (["click"], {"shares": {"a": 1, "c": 1}}, "no share is planned for b"),
    ],
)
def test_what_cannot_be_analysed_is_refused(tmp_path, types, options, message):
    rows = [("1", "u1", "a", 1), ("2", "u2", "a", 1), ("3", "u3", "b", 1), ("4", "u4", "b", 1)]
    path = write(tmp_path / "o.parquet", rows)
    with pytest.raises(DataError, match=message):
        analyse(path, types, **options)


def test_another_file_is_refused(tmp_path):
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no file of `recsys log outcomes`: it has no column"):
        analyse(tmp_path / "x.parquet", ["click"])


def test_the_command_prints_both_forms(tmp_path):
    rows = [("1", "u1", "a", 1), ("2", "u2", "a", 3), ("3", "u3", "b", 1), ("4", "u4", "b", 4)]
    path = str(write(tmp_path / "o.parquet", rows))
    command = ["experiment", "analyse", path, "--event", "click"]
    printed = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert json.loads(printed.stdout) == json.loads(json.dumps(analyse(tmp_path / "o.parquet", ["click"]).to_dict()))
    shown = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    assert "click per user" in shown
    assert "sample ratio p = 1" in shown
    for wrong in ("a", "=1", "a=0", "a=x", "a=inf"):
        refused = CliRunner().invoke(app, [*command, "--share", wrong])
        assert "ARM=SHARE is needed" in str(refused.exception) + refused.output
