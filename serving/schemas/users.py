"""What the service says of users."""

from pydantic import BaseModel, Field

from serving.schemas.slates import CardOut


class HistoryEventOut(CardOut):
    """An event of a history, and its item. An item that is not in the catalogue has its id only."""

    event: str
    timestamp: str = Field(description="ISO 8601, UTC")
    value: float | None


class HistoryResponse(BaseModel):
    """The newest events of a user. total: events that the store keeps of this user."""

    user_id: str
    degraded: list[str]
    total: int
    events: list[HistoryEventOut]


class UsersResponse(BaseModel):
    """Ids of users, most recently active first."""

    users: list[str]
    degraded: list[str]
