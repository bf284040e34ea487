"""Events as clients send them, and what becomes of them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from features.schema import MAX_POSITION, MIN_POSITION
from serving.schemas.fields import Finite, Id, event_type, instant

MAX_EVENTS = 1000


class EventIn(BaseModel):
    """One event of a user on an item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    item_id: Id
    event: Annotated[str, AfterValidator(event_type)] = Field(description="event type, as in the training data")
    timestamp: Annotated[str, AfterValidator(instant)] | None = Field(
        default=None, description="ISO 8601 with zone, from 1970 to one day from now; default: now"
    )
    value: Finite | None = Field(default=None, description="for example a rating or a quantity")
    event_id: Id | None = Field(default=None, description="makes retries idempotent; default: a generated id")
    request_id: Id | None = Field(default=None, description="request_id of the response that showed the item")
    position: Annotated[int, Field(ge=MIN_POSITION, le=MAX_POSITION)] | None = Field(
        default=None, description="position of the item in that response"
    )


class EventResult(BaseModel):
    """The result of one event. Results are in the order of the events sent."""

    status: Literal["accepted", "rejected"]
    event_id: str | None = None
    known_item: bool | None = Field(default=None, description="whether the item is in the served bundle")
    reason: str | None = Field(
        default=None, description="why it is rejected; of an accepted event, that data.events does not name its type"
    )
    place: str | None = None


class EventsResponse(BaseModel):
    """Counts, and one result per event. Accepted events are on disk."""

    accepted: int
    rejected: int
    degraded: list[str]
    results: list[EventResult]
