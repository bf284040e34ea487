"""The pages: static files that load nothing from other hosts."""

import hashlib
import posixpath
import re
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import FastAPI, Request
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


def _with_preloads(static: dict[str, bytes]) -> dict[str, bytes]:
    """The files, where each page names all modules that its script imports, so that a browser fetches them at once
    and not one after the other."""
    pages = {name: content for name, content in static.items() if name.endswith(".html")}
    for name, content in pages.items():
        scripts = re.findall(rb'<script type="module" src="/static/([^"]+)"', content)
        modules = dict.fromkeys(module for script in scripts for module in _modules(static, script.decode()))
        links = "".join(f'  <link rel="modulepreload" href="/static/{module}">\n' for module in modules)
        pages[name] = content.replace(b"</head>", links.encode() + b"</head>")
    return static | pages


def _modules(static: dict[str, bytes], name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The modules that a script imports, and those that they import."""
    for path in re.findall(r'^import [^;]*?"(\.[^"]+)"', static[name].decode(), re.MULTILINE):
        module = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
        if module not in above:
            yield module
            yield from _modules(static, module, (*above, module))


def add_page(app: FastAPI) -> None:
    """Add the routes. The static files are read once, here."""
    static = _with_preloads(_files(files("serving").joinpath("static")))
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in static.items()}

    def file(request: Request, name: str) -> Response:
        if name not in static:
            raise ApiError("not_found", "there is no such page", "path")
        headers = (DOCS_HEADERS if name == PAGES["/docs"] else PAGE_HEADERS) | {"ETag": tags[name]}
        if tags[name] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(static[name], media_type=TYPES.get(name.rpartition(".")[2]), headers=headers)

    def page(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return file(request, name)

        return answer

    for path, name in PAGES.items():
        app.get(path, include_in_schema=False)(page(name))

    @app.get("/static/{name:path}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        return file(request, name)
