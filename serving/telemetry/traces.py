"""Traces by OpenTelemetry: FastAPI makes a span of each request, and this module one of each of its stages.

Nothing is traced before `start_traces`. No other module imports opentelemetry.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from fastapi.telemetry import TelemetryConfig

from features.errors import missing_package

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"

_provider: Any = None
_tracer: Any = None


def start_traces(environ: Mapping[str, str], exporter: Any = None) -> bool:
    """Begin to trace if ENDPOINT is set: spans go there by OTLP over HTTP. Returns whether it is.

    Applications that are made later are traced. The other variables OTEL_… of the SDK count, too. exporter: of spans,
    in place of that one. Raises DependencyError when the packages are not installed.
    """
    global _provider, _tracer
    if not environ.get(ENDPOINT) and exporter is None:
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise missing_package(f"{ENDPOINT} is set, and tracing", error.name, "trace") from None

    class WithoutIds(SpanProcessor):
        """Takes the path and the query from spans: they hold ids of users. The route stays."""

        def on_start(self, span: Any, parent_context: Any = None) -> None:
            span.set_attributes({name: "" for name in ("url.path", "url.query") if name in span.attributes})

    resource = Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME", "recsys")})
    _provider = TracerProvider(resource=resource)
    _provider.add_span_processor(WithoutIds())
    _provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    _tracer = _provider.get_tracer("recsys.serving")
    return True


def stop_traces() -> None:
    """Send the spans that are waiting, and trace no more."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


def of_application() -> TelemetryConfig:
    """What FastAPI is to tell: a span of each request, where there are traces."""
    return {
        "tracing": _provider is not None,
        "tracer_provider": _provider,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
    }


def stage(name: str) -> AbstractContextManager[Any]:
    """A span of a stage of the current request."""
    return nullcontext() if _tracer is None else _tracer.start_as_current_span(name)


def name_request(request_id: str) -> None:
    """Give the span of the current request its id."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("recsys.request_id", request_id)
