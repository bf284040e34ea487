"""Services on one log: any number with a shared store, or one with a private store."""

import os
from pathlib import Path

import pytest
from toy_service import toy_settings

from features.errors import ConfigError
from features.store.redis_server import RedisServer
from serving.app import create_app
from serving.state.log_claim import claim


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_a_private_store_and_another_service_do_not_meet(tmp_path: Path, first: bool, second: bool) -> None:
    held = claim(tmp_path, private=first)
    with pytest.raises(ConfigError, match=r"another service writes the event log in .* one server with REDIS_URL"):
        claim(tmp_path, private=second)
    os.close(held)
    os.close(claim(tmp_path, private=second))


def test_services_with_a_shared_store_meet(tmp_path: Path) -> None:
    for descriptor in [claim(tmp_path, private=False), claim(tmp_path, private=False)]:
        os.close(descriptor)


def test_a_second_service_ends_before_it_starts_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[object]()
    monkeypatch.setattr("serving.state.service.RedisServer", lambda: started.append(RedisServer))
    (tmp_path / "log").mkdir()
    held = claim(tmp_path / "log", private=True)
    app = create_app(toy_settings(tmp_path))
    with pytest.raises(ConfigError, match="this one would have a private feature store"):
        app.state.service.open()
    app.state.service.log.close()
    os.close(held)
    assert started == []
