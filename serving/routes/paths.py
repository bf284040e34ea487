"""How ids travel in a URL: the path is routed while it is percent-encoded, and an id is one segment of it.

The web server decodes a path before the application routes it. Then "x/similar" and "x%2Fsimilar" are the same path,
and bytes that are not UTF-8 become one replacement character. `CanonicalUrl` undoes this: the application routes each
segment percent-encoded, in one form. A parameter `{item_id:id}` of a route is the decoded id.
"""

from urllib.parse import quote, unquote, unquote_plus

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import ApiError


class _IdConvertor(Convertor[str]):
    """One segment of a path, which is an id. It may be empty: the route then says so."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


register_url_convertor("id", _IdConvertor())


class CanonicalUrl:
    """Middleware that hands every path on percent-encoded: letters, digits and -._~ as they are, all else as %XX.

    Responds 400 when the path or the query is not UTF-8.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        if scope["type"] == "http":
            raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
            place = "path"
            try:
                segments = raw_path.decode("ascii").split("/")
                path = "/".join(quote(unquote(segment, errors="strict"), safe="") for segment in segments)
                place = "query"
                unquote_plus(scope["query_string"].decode("ascii"), errors="strict")
            except UnicodeDecodeError:
                message = f"the {place} of the URL is not valid UTF-8: percent-encode the UTF-8 bytes of each id"
                await ApiError("bad_url", message, place).response()(scope, receive, send)
                return
            scope["path"] = path  # in place: the middleware around this one reads the route of the same scope
        await self._app(scope, receive, send)
