"""Lists of items that the service chooses."""

from typing import Annotated

from pydantic import BaseModel, Field


class CardOut(BaseModel):
    """An item as lists show it. image: a URL; price: null where it is not known."""

    item_id: str
    title: str | None
    categories: list[str]
    image: str | None
    price: float | None


class ItemOut(CardOut):
    """One recommended item."""

    score: float
    position: int
    propensity: float
    reason: str
    explored: bool = Field(description="whether the item stands here by a rule of exploration")


Near = Annotated[
    dict[str, float | None],
    Field(description="cosine by channel, e.g. behaviour, text, image; null where either side has no vector"),
]


class NearItemOut(ItemOut):
    """One item that is similar to another item or to a query."""

    near: Near


class NearestOut(BaseModel):
    """The positive item of the user that is nearest to a recommended item, and the channel where it is clearest."""

    item_id: str
    title: str | None
    channel: str
    cosine: float


class FeatureOut(BaseModel):
    """A feature of the reranker, and what it adds to the score."""

    name: str
    contribution: float


class WhyOut(BaseModel):
    """Why an item is recommended. nearest: null where no item of the history is near; loss: by a rule of rotation."""

    source: str
    nearest: NearestOut | None
    features: list[FeatureOut]
    sentence: str
    loss: float


class RecommendedItemOut(ItemOut):
    """One item for a user. why: only with `explain=true`."""

    probability: float | None = Field(
        default=None, description="that this item is the user's next one; absent for popular items, null for pins"
    )
    why: WhyOut | None = None


class SlateResponse(BaseModel):
    """A slate of items. `degraded` lists the components that failed; it is empty when all worked."""

    request_id: str
    user_id: str | None = None
    placement: str
    bundle: str
    variant: str
    source: str
    degraded: list[str]
    items: list[ItemOut]
    cursor: str | None = Field(description="asks for the next page; null at the end of the list")
    trace: dict[str, float]


class RecommendationsResponse(SlateResponse):
    """Items for a user."""

    items: list[RecommendedItemOut]  # type: ignore[assignment]  # as in SimilarResponse


class WhyNotResponse(BaseModel):
    """Where an item leaves the way into the list of a user; `stage` is "shown" where it does not."""

    item_id: str
    stage: str
    detail: str
    score: float | None
    rank: int | None
    degraded: list[str]


class SimilarResponse(SlateResponse):
    """Items similar to one item."""

    items: list[NearItemOut]  # type: ignore[assignment]  # list is invariant; a response is never mutated


class FailedPart(BaseModel):
    """A part of a query or item that was not read, or only partly."""

    part: str
    reason: str


class QueryOut(BaseModel):
    """Modalities of the query that were read, and the parts that failed."""

    read: list[str]
    failed: list[FailedPart]


class SearchResponse(SimilarResponse):
    """Items similar to a query."""

    query: QueryOut
