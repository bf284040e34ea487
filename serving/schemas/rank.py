"""Lists of items that the client chooses, to put in order."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from features.schema import MAX_ID_BYTES
from serving.schemas.fields import Id, ItemText, valid_id

MAX_DESCRIBED = 50
"""Items of one list whose content the caller describes: each is encoded."""


class ListedItem(ItemText):
    """An item of a list: an id alone, or with what the item is. The latter counts where the bundle lacks the item."""

    item_id: Id

    @property
    def fields(self) -> dict[str, Any]:
        """What the item is, as `PUT /v1/items` takes it; empty where the caller does not say."""
        return self.model_dump(exclude={"item_id"}, exclude_none=True)


def _listed(value: Any) -> Any:
    return ListedItem(item_id=valid_id(value)) if isinstance(value, str) else value


_ID_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES}

Listed = Annotated[
    ListedItem,
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_ID_SCHEMA, ListedItem.model_json_schema()]}),
]


def _few_described(items: list[ListedItem]) -> list[ListedItem]:
    if (n := sum(bool(item.fields) for item in items)) > MAX_DESCRIBED:
        raise ValueError(f"describes {n} items, at most {MAX_DESCRIBED} are allowed: send the others as ids")
    return items


class RankIn(BaseModel):
    """Items to put in order for a user."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    items: Annotated[list[Listed], AfterValidator(_few_described)] = Field(
        min_length=1,
        max_length=1000,
        description=f"ids of items, or objects, at most {MAX_DESCRIBED}, with `item_id` and what the item is; an id "
        "that stands twice counts once, as it stands first",
    )


class RankedItemOut(BaseModel):
    """An item of the list. known: whether it is in the served bundle; by_content: whether it is not, and was placed
    by what the caller says of it; the others come last, in the order they came."""

    item_id: str
    position: int
    score: float | None
    probability: float | None = Field(description="that this item is the user's next one; null where it is not known")
    known: bool
    by_content: bool


class RankResponse(BaseModel):
    """The list in order, best first. source: "model", or "popular" for the order by popularity."""

    user_id: str
    bundle: str
    source: str
    degraded: list[str]
    items: list[RankedItemOut]
    trace: dict[str, float]
