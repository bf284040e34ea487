"""The pages: static files that load nothing from other hosts."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from importlib.resources.abc import Traversable

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
    "img-src 'self' http: https: blob:; media-src 'self' http: https: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

DOCS_HEADERS = PAGE_HEADERS | {
    "Content-Security-Policy": PAGE_HEADERS["Content-Security-Policy"].replace("img-src ", "img-src data: ")
}
"""Of /docs: the style of Swagger UI has its drawings in `data:` URLs."""

PAGES = {"/": "index.html", "/map": "map.html", "/docs": "docs.html", "/console": "console.html"}
"""The path of each page, and its file."""


def _files(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    """The files of a folder and those below it, by their paths in it."""
    found = dict[str, bytes]()
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in TYPES:
            found[prefix + entry.name] = entry.read_bytes()
    return found


def add_page(app: FastAPI) -> None:
    """Add the routes. The static files are read once, here."""
    static = _files(files("serving").joinpath("static"))

    def file(name: str) -> Response:
        if name not in static:
            raise ApiError("not_found", "there is no such page", "path")
        headers = DOCS_HEADERS if name == PAGES["/docs"] else PAGE_HEADERS
        return Response(static[name], media_type=TYPES.get(name.rpartition(".")[2]), headers=headers)

    def page(name: str) -> Callable[[], Awaitable[Response]]:
        async def answer() -> Response:
            return file(name)

        return answer

    for path, name in PAGES.items():
        app.get(path, include_in_schema=False)(page(name))

    @app.get("/static/{name:path}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return file(name)
