"""Route that describes what is served, and so what a page can offer."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from features.schema import EventRules
from serving.errors import json_response
from serving.routes.responses import snapshot_of
from serving.state.encoder_pool import query_modalities
from serving.state.service import ServiceState

NOT_INTERESTED = "not_interested"
"""Type of the event that says that a person does not want to see an item again."""


class ReactionOut(BaseModel):
    """The event that stands for a reaction of a person, and its value."""

    event: str
    value: float | None


class ReactionsOut(BaseModel):
    """The reactions that the event rules can tell apart; null for one that they cannot."""

    like: ReactionOut = Field(description="a positive event, with the least value that is positive")
    dislike: ReactionOut | None = Field(
        description="an event of the same type that is not positive; needs a least value"
    )
    not_interested: ReactionOut | None = Field(
        description=f"an event `{NOT_INTERESTED}`: the item counts as seen, and nothing more"
    )


class ChoicesOut(BaseModel):
    """What filters can choose from among the available items. categories, columns: the most frequent first."""

    categories: list[str]
    price: tuple[float, float] | None = Field(description="the smallest and the largest price; null: none is known")
    columns: dict[str, list[str | bool]] = Field(description="declared columns of few values -> these values")


class PlacementOut(BaseModel):
    """A placement. repeats: whether items that a user has seen are returned."""

    model_config = ConfigDict(extra="allow")

    repeats: bool


class AboutResponse(BaseModel):
    """What is served: see the route."""

    bundle: str
    items: int
    placements: dict[str, PlacementOut]
    reactions: ReactionsOut
    search: bool
    channels: list[str]
    search_by: list[str]
    filters: ChoicesOut
    experiments: list[dict[str, Any]]
    unlogged: int
    simulated: bool = Field(description="whether the events that the bundle was trained on are of simulated people")


def reactions(rules: EventRules) -> dict[str, Any]:
    """The fields of `ReactionsOut` for event rules."""
    event, minimum = next(iter(rules.positive.items()), ("click", None))
    lower = None if minimum is None or minimum <= 0 else min(1.0, minimum / 2)
    hides = rules.seen is None or NOT_INTERESTED in rules.seen
    return {
        "like": {"event": event, "value": minimum},
        "dislike": None if lower is None else {"event": event, "value": lower},
        NOT_INTERESTED: {"event": NOT_INTERESTED, "value": None} if hides else None,
    }


def add_about(app: FastAPI, service: ServiceState) -> None:
    """Add the route."""

    @app.get("/v1/about", responses={200: {"model": AboutResponse}}, tags=["state"])
    async def get_about() -> Response:
        """The served bundle, its number of items, the placements, the events that stand for reactions of a person,
        whether search is available, the content channels of the items, what a search can read, what filters can
        choose from, the experiments with their variants, how many answers since the start the log could not take,
        and whether the people of the training are simulated."""
        snapshot = snapshot_of(service)
        data = snapshot.bundle.data
        choices = await asyncio.to_thread(lambda: snapshot.choices)  # counts the catalogue, once for each snapshot
        return json_response(
            {
                "bundle": snapshot.bundle.fingerprint,
                "items": len(snapshot.cards),
                "placements": {name: place.model_dump() for name, place in data.placements.items()},
                "reactions": reactions(data.events),
                "search": (content := snapshot.bundle.content) is not None,
                "channels": [] if content is None else list(content.channels),
                "search_by": query_modalities(snapshot.bundle),
                "filters": asdict(choices),
                "experiments": service.experiments.describe(service.variants.served),
                "unlogged": service.unlogged,
                "simulated": bool(snapshot.bundle.manifest.get("simulated")),
            }
        )
