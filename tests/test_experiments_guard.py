"""The guard after a publication: figures by hand, breaches, what is left out, false alarms, the roll-back."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_features_outcomes import append, did, shown
from toy_data import FACTS, noise, toy_stage
from typer.testing import CliRunner

from experiments.pipelines.release import guard as module
from experiments.pipelines.release.guard import GuardReport, guard, rolled_back
from experiments.statistics.arms import Arm
from features.errors import BundleError, DataError, RecsysError
from recsys.bundle.io import save_bundle
from recsys.bundle.registry import HISTORY, Publication, current_bundle, publications, publish_bundle
from recsys.cli.main import app

DAY = 86_400_000_000
START = 20_000 * DAY
HOUR = DAY // 24
AT = 20
"""Day of the publication of `new` after `old`, in days since START."""


def published(root: Path, bundle: str = "new", previous: str | None = "old") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / bundle).mkdir(exist_ok=True)
    publish_bundle(root / bundle)
    at = (datetime(2024, 10, 4, tzinfo=UTC) + timedelta(days=AT)).isoformat()
    entry = {"bundle": bundle, "previous": previous, "at": at, "by": "me", "why": ""}
    (root / HISTORY).write_text(json.dumps(entry) + "\n")
    return root


def answers(day: float, fingerprint: str, users: int, clicks: int, **more: Any) -> list[Any]:
    """One answer of two items to each user; the first `clicks` users click on one of them."""
    records = [
        shown(f"{fingerprint}{day}{u}", f"u{u}", day, "a", "b", fingerprint=fingerprint, **more) for u in range(users)
    ]
    return records + [
        did(f"u{u}", "a", "click", day + 0.01, f"{fingerprint}{day}{u}") for u in range(users) if u < clicks
    ]


def look(tmp_path: Path, *records: Any, tolerated: float = 0.02, now: float = AT + 5) -> GuardReport:
    append(tmp_path / "log", *records)
    return guard(
        tmp_path / "log",
        published(tmp_path / "bundles"),
        ["click"],
        within=HOUR,
        tolerated=tolerated,
        now=START + int(now * DAY),
    )


def test_figures_by_hand(tmp_path: Path) -> None:
    report = look(
        tmp_path,
        *answers(AT - 1, "old", 200, 100),
        *answers(AT - 2, "old", 200, 50),  # the same users again
        *answers(AT + 1, "new", 150, 90),
        *answers(AT - 15, "old", 200, 200),  # more than two weeks before
        *answers(AT - 1, "other", 200, 200),  # another bundle
        *answers(AT + 1, "old", 200, 200),  # a service that is late
        *answers(AT + 5, "new", 150, 0),  # the window is open
        shown("nobody", "", AT - 1, "a", fingerprint="old"),
    )
    clicks, whole = report.rows
    assert report.users == (201, 150)
    assert (clicks.metric, clicks.before, clicks.after) == ("click per answer", 150 / 401, 90 / 150)
    assert (whole.before, whole.after, whole.change.mean) == (1, 1, 0)
    assert whole.change.low == whole.change.high == 0
    assert clicks.change.mean == pytest.approx(0.6 - 150 / 401)
    assert clicks.change.low < clicks.change.mean < clicks.change.high
    assert clicks.bound == pytest.approx(-0.02 * 150 / 401)
    assert report.breaches == []
    assert "201 users before, 150 since" in str(report.render().caption)


def test_a_fall_is_a_breach(tmp_path: Path) -> None:
    report = look(tmp_path, *answers(AT - 1, "old", 400, 200), *answers(AT + 1, "new", 400, 40))
    (breach,) = report.breaches
    assert breach.startswith("click per answer: 0.5 before, 0.1 since, -0.4 [")
    assert breach.endswith("tolerated -0.01")
    assert [row["breached"] for row in report.to_dict()["rows"]] == [True, False]


def test_a_fall_that_is_tolerated_is_none(tmp_path: Path) -> None:
    records = (*answers(AT - 1, "old", 400, 200), *answers(AT + 1, "new", 400, 40))
    assert look(tmp_path, *records, tolerated=0.9).breaches == []


@pytest.mark.parametrize("broken", [{"degraded": ("store",)}, {"items": (), "scores": (), "propensities": ()}])
def test_answers_that_are_degraded_or_empty_are_a_breach(broken: dict[str, Any], tmp_path: Path) -> None:
    good, bad = answers(AT - 1, "old", 200, 50), answers(AT + 1, "new", 200, 50)
    more = {"reasons": (), **broken} if "items" in broken else broken
    worse = [
        shown(f"x{u}", f"u{u}", AT + 2, *broken.get("items", ("a",)), fingerprint="new", **more) for u in range(150)
    ]
    report = look(tmp_path, *good, *bad, *worse)
    whole = report.rows[1]
    assert (whole.before, whole.after) == (1, 200 / 350)
    assert any("neither degraded nor empty" in breach for breach in report.breaches)


def test_few_users_say_nothing(tmp_path: Path) -> None:
    report = look(tmp_path, *answers(AT - 1, "old", 400, 400), *answers(AT + 1, "new", 99, 0))
    assert (report.users, report.rows, report.breaches) == ((400, 99), [], [])


def test_an_empty_log_has_no_event(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no event of type click in .*; there are: none"):
        look(tmp_path)


@pytest.mark.parametrize(
    ("bundle", "previous", "message"),
    [
        ("first", None, "first is the first bundle that was published"),
        ("other", "old", r"published\.jsonl does not say when \w+ was published"),
    ],
)
def test_a_publication_that_is_not_known_is_refused(
    bundle: str, previous: str | None, message: str, tmp_path: Path
) -> None:
    root = published(tmp_path, bundle, previous)
    if previous:
        (root / "moved").mkdir()
        (root / "current").unlink()
        (root / "current").symlink_to("moved")  # by hand
    with pytest.raises(BundleError, match=message):
        guard(tmp_path / "log", root, ["click"], within=HOUR, tolerated=0.02)


def test_in_the_first_day_the_same_hours_count(tmp_path: Path) -> None:
    """Six hours after the publication: of the day before, the first six hours count; people click by night only."""
    night, evening = (answers(AT - 1 + at, "old", 200, clicks) for at, clicks in ((0.1, 100), (0.6, 0)))
    report = look(tmp_path, *night, *evening, *answers(AT + 0.1, "new", 200, 100), now=AT + 0.25)
    row = report.rows[0]
    assert (report.users, row.before, row.after) == ((200, 200), 0.5, 0.5)
    later = look(tmp_path / "later", *night, *evening, *answers(AT + 0.1, "new", 200, 100), now=AT + 1.5)
    assert later.rows[0].before == 0.25


def test_rare_events_that_have_not_come_yet_are_no_breach(tmp_path: Path) -> None:
    """Three of 1,000 users clicked before, and none of the first 150 since."""
    records = [*answers(AT - 1, "old", 1000, 3), *answers(AT + 1, "new", 150, 0)]
    report = look(tmp_path, *records)
    assert report.rows[0].after == 0
    assert report.breaches == []


def test_a_bundle_that_was_published_meanwhile_is_not_rolled_back(tmp_path: Path) -> None:
    report = look(tmp_path, *answers(AT - 1, "old", 1000, 900), *answers(AT + 1, "new", 1000, 10))
    assert report.breaches
    published(tmp_path / "bundles", "newest", "new")
    with pytest.raises(BundleError, match="another bundle was published meanwhile; nothing was rolled back"):
        rolled_back(report, tmp_path / "bundles")
    assert current_bundle(tmp_path / "bundles").name == "newest"


def test_false_alarms_of_many_looks_are_seldom() -> None:
    """Both bundles are alike: 500 guards, each with 40 looks from 100 to 4,000 users, and no tolerance."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(500):
        before = Arm.of_means(rng.exponential(1.0, 2000))
        values = rng.exponential(1.0, 4000)
        alarms += any(
            module._row("m", before, Arm.of_means(values[:n]), 0.0, 0.975).breached for n in range(100, 4001, 100)
        )
    assert alarms <= 0.025 * 500  # one side of 5 %


def test_a_real_fall_is_found_soon() -> None:
    rng = np.random.default_rng(0)
    before, values = Arm.of_means(rng.exponential(1.0, 2000)), rng.exponential(0.7, 4000)
    looks = [
        n for n in range(100, 4001, 100) if module._row("m", before, Arm.of_means(values[:n]), 0, 0.975).breached
    ]
    assert looks
    assert looks[0] < 1000


def test_the_command_says_how_to_roll_back_and_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage, catalog, statistics = toy_stage(noise(20, 10))
    old, new = (
        save_bundle(Path("bundles"), catalog, stage, statistics, FACTS | {"config": FACTS["config"] | {"limits": n}})
        for n in (1, 2)
    )
    publish_bundle(old)
    publish_bundle(new, "better")
    since = publications(Path("bundles"))[-1].time
    micros = (since - START) / DAY
    append(
        tmp_path / "state/log",
        *answers(micros - 1, old.name, 400, 200),
        *answers(micros + 1, new.name, 400, 0),
    )
    monkeypatch.setattr(module.time, "time_ns", lambda: (since + 3 * DAY) * 1000)
    command = ["experiment", "guard", "--event", "click"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 3
    assert "BREACH" in found.stdout
    assert f"to roll back: recsys bundle publish {old.name}\n" in found.stderr
    assert current_bundle(Path("bundles")).name == new.name
    found = CliRunner().invoke(app, [*command, "--roll-back", "--json", "--every", "1h"])  # a breach ends it
    assert found.exit_code == 3
    assert json.loads(found.stdout)["rows"][0]["breached"]
    assert current_bundle(Path("bundles")).name == old.name
    last = publications(Path("bundles"))[-1]
    assert last.why.startswith("recsys experiment guard: click per answer: 0.5 before, 0 since")
    assert (last.previous, last.bundle) == (new.name, old.name)
    assert CliRunner().invoke(app, [*command, "--log", "none"]).exit_code != 0


def test_the_command_names_another_folder() -> None:
    of = Publication("new", "old", "2026-01-01T00:00:00+00:00", "me", "")
    assert module.roll_back_command(GuardReport(of, (1, 1), []), Path("my bundles")) == (
        "recsys bundle publish old --bundles 'my bundles'"
    )


def test_an_error_is_one_of_ours(tmp_path: Path) -> None:
    with pytest.raises(RecsysError):
        guard(tmp_path / "log", tmp_path / "none", ["click"], within=HOUR, tolerated=0.02)
