"""Log lines of the process, as text or as JSON; those of a request name it."""

import logging
from typing import Any, Literal

import orjson

from features.instants import format_instant
from serving.telemetry.request_id import current

LogFormat = Literal["text", "json"]


class TextLines(logging.Formatter):
    """Time, level, logger and message; of a request its id, too."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without the trace of an exception, which follows it."""
        request_id = current.get()
        return super().formatMessage(record) + (f" [request {request_id}]" if request_id else "")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id and exception where there are.

    A record that has `facts` is those instead of its message.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        fields: dict[str, Any] = {
            "time": format_instant(int(record.created * 1e6)),
            "level": record.levelname,
            "logger": record.name,
        }
        facts = getattr(record, "facts", None)
        fields |= {"message": record.getMessage()} if facts is None else facts
        if request_id := current.get():
            fields["request_id"] = request_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


def set_up_logs(form: LogFormat) -> None:
    """Write the log of the process to standard error in one form, with that of the web server and warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(handlers=[handler], force=True)
    for name in ("recsys", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(form == "json")
