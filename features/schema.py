"""The data contract: each column name written once, and what events mean."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

USER, ITEM, EVENT, TIME, VALUE = "user_id", "item_id", "event", "timestamp", "value"
EVENT_ID, REQUEST_ID, POSITION, PROPENSITY = "event_id", "request_id", "position", "propensity"
TITLE, DESCRIPTION, CATEGORIES, PRICE = "title", "description", "categories", "price"
IMAGE, AUDIO, VIDEO = "image", "audio", "video"
PUBLISHED, AVAILABLE, GROUP = "published_at", "available", "group_id"

MAX_ID_BYTES = 512
"""Longest id accepted anywhere, in UTF-8 bytes."""


class Strict(BaseModel):
    """A configuration section: an unknown key is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EventRules(Strict):
    """What the events of this product mean."""

    positive: dict[str, float | None]
    """Event type -> least value that makes it positive for training; null: any value, also none."""

    seen: tuple[str, ...] | None = None
    """Event types after which an item counts as seen; null: all of them."""

    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Positive event type -> how much such an event counts in the towers' loss; 1 where it is not named."""

    @property
    def types(self) -> tuple[str, ...]:
        """Event types that the user tower tells apart: all that are named here, where they are several."""
        named = tuple(sorted({*self.positive, *(self.seen or ())}))
        return named if len(named) > 1 else ()

    @model_validator(mode="after")
    def _of_positive_ones(self) -> "EventRules":
        if unknown := sorted({*self.weights} - {*self.positive}):
            raise ValueError(f"weights of {', '.join(unknown)}: only types named in `positive` are learned from")
        return self


class Placement(Strict):
    """A place where recommendations are shown."""

    repeats: bool = False
    """Whether items the user has seen may be shown again."""


class DataConfig(Strict):
    """Where the tables are and how they are read."""

    source: str
    """Name for `recsys data get`: movielens, complete-journey, sequences, folder."""

    path: str
    """Folder of the canonical tables: items.*, events.* and optionally users.* (parquet, csv or jsonl)."""

    origin: str | None = None
    """File or folder that the source is read from where it is no package: a GroupLens folder, a sequences file."""

    events: EventRules
    placements: dict[str, Placement] = Field(default={"home": Placement()}, min_length=1)

    min_train_events: Annotated[int, Field(ge=0)] = 0
    """Items with fewer training events are left out of the catalogue, counted and printed; 0 keeps cold items."""

    extra_columns: tuple[str, ...] = ()
    """Further columns of items that are read and kept; all others are named in the report and ignored."""

    log: str | None = None
    """Folder of the service's event log; its accepted events join the events table."""
