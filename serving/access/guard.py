"""The middleware that every call passes: name, origin, key, role, limit, type of the body, and the logs of calls."""

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access.journal import Journal
from serving.access.keys import ApiKeys
from serving.access.origins import Origins
from serving.access.roles import READING, Role, role_needed
from serving.errors import ApiError
from serving.settings import ServeSettings
from serving.telemetry.request_id import SCOPE as REQUEST_ID

JSON, FORM, LINES = "application/json", "multipart/form-data", "application/x-ndjson"

BODIES = {"/v1/search": (JSON, FORM), "/v1/items": (LINES,)}
"""Path -> the types of its bodies; all others take JSON. None is among those that a page may send without asking but
the form, which changes nothing."""

UNLOGGED = frozenset({"/metrics"})
"""Paths that the log of requests leaves out: they are asked for all the time."""

KEY = "recsys.key"
"""Entry of a call's scope: the name of its key, None without one."""


class Guard:
    """Middleware that refuses calls with the response of an `ApiError`, and hands all others on.

    It stands behind `CanonicalUrl`: the role of a call depends on its path.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, keys: ApiKeys, now: Callable[[], int]) -> None:
        """now: returns the time (µs)."""
        self._app, self._keys, self._now = app, keys, now
        self._origins = Origins((*settings.hosts, settings.host.lower()), settings.origins)
        self._journal, self._logs_all = Journal(settings.log), settings.request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the call, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        needed = role_needed(scope["method"], scope["path"])
        logged = self._logs_all and scope["path"] not in UNLOGGED
        if needed != "admin" and not logged:
            await self._answer(scope, receive, send, needed)
            return
        status, begun = 500, time.perf_counter()  # 500: the answer to an exception that nothing else catches

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, noting, needed)
        finally:
            facts = {"key": scope[KEY], "method": scope["method"], "path": scope["path"], "status": status}
            facts["request_id"] = scope[REQUEST_ID]
            if needed == "admin" and (scope[KEY] is not None or not self._keys.needed):
                self._journal.audit(self._now(), facts)
            if logged:
                ms = round((time.perf_counter() - begun) * 1000, 1)
                self._journal.log_request(self._now(), {**facts, "ms": ms})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, needed: Role | None) -> None:
        scope[KEY] = None
        try:
            self._check(scope, needed)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, needed: Role | None) -> None:
        """Raises ApiError for a call that is refused."""
        hosts, origin, sent, kind, has_body = _headers(scope)
        self._origins.check_host(hosts, scope["http_version"])
        reading = scope["method"] in READING
        if origin and not reading:
            self._origins.check_origin(origin, hosts)
        if self._keys.needed:
            with suppress(ApiError) if needed is None else nullcontext():
                key = self._keys.authenticate(*sent)
                scope[KEY] = key.name
                if needed is not None:
                    self._keys.admit(key, needed)
        if has_body and not reading and scope["method"] != "DELETE":
            _check_type(kind, scope["path"])


def _headers(scope: Scope) -> tuple[list[bytes], bytes, tuple[bytes, bytes], bytes, bool]:
    """Of a call: all headers Host; Origin; the key in each of its headers; Content-Type; whether there is a body."""
    hosts, origin, bearer, own, kind, has_body = list[bytes](), b"", b"", b"", b"", False
    for name, value in scope["headers"]:
        if name == b"host":
            hosts.append(value)
        elif name == b"origin":
            origin = value
        elif name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            bearer = rest.strip() if scheme.lower() == b"bearer" else bearer
        elif name == b"x-api-key":
            own = value
        elif name == b"content-type":
            kind = value
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            has_body = True
    return hosts, origin, (bearer, own), kind, has_body


def _check_type(kind: bytes, path: str) -> None:
    """Check the type of a body. A page of another host can send a body of some other types without asking first.

    Raises ApiError 415.
    """
    types = BODIES.get(path, (JSON,))
    if kind.partition(b";")[0].strip().lower().decode("latin-1") in types:
        return
    form = f", or a form as {FORM}" if FORM in types else ""
    what = "lines of JSON" if LINES in types else "JSON"
    raise ApiError("bad_type", f"the body must be {what}{form}: send the header Content-Type: {types[0]}", "header")
