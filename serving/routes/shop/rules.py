"""Routes of the rules of a shop: read them, and replace the file that all processes follow."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from recsys.ranking.rules import Rule, Rules
from serving.errors import ApiError, Problem, json_response
from serving.openapi.bodies import request_body
from serving.schemas.body import bounded_body, parse_json
from serving.shop.rules import RulesChangedError, RulesError, check_rules
from serving.state.service import ServiceState
from serving.state.thread_pool import InThread


class RulesResponse(BaseModel):
    """Rules. The header ETag names the file that they are in."""

    rules: list[Rule]
    fault: str | None = Field(description="why the file cannot be used as it is now; then the rules of before are")


def may_replace(header: str | None) -> Callable[[str], bool]:
    """Whether a file of a digest may be replaced, by the header If-Match (RFC 9110, section 13.1.1)."""
    tags = {tag.strip() for tag in (header or "").split(",")}
    return lambda digest: header is None or etag(digest) in tags or (bool(digest) and "*" in tags)


def etag(digest: str) -> str:
    """The header ETag of a file with this digest."""
    return f'"{digest}"'


def add_rules(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the routes."""

    def read() -> Response:
        bundle = service.snapshot.bundle if service.snapshot else None
        return _response(*service.rules.read(bundle, service.now()))

    @app.get("/v1/rules", responses={200: {"model": RulesResponse}}, tags=["rules"])
    async def get_rules() -> Response:
        """The rules in use, in the form of the file. The header `ETag` names the file; without a file there is none.

        `fault` says why the file cannot be used as it is now: the rules of before stay in use.
        """
        response: Response = await in_thread(read)
        return response

    @app.put(
        "/v1/rules",
        responses={200: {"model": RulesResponse}, **{code: {"model": Problem} for code in (409, 412, 413, 415)}},
        openapi_extra=request_body(Rules),
        tags=["rules"],
    )
    async def put_rules(
        request: Request,
        dry_run: Annotated[bool, Query(description="check the rules, and change nothing")] = False,
        if_match: Annotated[
            str | None, Header(description="`ETag` of the rules that were read: others in the file get 412")
        ] = None,
    ) -> Response:
        """Replace the rules: the file is written, and all processes that follow it use it within `FOLLOW_SECONDS`.

        They are checked as at a start. Comments in the file are lost.
        """
        given = parse_json(await bounded_body(request))
        response: Response = await in_thread(_replace, service, given, dry_run, may_replace(if_match))
        return response


def _replace(service: ServiceState, given: Any, dry_run: bool, may: Callable[[str], bool]) -> Response:
    """Check rules, and write them unless this is a dry run. Raises ApiError 409, 412 or 422."""
    bundle, shop = service.snapshot.bundle if service.snapshot else None, service.rules
    if shop.path is None and not dry_run:
        message = "the service has no file of rules: start it with --rules FILE (setting RULES)"
        raise ApiError("no_rules_file", message)
    try:
        rules = check_rules(given, bundle, service.now())
        if dry_run:
            return _response(rules)
        return _response(rules, shop.replace(given, bundle, service.now(), may))
    except RulesError as error:
        raise ApiError("bad_rules", str(error), error.place or "body") from None
    except RulesChangedError:
        message = "the file is not the one that If-Match names: read the rules again, and change those"
        raise ApiError("rules_changed", message, "header") from None


def _response(rules: Rules, digest: str = "", fault: str = "") -> Response:
    """Rules in the form of the file, and the tag of the file that has a digest, "" for none."""
    shown = {"rules": [], **rules.model_dump(mode="json", exclude_unset=True)}
    response = json_response({**shown, "fault": fault or None})
    if digest:
        response.headers["ETag"] = etag(digest)
    return response
