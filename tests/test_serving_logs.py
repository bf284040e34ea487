"""Ids of requests in responses and log lines; log lines as text and as JSON."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from service_harness import service_harness
from toy_service import Nearest, ToyShelf, toy_bundle

from features.log.reader import read
from features.log.records import EXPOSURES, Exposure
from serving.telemetry.logs import JsonLines, TextLines, set_up_logs
from serving.telemetry.request_id import current


@contextmanager
def lines_of(formatter: logging.Formatter) -> Iterator[list[str]]:
    """The lines that a handler with the formatter writes of the loggers of the service."""
    stream, lines = io.StringIO(), list[str]()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("recsys")
    handler.setFormatter(formatter)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        lines += stream.getvalue().splitlines()


def test_every_response_has_the_id_of_its_request(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        answers = [
            harness.client.get("/v1/users/ann/recommendations"),
            harness.client.get("/v1/items/i1/similar"),
            harness.post(text="blue"),
        ]
        for answer in answers:
            assert answer.headers["x-request-id"] == answer.json()["request_id"]
        others = [
            harness.client.get(path)
            for path in ("/healthz", "/metrics", "/nothing", "/v1/users/%ff/history", "/", "/v1/about?x=1")
        ]
        others.append(harness.client.get("/healthz", headers={"Host": "evil.example"}))
        ids = [UUID(response.headers["x-request-id"]) for response in [*answers, *others]]
        assert len(set(ids)) == 10
    logged = read(tmp_path / "log", stream=EXPOSURES).records
    assert [exposure.request_id for exposure in logged if isinstance(exposure, Exposure)] == list(map(str, ids[:3]))


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        ("shop-7/a=b", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("two words", False),
        ('"}, {', False),
        ("é", False),
    ],
)
def test_an_id_of_the_client_is_taken_when_it_is_a_short_safe_text(tmp_path: Path, sent: str, taken: bool) -> None:
    with service_harness(tmp_path) as harness:
        path = "/v1/users/ann/recommendations"
        answers = [harness.client.get(path, headers={b"X-Request-ID": sent.encode()}) for _ in range(2)]
    assert [answer.headers["x-request-id"] == sent for answer in answers] == [taken] * 2
    ids = [answer.json()["request_id"] for answer in answers]  # events name them: no two answers share one
    assert len({UUID(each) for each in ids}) == 2


def test_an_unexpected_error_has_its_id_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path) as harness:

        def fail() -> dict[str, str]:
            raise RuntimeError("a fault of the service")

        monkeypatch.setattr(type(harness.service), "problems", property(lambda _: fail()))
        response = harness.client.get("/readyz", headers={"X-Request-Id": "id-of-client"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "id-of-client"


def test_lines_of_a_request_name_it(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    shelf = ToyShelf(replace(bundle, recommender=Nearest(12)))
    with service_harness(tmp_path, shelf=shelf) as harness, lines_of(TextLines()) as lines:
        object.__setattr__(shelf.bundles["first"].recommender, "broken", True)
        harness.client.get("/v1/users/ann/recommendations", headers={"X-Request-Id": "from-shop"})
    (line,) = [line for line in lines if "the recommender failed" in line]
    assert line.endswith("recsys.serving: the recommender failed for a history of 2 items [request from-shop]")
    assert any(line.startswith("RuntimeError") for line in lines)
    assert current.get() == ""


def test_lines_as_json(tmp_path: Path) -> None:
    shelf = ToyShelf(toy_bundle(tmp_path))
    with service_harness(tmp_path, shelf=shelf, request_log=True) as harness, lines_of(JsonLines()) as lines:
        logging.getLogger("recsys.serving").warning("%d\n%s", 7, "two lines")
        object.__setattr__(shelf.bundles["first"].recommender, "broken", True)
        harness.client.get("/v1/users/ann/recommendations", headers={"X-Request-Id": "from-shop"})
    parsed: list[dict[str, Any]] = [orjson.loads(line) for line in lines]
    plain, failed, request = parsed[0], parsed[1], parsed[-1]
    assert (plain["level"], plain["logger"], plain["message"]) == ("WARNING", "recsys.serving", "7\ntwo lines")
    assert plain["time"].endswith("+00:00")
    assert set(plain) == {"time", "level", "logger", "message"}
    assert failed["request_id"] == "from-shop"
    assert failed["exception"].startswith("Traceback")
    assert {name: request[name] for name in ("logger", "level", "method", "status", "request_id")} == {
        "logger": "recsys.access",
        "level": "INFO",
        "method": "GET",
        "status": 200,
        "request_id": "from-shop",
    }
    assert "ann" not in request["path"]
    assert "message" not in request


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_web_server_and_warnings_write_the_same_form(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("recsys", "uvicorn")}
    root.handlers.clear()
    try:
        set_up_logs(form)
        logging.getLogger("uvicorn.error").info("started")
        logging.getLogger("somewhere").info("not of the service")
    finally:
        root.handlers[:] = before
        logging.captureWarnings(False)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    if form == "json":
        assert orjson.loads(line)["message"] == "started"
    else:
        assert line.endswith(" INFO uvicorn.error: started")
