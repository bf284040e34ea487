"""How the service is run: options of `recsys serve`, or the environment as RECSYS_SERVE__NAME."""

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServeSettings(BaseSettings):
    """Everything has a default."""

    model_config = SettingsConfigDict(
        env_prefix="RECSYS_SERVE__", extra="forbid", frozen=True, populate_by_name=True, env_ignore_empty=True
    )

    bundles: Path = Path("bundles")
    """Folder of the bundles; `current` in it names the one that is served."""

    log: Path = Path("state/log")
    """Folder of the event log."""

    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: put a gateway in front before opening it to others."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on."""

    redis_url: str | None = Field(
        default=None, validation_alias=AliasChoices("redis_url", "RECSYS_SERVE__REDIS_URL", "REDIS_URL")
    )
    """The feature store's server; without it, a private one that lives as long as the service."""

    store_timeout: float = Field(default=0.035, gt=0)
    """Seconds to wait for the store before an answer goes without it."""

    store_pause: float = Field(default=1.0, ge=0)
    """Seconds without a try after the store did not answer."""

    follow_seconds: float = Field(default=0.5, gt=0)
    """How often to look for a new bundle, and whether the store has to catch up."""

    threads: int = Field(default=4, ge=1)
    """Requests computed at once."""

    search_bytes: int = Field(default=32 << 20, ge=1)
    """Largest body of a search, with its pictures, sounds and videos."""

    search_wait: float = Field(default=10.0, gt=0)
    """Seconds that a search waits for those before it; then it is told to come back."""

    search_seconds: float = Field(default=30.0, gt=0)
    """Seconds that a query may be encoded, loading a model included; then it is given up."""

    preload: bool = True
    """Load what reads words as soon as a bundle is served, beside the first requests, rather than at a search."""
