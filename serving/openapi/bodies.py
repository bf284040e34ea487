"""Bodies of requests in the description of the API: routes parse them, so that FastAPI knows no schema of them."""

from typing import Any, Final

from pydantic import TypeAdapter

JSON: Final = "application/json"
REFERENCE: Final = "#/components/schemas/{model}"
"""Where the description has the schema of a model."""


def request_body(kind: Any, *media: str) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a body. kind: its type; media: its media types, JSON without any.

    The schemas of models are in `$defs`, until `describe` gives them their place.
    """
    schema = TypeAdapter(kind).json_schema(ref_template=REFERENCE)
    return {"requestBody": {"required": True, "content": {name: {"schema": schema} for name in media or (JSON,)}}}
