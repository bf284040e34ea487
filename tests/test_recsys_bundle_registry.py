"""The history of what was current."""

import os
import time

from recsys.bundle.registry import HISTORY, publications, publish_bundle


def test_what_was_current_is_noted(tmp_path, monkeypatch):
    for name, why in (("a", ""), ("b", "better"), ("b", "again"), ("a", "back")):
        publish_bundle(tmp_path / name, why)
    monkeypatch.setattr("getpass.getuser", fail)
    publish_bundle(tmp_path / "c")
    found = publications(tmp_path)
    assert [(each.previous, each.bundle, each.why) for each in found] == [
        *((None, "a", ""), ("a", "b", "better")),
        *(("b", "a", "back"), ("a", "c", "")),
    ]
    assert found[-1].by == str(os.getuid())
    assert 0 < found[1].time - found[0].time < 60 * 10**6
    assert abs(found[-1].time / 1e6 - time.time()) < 60
    with (tmp_path / HISTORY).open("a") as history:
        history.write('{"bundle": "d", "prev')  # cut off by a crash
    assert publications(tmp_path) == found
    assert publications(tmp_path / "none") == []


def fail():
    """Raises KeyError."""
    return os.environ["NOBODY HAS THIS"]
