"""The report of one night: its steps, what was decided, and what is served now."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.tracking.progress import Reporter
from features.files import put_file

REPORT = "nightly.json"
"""File with the report of the last night, in the folder of the bundles."""

PUBLISHED, REFUSED, NOTHING_NEW, FAILED = "published", "not published", "nothing new", "failed"
DONE, SKIPPED = "done", "skipped"


def utc_now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class Night:
    """The report of one night, filled in as the night goes on.

    status: PUBLISHED, REFUSED, NOTHING_NEW or FAILED; reason: why, in one line; kind: "full" or "warm start", ""
    where nothing was trained; served, current: fingerprints of what was served before and is served after it, None
    for nothing; steps: name, status (DONE, SKIPPED, FAILED), seconds and a note of each; data: lines on the tables,
    with what was rejected; held_back: the events that both were judged on; decision: see `Decision`; tables: of the
    evaluation; started, ended: UTC.
    """

    name: str
    served: str | None
    current: str | None
    started: str = field(default_factory=utc_now)
    ended: str = ""
    status: str = FAILED
    reason: str = ""
    kind: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    held_back: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None
    tables: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, reporter: Reporter) -> Iterator[dict[str, Any]]:
        """Record a step; yields its record, where the body may set `note`, and `status` to SKIPPED."""
        reporter.say(f"nightly: {name}")
        record = {"step": name, "status": DONE, "seconds": 0.0, "note": ""}
        self.steps.append(record)
        begun = datetime.now(UTC)
        try:
            yield record
        except BaseException:
            record["status"] = FAILED
            raise
        finally:
            record["seconds"] = round((datetime.now(UTC) - begun).total_seconds(), 1)
            if record["note"]:
                reporter.say(f"nightly: {name}: {record['note']}")

    def end(self) -> None:
        """Record the time of its end."""
        self.ended = utc_now()

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the tracked run."""
        facts = {"nightly": self.status, "nightly.reason": self.reason, "nightly.kind": self.kind}
        return facts | {"nightly.served": self.served or "none", "nightly.current": self.current or "none"}

    def lines(self) -> list[str]:
        """The report as text."""
        kind = f" ({self.kind})" if self.kind else ""
        out = [f"{self.name}: {self.status}{kind}: {self.reason}"]
        out.append(f"served before: {self.served or 'nothing'}; served now: {self.current or 'nothing'}")
        if self.status == PUBLISHED and self.held_back:
            events, start = self.held_back["events"], self.held_back["from"]
            out.append(f"judged without the {events:,} positive events from {start} on; published with all events")
        return out

    def write(self, folder: Path) -> Path:
        """Write the report as JSON into a folder, and return its path. Raises OSError."""
        path = folder / REPORT
        put_file(path, lambda part: part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8"))
        return path
