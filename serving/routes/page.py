"""The demo page at / and the API documentation at /docs: static files that load nothing from other hosts."""

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

from serving.errors import ApiError

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' http: https: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Add the routes. The static files are read once, here."""
    static = {p.name: p.read_bytes() for p in files("serving").joinpath("static").iterdir() if "." in p.name}

    def page(name: str) -> Response:
        if name not in static:
            raise ApiError("not_found", "there is no such page", "path")
        return Response(static[name], media_type=TYPES.get(name.rpartition(".")[2]), headers=PAGE_HEADERS)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("docs.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return page(name)
