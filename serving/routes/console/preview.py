"""Route of previews: the list that a user would get by other rules, or in a variant. Nothing counts as shown."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from features.log.records import Exposure
from recsys.assignment import variants_of
from serving.cursor import Page
from serving.errors import ApiError, Problem, json_response
from serving.openapi.bodies import request_body
from serving.routes.explain import why_shown
from serving.routes.lists.answer import placement_of
from serving.routes.lists.recommend import recommend
from serving.routes.responses import slate_fields, snapshot_of
from serving.schemas.body import bounded_body, parse_model
from serving.schemas.fields import Id
from serving.schemas.slates import RecommendationsResponse
from serving.shop.rules import RulesError, ShopRules, check_rules
from serving.state.arms import Arm
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot
from serving.state.thread_pool import InThread
from serving.telemetry.request_id import id_of_answer


class PreviewIn(BaseModel):
    """Whose list is made, and by what."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    placement: str | None = Field(default=None, description="default: the first of the configuration")
    limit: Annotated[int, Field(ge=1, le=100)] = Field(default=20, description="number of items")
    explain: bool = Field(default=False, description="say why each item is shown")
    variant: str | None = Field(
        default=None, description="`experiment:variant`, several with commas; default: what control gets"
    )
    rules: dict[str, Any] | None = Field(
        default=None,
        description="used instead of those of the shop and of the variant; as `PUT /v1/rules` takes them",
    )


def add_preview(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the route."""

    @app.post(
        "/v1/preview",
        responses={200: {"model": RecommendationsResponse}, **{code: {"model": Problem} for code in (413, 415)}},
        openapi_extra=request_body(PreviewIn),
        tags=["rules"],
    )
    async def preview(request: Request) -> Response:
        """The first page of recommendations that a user would get, by other rules or in a variant of an experiment.

        Nothing is logged, nothing counts as shown, and nothing is explored. `request_id` names no exposure.
        """
        given = parse_model(PreviewIn, await bounded_body(request), "bad_preview")
        return json_response(await in_thread(_preview, service, given, id_of_answer(request.scope)))


def _preview(service: ServiceState, given: PreviewIn, request_id: str) -> dict[str, Any]:
    """The fields of `RecommendationsResponse`. Raises ApiError 422."""
    current = snapshot_of(service)
    name = placement_of(current, given.placement)
    arm = _arm(service, current, given)
    answer = recommend(service, arm, given.user_id, given.limit, name, Page(service.now()))
    exposure = Exposure(
        request_id=request_id,
        user_id=given.user_id,
        placement=name,
        timestamp=service.now(),
        fingerprint=answer.slate.fingerprint,
        variant=arm.variant,
        source=answer.source,
        degraded=tuple(answer.degraded),
        items=(),
        scores=(),
        propensities=(),
    )
    why = why_shown(service, arm.snapshot, answer) if given.explain else None
    return slate_fields(answer.slate, arm.snapshot, exposure, None, why, answer.recommended.probabilities)


def _arm(service: ServiceState, snapshot: ServingSnapshot, given: PreviewIn) -> Arm:
    """What the list is made from. snapshot: of the current bundle. Raises ApiError 422."""
    variants = variants_of(given.variant or "")
    if given.variant is not None and not variants:
        raise ApiError("unknown_variant", f"{given.variant!r} is no `experiment:variant`", "variant")
    try:
        arm = service.forced_arm(snapshot, variants)
    except KeyError as error:
        known = [f"{of['name']}:{variant}" for of in service.experiments.describe(()) for variant in of["variants"]]
        message = f"experiment {error.args[0]!r} has no such variant; there are: {', '.join(known) or 'none'}"
        raise ApiError("unknown_variant", message, "variant") from None
    if given.rules is None:
        return arm
    try:
        rules = check_rules(given.rules, arm.snapshot.bundle, service.now())
    except RulesError as error:
        raise ApiError("bad_rules", str(error), f"rules.{error.place}".rstrip(".")) from None
    return replace(arm, rules=ShopRules.given(rules))
