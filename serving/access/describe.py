"""What the description of the API (OpenAPI) says of keys."""

from collections.abc import Callable
from typing import Any

from serving.access.roles import role_needed

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, in the header Authorization"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same key"},
}
"""How a call sends its key."""


def describe_keys(describe: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The description of an application with its security schemes. Each operation names the role that it needs."""

    def described() -> dict[str, Any]:
        api = describe()
        if "securitySchemes" in api["components"]:  # FastAPI keeps the description that it made
            return api
        api["components"]["securitySchemes"] = SCHEMES
        for path, operations in api["paths"].items():
            for method, operation in operations.items():
                role = role_needed(method.upper(), path)
                operation["security"] = [] if role is None else [{name: []} for name in SCHEMES]
                if role is not None:
                    operation["description"] += f"\n\nWhere the service has keys, the call needs the role `{role}`."
        return api

    return described
