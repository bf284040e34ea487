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
of these classes where they enter: `describe_os_error` words what the operating system says.
"""

import errno
import re


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
    errno.EIO: "the disk reports a fault: check it",
}
"""Error number of the operating system -> what mends it."""


def describe_os_error(error: OSError) -> str:
    """Path, reason and remedy of an error of the operating system, without its number."""
    place = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return f"{place}{reason}; {remedy}" if remedy else f"{place}{reason}"


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
