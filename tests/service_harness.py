"""Harness that runs the service with a toy bundle and a store that can fail."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from fastapi import FastAPI
from fastapi.testclient import TestClient
from media import picture
from toy_service import (
    NOW,
    RULES,
    ToyFiller,
    ToyShelf,
    toy_bundle,
    toy_encoders,
    toy_events,
    toy_settings,
    toy_upsert,
    with_contents,
)

from features.errors import StoreError
from features.schema import DataConfig, EventRules
from features.store.memory import MemoryStore
from features.store.user_state import UserState
from serving.app import create_app
from serving.http import http_server

HOME = "/v1/users/{}/recommendations?limit={}&placement={}"
GREEN_PNG = picture(np.full((8, 8, 3), (0, 255, 0), np.uint8), "PNG")


def facts_of(problem: dict[str, Any]) -> dict[str, Any]:
    """What a problem document says of one request, besides what its code says."""
    return {name: problem[name] for name in ("code", "detail", "place")}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def endless() -> Iterator[bytes]:
    """A body of 50 MB without a declared length."""
    for _ in range(500):
        yield b" " * 100_000


class Flaky(MemoryStore):
    """In-memory store that raises StoreError while `away` is set."""

    away = False

    def read_users(self, ids: Any, *, shown: bool = False) -> list[UserState]:
        self.ping()
        return super().read_users(ids, shown=shown)

    def add_shown(self, user: Any, shown: Any, days: float) -> None:
        self.ping()
        super().add_shown(user, shown, days)

    def move_shown(self, moves: Any) -> None:
        self.ping()
        super().move_shown(moves)

    def push(self, events: Any) -> None:
        self.ping()
        super().push(events)

    def change_users(self, users: Any, change: Any, fill: str = "") -> None:
        self.ping()
        super().change_users(users, change, fill)

    def recent_users(self, limit: int) -> list[str]:
        self.ping()
        return super().recent_users(limit)

    def watermark(self) -> Any:
        self.ping()
        return super().watermark()

    def ping(self) -> None:
        if self.away:
            raise StoreError("away")


class JsonClient(TestClient):
    """A client of an application at 127.0.0.1 that sends bodies as JSON, unless the call says otherwise."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        super().__init__(app, base_url="http://127.0.0.1", **options)

    def request(self, method: str, url: Any, **call: Any) -> Any:
        if call.get("content") is not None:
            named = {name.lower(): value for name, value in (call.get("headers") or {}).items()}
            call["headers"] = {"content-type": "application/json"} | named
        return super().request(method, url, **call)


class ServiceHarness:
    """A running service, its client and its parts. opened: the arguments of each call that opened encoders."""

    def __init__(self, folder: Path, client: TestClient, shelf: ToyShelf, store: Flaky, opened: list[Any]) -> None:
        self.folder, self.client, self.shelf, self.store, self.opened = folder, client, shelf, store, opened
        self.service = client.app.state.service  # type: ignore[attr-defined]

    def items(self, user: str, k: int = 4, place: str = "home") -> list[str]:
        return [item["item_id"] for item in self.get(user, k, place)["items"]]

    def get(self, user: str, k: int = 4, place: str = "home") -> Any:
        response = self.client.get(HOME.format(user, k, place))
        assert response.status_code == 200, response.text
        return response.json()

    def click(self, user: str, item: str, **more: Any) -> Any:
        event = {"user_id": user, "item_id": item, "event": "click", **more}
        response = self.client.post("/v1/events", content=orjson.dumps(event))
        assert response.status_code == 202, response.text
        return response.json()

    def post(self, **query: Any) -> Any:
        return self.client.post("/v1/search", content=orjson.dumps(query))

    def found(self, **query: Any) -> list[str]:
        response = self.post(**query)
        assert response.status_code == 200, response.text
        return [item["item_id"] for item in response.json()["items"]]


@contextmanager
def service_harness(
    folder: Path,
    *,
    shelf: ToyShelf | None = None,
    events: Callable[[DataConfig], pl.DataFrame] = lambda _: toy_events(),
    store: Any = None,
    encoders: Callable[..., Any] = toy_encoders,
    **options: object,
) -> Iterator[ServiceHarness]:
    """A running service. Tests call `service.step`, unless they set follow_seconds."""
    shelf, store, opened = shelf or ToyShelf(with_contents(toy_bundle(folder))), store or Flaky(RULES), []

    def connect(rules: EventRules) -> Any:
        store.rules = rules
        return store

    def open_(*arguments: Any) -> Any:
        opened.append(arguments)
        return encoders(*arguments)

    app = create_app(
        toy_settings(folder, **{"follow_seconds": 3600, **options}),
        load=shelf.load,
        upsert=toy_upsert,
        place=toy_upsert,
        merge=lambda bundle: None,
        current=shelf.current,
        find=shelf.find,
        connect=connect,
        filler=ToyFiller(folder, events),
        now=lambda: NOW,
        encoders=open_,
    )
    with JsonClient(app, raise_server_exceptions=False) as client:
        yield ServiceHarness(folder, client, shelf, store, opened)


@contextmanager
def serving(app: FastAPI, loop: str = "asyncio", **options: Any) -> Iterator[str]:
    """Run an application on a real server with a free port; yields its URL. options: of `http_server`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = http_server(app, loop=loop, log_level="warning", **options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
