"""The data contract: the column names and the meaning of events."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

USER, ITEM, EVENT, TIME, VALUE = "user_id", "item_id", "event", "timestamp", "value"
EVENT_ID, REQUEST_ID, POSITION, PROPENSITY = "event_id", "request_id", "position", "propensity"
TITLE, DESCRIPTION, CATEGORIES, PRICE = "title", "description", "categories", "price"
IMAGE, AUDIO, VIDEO = "image", "audio", "video"
PUBLISHED, AVAILABLE, GROUP = "published_at", "available", "group_id"

MAX_ID_BYTES = 512
"""Maximum length of an id in UTF-8 bytes, everywhere."""


class StrictModel(BaseModel):
    """A configuration section: unknown keys are errors, numbers are finite, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EventRules(StrictModel):
    """The meaning of event types."""

    positive: dict[str, float | None]
    """Event type -> minimum value for an event to be positive in training; null: any value, and none, is positive."""

    seen: tuple[str, ...] | None = None
    """Event types that make an item count as seen; null: all types."""

    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Positive event type -> weight of its events in the loss of the towers; 1 for types that are not named."""

    @property
    def types(self) -> tuple[str, ...]:
        """Event types that the user tower distinguishes: all types named here, or none when only one is named."""
        named = tuple(sorted({*self.positive, *(self.seen or ())}))
        return named if len(named) > 1 else ()

    @model_validator(mode="after")
    def _check_weights(self) -> "EventRules":
        if unknown := sorted({*self.weights} - {*self.positive}):
            raise ValueError(f"weights of {', '.join(unknown)}: only types named in `positive` are learned from")
        return self


class Placement(StrictModel):
    """A place in the product where recommendations are shown."""

    repeats: bool = False
    """Whether items that the user has seen may be recommended."""


class DataConfig(StrictModel):
    """Where the tables are and how they are read."""

    source: str
    """Name for `recsys data get`: movielens, complete-journey, sequences, folder."""

    path: str
    """Folder of the canonical tables: items.*, events.* and optionally users.* (parquet, csv or jsonl)."""

    origin: str | None = None
    """File or folder that the source is read from (a GroupLens folder, a sequences file); null: a package."""

    events: EventRules
    placements: dict[str, Placement] = Field(default={"home": Placement()}, min_length=1)

    min_train_events: Annotated[int, Field(ge=0)] = 0
    """Items with fewer training events are not in the catalogue; their number is printed. 0 keeps cold items."""

    extra_columns: tuple[str, ...] = ()
    """Additional item columns to read and keep; the report names all other columns, which are ignored."""

    log: str | None = None
    """Folder of the service's event log; its accepted events are added to the events table."""
