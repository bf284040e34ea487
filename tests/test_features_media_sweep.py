"""A starting service deletes unused media after it has applied all item changes."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import picture
from service_harness import GREEN_PNG, b64, service_harness
from test_serving_catalog_updater import put, settled, slow, state
from toy_service import NOW

from features.instants import DAY
from features.log.event_log import EventLog
from features.log.item_changes import store_media
from features.log.records import ItemDeleted, ItemPut


def log_of_days(folder: Path) -> dict[str, Path]:
    """A log of three days: `sky` was put with an old and then a new picture, `cloud` was put and deleted."""
    log = EventLog(folder / "log")
    grey = np.full((8, 8, 3), 99, np.uint8)
    old, new, deleted = (store_media(folder / "log", picture(grey, form)) for form in ("BMP", "PNG", "GIF"))
    for item, days, image in (("sky", 3, old), ("cloud", 3, deleted), ("sky", 2, new)):
        log.append_now([ItemPut(item_id=item, timestamp=NOW - days * DAY, fields={"title": "blue", "image": image})])
    log.append_now([ItemDeleted(item_id="cloud", timestamp=NOW - 2 * DAY)])
    log.close()
    for name in (old, new, deleted):
        os.utime(folder / "log" / name, ns=(0, (NOW - 3 * DAY) * 1000))
    return {"old": folder / "log" / old, "new": folder / "log" / new, "deleted": folder / "log" / deleted}


def test_unused_media_are_deleted_after_all_changes_are_applied(tmp_path: Path) -> None:
    kept, gate = log_of_days(tmp_path), threading.Event()
    with service_harness(tmp_path, encoders=slow(gate)) as h:
        assert state(h, "sky")["status"] == "embedding"
        assert all(path.exists() for path in kept.values())
        gate.set()
        assert settled(h, "sky")["status"] == "live"
        until = time.monotonic() + 20
        while kept["old"].exists() or kept["deleted"].exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert h.client.get("/media/sky").content == kept["new"].read_bytes()
        put(h, "cloud", title="blue", image=b64(GREEN_PNG))
        assert settled(h, "cloud")["status"] == "live"


def test_media_that_cannot_be_deleted_are_logged_and_the_service_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept, unlink = log_of_days(tmp_path), Path.unlink

    def fails(path: Path, **more: Any) -> None:
        if path in kept.values():
            raise OSError("read-only")
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", fails)
    with service_harness(tmp_path) as h:
        assert settled(h, "sky")["status"] == "live"
        until = time.monotonic() + 20
        while "cannot be deleted" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.01)
        put(h, "cloud", title="blue", image=b64(GREEN_PNG))
        assert settled(h, "cloud")["status"] == "live"
    assert all(path.exists() for path in kept.values())
