"""Traces by OpenTelemetry: spans of requests and their stages, without ids of users."""

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_harness import service_harness

from features.errors import DependencyError
from serving.telemetry.traces import ENDPOINT, of_application, start_traces, stop_traces

export = pytest.importorskip(
    "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="the extra `trace` is not installed"
)
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `trace` is not installed")


@pytest.fixture
def exporter() -> Iterator[Any]:
    kept = export.InMemorySpanExporter()
    assert start_traces({}, kept)
    yield kept
    stop_traces()


def test_a_request_is_a_span_with_a_span_for_each_stage(tmp_path: Path, exporter: Any) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with service_harness(tmp_path) as harness:
        path = "/v1/users/ann-4711/recommendations?exclude=i9-4711"
        headers = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "from-shop"}
        assert harness.client.get(path, headers=headers).status_code == 200
    stop_traces()  # sends what waits
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans.pop("GET /v1/users/{user_id}/recommendations")
    assert set(spans) == {"store", "rank", "log"}
    assert {span.parent.span_id for span in spans.values()} == {request.context.span_id}
    assert f"{request.context.trace_id:032x}" == trace
    assert f"{request.parent.span_id:016x}" == parent
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/v1/users/{user_id}/recommendations"
    assert request.attributes["recsys.request_id"] == "from-shop"
    assert request.resource.attributes["service.name"] == "recsys"
    assert "4711" not in str([*request.attributes.values()])
    assert all(span.start_time >= request.start_time for span in spans.values())


def test_nothing_is_traced_without_an_address(tmp_path: Path) -> None:
    assert not start_traces({})
    assert not start_traces({ENDPOINT: ""})
    assert of_application()["tracing"] is False
    with service_harness(tmp_path) as harness:
        harness.get("ann")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="opentelemetry.exporter")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError) as caught:
        start_traces({ENDPOINT: "http://127.0.0.1:4318"})
    assert str(caught.value) == (
        "OTEL_EXPORTER_OTLP_ENDPOINT is set, and tracing needs the package opentelemetry.exporter: "
        "install this project with the extra `trace`"
    )
