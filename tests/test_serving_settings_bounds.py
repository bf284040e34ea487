"""Bounds and defaults of the settings of the service, and of the fields of its requests."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from features.log.upkeep.retention import Limit
from serving.routes.search_query import SearchIn
from serving.schemas import EventIn
from serving.settings import ServeSettings

NEEDED: dict[Any, dict[str, Any]] = {EventIn: {"user_id": "u", "item_id": "i", "event": "click"}}

BOUNDS: list[tuple[type[BaseModel], str, list[Any], list[Any]]] = [
    (ServeSettings, "port", [0, 65535], [-1, 65536]),
    (ServeSettings, "store_timeout", [0.001, 3600], [0, 3601]),
    (ServeSettings, "store_pause", [0, 3600], [-1, 3601]),
    (ServeSettings, "follow_seconds", [0.001, 3600], [0, 3601]),
    (ServeSettings, "events_days", [None, 0.5], [0]),
    (ServeSettings, "events_bytes", [None, 1], [0]),
    (ServeSettings, "exposures_days", [0.5, float("inf")], [0]),
    (ServeSettings, "exposures_bytes", [None, 1], [0]),
    (ServeSettings, "threads", [1, 1024], [0, 1025]),
    (ServeSettings, "search_bytes", [1], [0]),
    (ServeSettings, "search_wait", [0.001, 3600], [0, 3601]),
    (ServeSettings, "search_seconds", [0.001, 3600], [0, 3601]),
    (EventIn, "position", [None, 1, 10_000], [0, 10_001]),
    (SearchIn, "k", [1, 100], [0, 101]),
    (SearchIn, "weight", [0, 1], [-0.01, 1.01]),
]
"""Model, setting, values that it takes, values that it does not take."""


@pytest.mark.parametrize(
    ("model", "setting", "fit", "unfit"),
    BOUNDS,
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_bounds(model: type[BaseModel], setting: str, fit: list[Any], unfit: list[Any]) -> None:
    needed = NEEDED.get(model, {})
    for value in fit:
        assert getattr(model.model_validate({**needed, setting: value}), setting) == value
    for value in unfit:
        with pytest.raises(ValidationError):
            model.model_validate({**needed, setting: value})


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    settings = ServeSettings.model_validate({})
    shown = {name: value for name, value in settings.model_dump().items() if name not in ("bundles", "log")}
    assert shown == {
        "host": "127.0.0.1",
        "port": 8000,
        "redis_url": None,
        "store_timeout": 0.035,
        "store_pause": 1.0,
        "follow_seconds": 0.5,
        "events_days": None,
        "events_bytes": None,
        "exposures_days": 30,
        "exposures_bytes": None,
        "threads": 4,
        "search_bytes": 33_554_432,
        "search_wait": 10.0,
        "search_seconds": 30.0,
        "preload": True,
    }
    assert (str(settings.bundles), str(settings.log)) == ("bundles", "state/log")
    assert settings.log_limits == {"events": Limit(None, None), "exposures": Limit(30, None)}
    assert (SearchIn().k, SearchIn().weight) == (20, 0.3)


def test_the_password_of_the_store_is_not_shown() -> None:
    settings = ServeSettings.model_validate({"redis_url": "redis://:s3cret@host:7"})
    assert settings.redis_url == "redis://:s3cret@host:7"
    assert "s3cret" not in f"{settings!r} {settings}"
