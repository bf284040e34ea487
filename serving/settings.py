"""Settings of the service: options of `recsys serve`, or environment variables RECSYS_SERVE__NAME."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from features.errors import ConfigError, describe_invalid, describe_url
from features.log.records import EVENTS, EXPOSURES, Stream
from features.log.upkeep.retention import Limit
from features.store.connection import check_url

PREFIX = "RECSYS_SERVE__"

HOST = r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*"
"""The name of a host; `*.` in front stands for every name below it."""

ORIGIN = r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"
"""An origin as browsers send it."""


def _split(value: object) -> object:
    """The parts of a text between commas, in small letters."""
    if not isinstance(value, str):
        return value
    return tuple(part for text in value.split(",") if (part := text.strip().lower()))


def _host(text: str) -> str:
    if re.fullmatch(HOST, text) is None:
        raise ValueError("must be names of hosts without scheme and port, e.g. api.shop.example,*.internal.example")
    return text


def _origin(text: str) -> str:
    if re.fullmatch(ORIGIN, text) is None:
        raise ValueError("must be origins, a scheme and a host without a path, e.g. https://www.shop.example")
    return text


Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(_split)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split)]


class ServeSettings(BaseSettings):
    """Settings of the service; all have defaults. Raises ConfigError when `redis_url` cannot be read."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, populate_by_name=True, env_ignore_empty=True
    )

    bundles: Path = Path("bundles")
    """Folder of the bundles; the link `current` in it points to the bundle to serve."""

    log: Path = Path("state/log")
    """Folder of the event log."""

    rules: Path | None = None
    """File of the shop's rules, in YAML; it is read again when it changes. Without it there are none."""

    experiments: Path | None = None
    """File of experiments, in YAML; it is read again when it changes. Without it there are none."""

    keys: Path | None = None
    """File of API keys, as `recsys keys create` writes it; it is read again when it changes. Without it, no call
    needs a key, and the service listens on loopback only."""

    unprotected: bool = False
    """Listen on other addresses without keys: a gateway in front checks who calls."""

    hosts: Hosts = ()
    """Names in the header `Host` that the service answers to, between commas; `*.x` is every name below x. Addresses
    and localhost need not be named."""

    origins: Origins = ()
    """Origins of pages that may call the service from a browser (CORS), between commas, e.g. https://shop.example."""

    connections: int = Field(default=500, ge=1, le=100_000)
    """Largest number of open connections; a further one gets 503 and is closed."""

    request_log: bool = False
    """Log each request to standard error, as JSON without ids of users."""

    log_format: Literal["text", "json"] = "text"
    """Form of the lines on standard error."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on."""

    workers: int = Field(default=1, ge=1, le=64)
    """Processes that answer requests. With more than one, a parent process starts, watches and restarts them."""

    redis_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("RECSYS_SERVE__REDIS_URL", "REDIS_URL"),  # the first that is set
        repr=False,  # it may hold a password
    )
    """URL of the Redis server of the feature store. Without it the service starts a private server, and stops it when
    it ends."""

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str | None) -> str | None:
        if url is not None:
            check_url(url)
        return url

    store_timeout: float = Field(default=0.035, gt=0, le=3600)
    """Seconds to wait for the store; after that the response is made without it."""

    store_pause: float = Field(default=1.0, ge=0, le=3600)
    """Seconds before the next attempt after the store did not respond."""

    follow_seconds: float = Field(default=0.5, gt=0, le=3600)
    """Seconds between checks for a new bundle and for a store that is behind the event log."""

    events_days: float | None = Field(default=None, gt=0)
    """Days that accepted events are kept in the log after an export. Without it they are kept for ever."""

    events_bytes: int | None = Field(default=None, ge=1, le=1 << 60)
    """Bytes of events that the log keeps after an export; without it, all."""

    exposures_days: float = Field(default=30, gt=0)
    """Days that exposures are kept in the log; inf keeps them for ever."""

    exposures_bytes: int | None = Field(default=None, ge=1, le=1 << 60)
    """Bytes of exposures that the log keeps; without it, all of those days."""

    exposure_sample: float = Field(default=0.01, ge=0, le=1)
    """Share of the recommendations whose exposure also holds the candidates and the features of the reranker."""

    @property
    def log_limits(self) -> dict[Stream, Limit]:
        """How much of each stream the log keeps."""
        return {
            EVENTS: Limit(self.events_days, self.events_bytes),
            EXPOSURES: Limit(self.exposures_days, self.exposures_bytes),
        }

    threads: int = Field(default=4, ge=1, le=1024)
    """Largest number of requests computed at once."""

    queue: int = Field(default=64, ge=1, le=100_000)
    """Largest number of requests that wait for a thread; a further one gets 503 busy at once."""

    deadline: float = Field(default=1.0, gt=0, le=3600)
    """Seconds that a request has when its body is there. What is not done then is left out, or it gets 503 busy."""

    search_bytes: int = Field(default=32 << 20, ge=1, le=1 << 40)
    """Largest body of a search or an item, in bytes, including its images, sounds and videos."""

    search_wait: float = Field(default=10.0, gt=0, le=3600)
    """Seconds that a search waits for earlier searches; after that the response is 503 busy."""

    search_seconds: float = Field(default=30.0, gt=0, le=3600)
    """Seconds to encode a query, including loading a model; after that the response is 504 slow."""

    preload: bool = True
    """Load the text encoder in the background as soon as a bundle is served, not at the first search."""


def load_settings(environ: Mapping[str, str], **options: object) -> ServeSettings:
    """The settings of the environment; options that are not None take precedence.

    Raises ConfigError for a wrong value, and for a variable that names no setting.
    """
    check_names(environ)
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = ServeSettings.model_validate({})
        return ServeSettings.model_validate({**settings.model_dump(), **given})
    except ConfigError as error:  # of check_url, which knows one name of the variable
        prefix = PREFIX if environ.get(f"{PREFIX}REDIS_URL") else ""
        raise ConfigError(f"{prefix}{error}") from None
    except ValidationError as error:
        first = describe_invalid(error.errors())[0]
        name, value = str(first.place[0]), first.problem["input"]
        shown = describe_url(value) if isinstance(value, str) and "://" in value else value
        place = f"--{name}" if name in given else f"environment variable {PREFIX}{name.upper()} ="
        raise ConfigError(f"{place} {shown!r}: {first.reason}") from None


def check_names(environ: Mapping[str, str]) -> None:
    """Raise ConfigError for a variable RECSYS_SERVE__NAME that names no setting."""
    settings = list(ServeSettings.model_fields)
    for name in sorted(environ):
        key = name.lower().removeprefix(PREFIX.lower())
        if name.upper().startswith(PREFIX) and key not in settings:
            similar = difflib.get_close_matches(key, settings, n=1)
            hint = (
                f"; did you mean {PREFIX}{similar[0].upper()}?" if similar else f"; settings: {', '.join(settings)}"
            )
            raise ConfigError(f"environment variable {name} names no setting of the service{hint}")
