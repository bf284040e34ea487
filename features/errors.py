"""The exceptions of the product.

RecsysError
├── ConfigError         an invalid configuration: unknown key, wrong type, missing file
├── DataError           tables that violate the data contract: missing column, no valid row, duplicate ids
│   └── SourceError     a data set that cannot be obtained: missing package, failed download, wrong checksum
├── ContentError        content that cannot be fetched, is too large or cannot be decoded
├── SpaceError          vectors of different embedding spaces in one operation, or an unavailable space
├── LeakError           a fitted component has seen an event at or after the cut
├── BundleError         a bundle that cannot be loaded: missing, truncated, modified, another version
├── StoreError          the feature store or the vector cache refuses or does not answer
├── LogError            the event log cannot be written or read
├── FileError           a file or folder that cannot be read or written, where no class above says more
└── DependencyError     a missing library, or two libraries that exclude each other

Each message names the place, the value and the remedy. Exceptions of the operating system and of libraries become one
of these classes where they enter. `describe_os_error` words what the operating system says, `describe_read_error`
what a reader of JSON says, `describe_write_error` what a writer of tables says, `describe_connection_error` what a
connection says, `describe_sqlite_error` what SQLite says, and `describe_invalid` what pydantic says of a value. What
a library says stands at most in the parentheses of `detail`, after a sentence of ours.
"""

import errno
import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple


class RecsysError(Exception):
    """Base class of all errors that the product raises."""


class ConfigError(RecsysError):
    """An invalid configuration."""


class DataError(RecsysError):
    """Tables that violate the data contract."""


class SourceError(DataError):
    """A data set that cannot be obtained."""


class ContentError(RecsysError):
    """Content that cannot be read."""


class SpaceError(RecsysError):
    """Vectors of different embedding spaces in one operation, or an unavailable space."""


class LeakError(RecsysError):
    """A fitted component has seen an event at or after the cut."""


class BundleError(RecsysError):
    """A bundle that cannot be loaded."""


class StoreError(RecsysError):
    """The feature store or the vector cache refuses or does not answer."""


class LogError(RecsysError):
    """The event log cannot be written or read."""


class FileError(RecsysError):
    """A file or folder that cannot be read or written."""


REMEDIES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space within the user's quota",
    errno.EROFS: "its file system is read-only: choose another folder",
    errno.EACCES: "give this user the right to it, or choose another path",
    errno.EPERM: "give this user the right to it, or choose another path",
    errno.ENOENT: "check the path",
    errno.EEXIST: "a file stands where a folder is needed: move it, or choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed: move it, or choose another path",
    errno.EISDIR: "a folder stands where a file is needed: move it, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ELOOP: "links point at each other in a circle: correct them",
    errno.EIO: "the disk reports a fault: check it",
}
"""Error number of the operating system -> what mends it."""


def describe_os_error(error: OSError) -> str:
    """Path, reason and remedy of an error of the operating system, without its number."""
    place = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return f"{place}{reason}; {remedy}" if remedy else f"{place}{reason}"


CONNECTIONS: dict[type[BaseException], str] = {
    socket.gaierror: "its host has no address: check the name and the network",
    ConnectionRefusedError: "nothing listens there: start the server, or check the address",
    TimeoutError: "there was no answer in time",
    ssl.SSLCertVerificationError: "its certificate is not trusted, or is of another name: check the address",
    ssl.SSLError: "it does not speak TLS there: check the address",
    http.client.HTTPException: "it cut the connection off, or does not speak HTTP",
    ConnectionResetError: "it cut the connection off",
    BrokenPipeError: "it cut the connection off",
}
"""What a failed connection raises -> why, with the remedy where there is one. A class stands before its base."""


def describe_connection_error(error: BaseException) -> str:
    """Why a server cannot be reached: what the system said, which libraries give as the cause of their exception."""
    at: Any = error
    while isinstance(at, BaseException):
        for kind, reason in CONNECTIONS.items():
            if isinstance(at, kind):
                return reason
        if isinstance(at, OSError) and at.errno:
            return describe_os_error(at)
        at = at.__cause__ or at.__context__ or getattr(at, "reason", None)
    return "the connection failed or was cut off"


def detail(error: BaseException) -> str:
    """The class and the first line of a library's exception in parentheses, to stand after a sentence of ours.

    At most 200 characters are quoted, and no addresses of memory.
    """
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error).strip().partition("\n")[0].strip())
    return f" ({type(error).__name__}{': ' if text else ''}{text[:200]})"


SQLITE = {
    3: "it cannot be opened: give this user the right to it, or choose another path",
    5: "another process writes it: try again when that has ended",
    6: "another process writes it: try again when that has ended",
    8: "it is read-only: give this user the right to write it",
    10: "its disk reports a fault: check it",
    11: "it is damaged: restore a backup, or move it away",
    13: "its disk is full: free space there",
    14: "it cannot be opened: check its folder and the right to it, or choose another path",
    26: "it is no database of SQLite, or damaged: move it away, or choose another path",
}
"""Primary code of SQLite (SQLITE_PERM, …) -> why a database cannot be used, with the remedy."""


def describe_sqlite_error(error: BaseException) -> str:
    """Why a database file cannot be used, from the code of an exception of sqlite3."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    return SQLITE.get(code) or f"its tables are not those that are needed: move it away{detail(error)}"


def describe_write_error(path: PathLike[str] | str, error: Exception) -> str:
    """Why a file cannot be written, in the words of the operating system, also where a library quotes them."""
    if not isinstance(error, OSError) or error.errno is None:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            return f"{path}: it cannot be written there as it is; choose another path{detail(error)}"
        error = OSError(int(number[1]), os.strerror(int(number[1])))
    return describe_os_error(error if error.filename else OSError(error.errno, error.strerror, str(path)))


def describe_read_error(error: Exception) -> str:
    """Why a file of text or JSON that the product wrote cannot be read; the caller names the file."""
    if isinstance(error, OSError):
        return describe_os_error(error).removeprefix(f"{error.filename}: ")
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at line {error.lineno}, column {error.colno}"
    return "not what this version writes"


_NEEDED = {
    **dict.fromkeys(("string", "bytes"), "a text"),
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    **dict.fromkeys(("dict", "mapping", "model", "dataclass"), "named values"),
    **dict.fromkeys(("list", "tuple", "set", "frozen"), "a list"),
    "path": "a path",
    "date": "a date",
    **dict.fromkeys(("datetime", "time"), "a time"),
    "timezone": "a time with its zone",
    "none": "null",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "int_parsing_size": "a smaller number",
    **dict.fromkeys(("literal_error", "enum"), "{expected}"),
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "named values with the key {discriminator}",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "string_too_long": "a text of at most {max_length} characters",
    "string_too_short": "a text of at least {min_length} characters",
    "bytes_too_long": "a text of at most {max_length} bytes",
}
"""pydantic's type of an error, or the word that it begins with -> what is needed, with fields of the context."""

_REASONS = {"extra_forbidden": "unknown key", "missing": "missing; add it", "json_invalid": "not valid JSON"}
"""pydantic's type of an error -> its whole text."""

_MEMBERS = {"str": "string", "bytes": "bytes", "int": "int", "float": "float", "bool": "bool"}
"""Member of a union, which pydantic adds to the place -> the word that its errors begin with."""


class Invalid(NamedTuple):
    """An invalid value: its place, why it is invalid, and pydantic's record of it."""

    place: tuple[str | int, ...]
    reason: str
    problem: Mapping[str, Any]


def describe_invalid(problems: Iterable[Mapping[str, Any]]) -> list[Invalid]:
    """The errors of pydantic (`ValidationError.errors()`) in the words of users, one for each place.

    A reason does not quote the value: it may be secret.
    """
    by_place: dict[tuple[str | int, ...], list[Mapping[str, Any]]] = {}
    for problem in problems:
        place = tuple(problem["loc"])
        if place and str(problem["type"]).startswith(_MEMBERS.get(str(place[-1]), "-")):
            place = place[:-1]
        by_place.setdefault(place, []).append(problem)
    return [Invalid(place, _reason(found), found[0]) for place, found in by_place.items()]


def _reason(problems: Sequence[Mapping[str, Any]]) -> str:
    """Why one value is invalid: what is needed, where several types are possible each of them."""
    first = problems[0]
    if first["type"] in ("value_error", "assertion_error"):  # of our own validators; pydantic adds a word in front
        return str(first["msg"]).partition(", ")[2]
    if first["type"] in _REASONS:
        return _REASONS[first["type"]]
    needed = dict.fromkeys(map(_needed, problems))
    if "a number" in needed:
        needed.pop("a whole number", None)
    return f"must be {' or '.join(needed)}"


def _needed(problem: Mapping[str, Any]) -> str:
    kind = str(problem["type"])
    form = _NEEDED.get(kind) or _NEEDED.get(kind.partition("_")[0], "another value")
    return form.format(**{name: _number(value) for name, value in problem.get("ctx", {}).items()})


def _number(value: Any) -> Any:
    """A number as people write it; any other value as it is."""
    if not isinstance(value, int | float):
        return value
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def missing_package(purpose: str, package: str | None, extra: str) -> "DependencyError":
    """The error to raise where an optional package is not installed: what needs it, and the extra that brings it."""
    return DependencyError(f"{purpose} needs the package {package}: install this project with the extra `{extra}`")


class DependencyError(RecsysError):
    """A missing library, or two libraries that exclude each other."""


def describe_url(url: str) -> str:
    """Scheme, host, port and path of a URL for messages: without user, password, query and fragment.

    Only the scheme is shown where the host cannot be distinguished from a password that is not percent-encoded.
    """
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]  # matches any
    host = authority.rpartition("@")[2]
    ambiguous = "@" in tail and (not separator or re.search("[:@]", authority) or not tail.startswith("/"))
    plain = not separator and not re.search("[:@]", authority)  # e.g. the path of a file
    if ambiguous or not (plain or re.fullmatch(r"(\[[^][]*]|[\w.-]*)(:[0-9]*)?", host)):
        return f"{scheme}://…" if separator else "a URL that cannot be read"
    return f"{scheme}{separator}{host}{re.split('[?#]', tail, maxsplit=1)[0]}"
