"""The role that a call needs. Each role may do what the roles before it may."""

import re
from typing import Final, Literal

Role = Literal["read", "write", "admin"]

ROLES: Final[tuple[Role, ...]] = ("read", "write", "admin")
"""The roles, the smallest first."""

READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""

OPEN = re.compile(r"/(healthz|readyz|docs|openapi\.json|static/.+|map|console)?")
"""Paths that are read without a key: the state of the process, and pages that hold nothing of the shop."""

READING_POSTS: Final = frozenset({"/v1/rank", "/v1/recommendations", "/v1/recommendations/lists", "/v1/search"})
"""Paths whose POST changes nothing: the request is too large for a URL."""

OPERATING: Final = frozenset({"/v1/rules", "/v1/preview", "/v1/state"})
"""Paths for those who run the shop: they tell what it does with its lists, and where its data lie."""

UNDO = re.compile(r"/v1/users/[^/]+/events/[^/]+")
"""Path of one event of a user."""


def role_needed(method: str, path: str) -> Role | None:
    """The smallest role for a call; None: no key is needed. path: percent-encoded, as `CanonicalUrl` hands it on.

    A call that is named nowhere needs `admin` when it deletes and `write` when it changes something.
    """
    if path in OPERATING:
        return "admin"
    if method in READING:
        return None if OPEN.fullmatch(path) else "read"
    if method == "POST" and path in READING_POSTS:
        return "read"
    return "admin" if method == "DELETE" and not UNDO.fullmatch(path) else "write"


def suffices(role: Role, needed: Role) -> bool:
    """Whether a role may do what another one may."""
    return ROLES.index(role) >= ROLES.index(needed)
