"""The one tree of errors.

RecsysError
├── ConfigError         a configuration that cannot be run: unknown key, wrong type, missing file
├── DataError           tables that break the contract: no such column, nothing left, ids that are not unique
│   └── SourceError     a data set that cannot be had: package missing, download broken, checksum wrong
├── ContentError        a part of a content that cannot be fetched, is too large or cannot be decoded
├── SpaceError          vectors of two spaces that would meet, or a space that cannot be had
├── LeakError           something fitted has seen an event at or after the cut
├── BundleError         a bundle that cannot be loaded: missing, truncated, tampered, another version
├── StoreError          the feature store or the cache of vectors refuses or does not answer
├── LogError            the event log cannot be written or read
└── DependencyError     a library that is missing, or two that exclude each other

Each message names the place, the value and what to do.
"""


class RecsysError(Exception):
    """Root of everything this product raises on purpose."""


class ConfigError(RecsysError):
    """A configuration that cannot be run."""


class DataError(RecsysError):
    """Tables that break the data contract."""


class SourceError(DataError):
    """A data set that cannot be had."""


class ContentError(RecsysError):
    """A part of a content that cannot be read."""


class SpaceError(RecsysError):
    """Vectors of two spaces that would meet."""


class LeakError(RecsysError):
    """Something fitted has seen an event at or after the cut."""


class BundleError(RecsysError):
    """A bundle that cannot be loaded."""


class StoreError(RecsysError):
    """The feature store refuses or does not answer."""


class LogError(RecsysError):
    """The event log cannot be written or read."""


class DependencyError(RecsysError):
    """A library that is missing, or two that exclude each other."""
