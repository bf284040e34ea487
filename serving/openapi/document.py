"""The description of the API (OpenAPI): what FastAPI says of the routes, with bodies, errors, keys and examples."""

from collections.abc import Callable
from typing import Any

from serving.access.roles import role_needed
from serving.errors import PROBLEM_TYPE, PROBLEMS
from serving.openapi.bodies import JSON, REFERENCE
from serving.openapi.examples import IDS, REQUESTS, RESPONSES

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, in the header Authorization"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same key"},
}
"""How a call sends its key."""


def describe(made: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The description of an application. made: what FastAPI makes, and keeps."""

    def described() -> dict[str, Any]:
        api = made()
        if "securitySchemes" in api["components"]:
            return api
        api["components"]["securitySchemes"] = SCHEMES
        schemas = api["components"]["schemas"]
        schemas["Problem"]["properties"]["code"]["x-titles"] = {code: title for code, (_, title) in PROBLEMS.items()}
        for path, operations in api["paths"].items():
            for method, operation in operations.items():
                _add_body(operation, schemas)
                _add_problems(operation)
                _add_key(operation, method, path)
                _add_examples(operation)
        return api

    return described


def _add_body(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Give the models of a body their place in the description."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = dict(content["schema"])
        schemas.update(schema.pop("$defs", {}))
        if "properties" in schema:  # a model, not a choice of several
            schemas[schema["title"]] = schema
            schema = {"$ref": REFERENCE.format(model=schema["title"])}
        content["schema"] = schema


def _add_problems(operation: dict[str, Any]) -> None:
    """Errors have a media type of their own."""
    problem = {"schema": {"$ref": REFERENCE.format(model="Problem")}}
    for response in operation["responses"].values():
        if response.get("content", {}).get(JSON) == problem:
            response["content"] = {PROBLEM_TYPE: problem}


def _add_key(operation: dict[str, Any], method: str, path: str) -> None:
    """Say which role of a key a call needs."""
    role = role_needed(method.upper(), path)
    operation["security"] = [] if role is None else [{name: []} for name in SCHEMES]
    if role is not None:
        operation["description"] += f"\n\nWhere the service has keys, the call needs the role `{role}`."


def _add_examples(operation: dict[str, Any]) -> None:
    """Give a call the examples that stand under its operation id."""
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in IDS:
            parameter["example"] = IDS[parameter["name"]]
    name = operation["operationId"]
    if name in REQUESTS:
        next(iter(operation["requestBody"]["content"].values()))["example"] = REQUESTS[name]
    if name in RESPONSES:
        (success,) = (response for status, response in operation["responses"].items() if status < "300")
        success["content"][JSON]["example"] = RESPONSES[name]
