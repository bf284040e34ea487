"""The id of the request that is answered: in its response, in its log lines, and in its trace."""

import re
from contextvars import ContextVar
from typing import Final
from uuid import uuid4

from starlette.types import Scope

HEADER: Final = b"x-request-id"

SCOPE: Final = "recsys.request_id"
"""Entry of a call's scope: the id of the request."""

IS_GIVEN: Final = "recsys.request_id_is_given"
"""Entry of a call's scope: whether the client has chosen the id."""

current: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this task or thread works for; "" for none."""

_SAFE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def new_id() -> str:
    """An id that no other request has."""
    return str(uuid4())


def begin(scope: Scope) -> str:
    """Give a call its id: what its client sent, if that is one short safe text, else a new one."""
    given = [value for name, value in scope["headers"] if name == HEADER]
    is_given = len(given) == 1 and _SAFE.fullmatch(given[0]) is not None
    request_id = given[0].decode() if is_given else new_id()
    scope[SCOPE], scope[IS_GIVEN] = request_id, is_given
    current.set(request_id)  # never reset: each call runs in a task of its own, and the server logs after it, too
    return request_id


def id_of_answer(scope: Scope) -> str:
    """The `request_id` of an answer: that of its call, unless the client has chosen it. No two answers share one."""
    return new_id() if scope.get(IS_GIVEN, True) else str(scope[SCOPE])
