"""One process of the service: application and HTTP server on sockets that are bound already."""

import errno
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from socket import socket

from fastapi import FastAPI

from features.errors import ConfigError
from serving.http import GRACE_SECONDS, http_server
from serving.settings import ServeSettings
from serving.telemetry.logs import set_up_logs
from serving.telemetry.traces import ENDPOINT, start_traces, stop_traces

logger = logging.getLogger("recsys")


@dataclass(frozen=True)
class Start:
    """What a worker is started with. private_url: of the private store that the parent runs, None for a shared one;
    listening, beats: descriptors of the bound sockets and of the pipe."""

    settings: ServeSettings
    private_url: str | None
    listening: tuple[int, ...]
    beats: int

    def to_json(self) -> bytes:
        """The text that a worker reads, of a newer version of this program too."""
        fields = {**vars(self), "settings": self.settings.model_dump()}
        return json.dumps(fields, default=str).encode()  # default: for paths

    @classmethod
    def of_json(cls, text: bytes) -> "Start":
        """See `to_json`. Raises ValueError for settings that this version does not know."""
        fields = json.loads(text)
        settings = ServeSettings.model_validate(fields["settings"])
        return cls(settings, fields["private_url"], tuple(fields["listening"]), fields["beats"])


def run_service(
    settings: ServeSettings,
    sockets: Sequence[socket],
    make_app: Callable[[ServeSettings], FastAPI],
    beat: Callable[[], Awaitable[None]] | None = None,
) -> bool:
    """Serve until Ctrl-C, SIGTERM, or SIGHUP, which a terminal sends when it is closed. Returns whether it started.

    make_app: settings -> the application; beat: called every second while the event loop runs, in place of the lines
    that say where the service is. Raises what `ServiceState.open` raises, and ConfigError for a port that was taken.
    """
    set_up_logs(settings.log_format)
    if start_traces(os.environ):
        logger.info("traces go to %s", os.environ[ENDPOINT])
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    app = make_app(settings)
    app.state.service.open()  # a log or store that cannot be opened is an error before anything is announced
    if beat is None:
        announce(settings, sockets)
    server = http_server(
        app,
        loop="uvloop",
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=settings.connections,
        callback_notify=beat,
        timeout_notify=1,
    )
    try:
        with suppress(KeyboardInterrupt):  # Ctrl-C is how the service is stopped
            server.run(sockets=list(sockets))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConfigError(f"port {settings.port} was taken during the start: choose another with --port") from None
    finally:
        stop_traces()
    if app.state.encoder_pool.encodes:  # e.g. a large model is being loaded; everything else is closed
        logging.shutdown()
        os._exit(0)
    return server.started


def announce(settings: ServeSettings, sockets: Sequence[socket]) -> None:
    """Log where the service is, and who may call it."""
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        logger.info("serving at http://%s:%d", f"[{host}]" if ":" in host else host, port)
    if settings.keys is not None:
        logger.info("calls need a key of %s", settings.keys)
    elif settings.unprotected:
        logger.warning("calls need no key: whoever reaches the port may read, change and delete")
    else:
        logger.info("calls need no key: only this machine is served; `recsys keys create` makes keys for others")
