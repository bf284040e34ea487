"""Every call of docs/api.md runs by bash and curl against a started service, and answers as the page shows."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import polars as pl
import pytest
from media import picture, sound
from service_harness import serving
from toy_data import chain, toy_config
from toy_service import ToyEyes, ToyFiller, ToyWords, toy_events, toy_settings
from typer.main import get_command
from typer.testing import CliRunner

from experiments import dataset
from features.arrays import Floats
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Limits
from features.content.spaces import Encoder, SpaceKey, unit
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from recsys.cli import main as cli
from serving.app import create_app

DOCS = Path(__file__).parents[1] / "docs"
HOST = "http://127.0.0.1:8000"
ITEMS = ("1", "2", "10", "296", "593", "1249", "2324", "2858", "4711", *(str(i) for i in range(5000, 5021)))
USERS = ("1", "17", "251", "4711", *(str(u) for u in range(300, 336)))
EVENTS = chain(len(USERS), len(ITEMS), 13)

TRACE = "%{stderr}\\n%{http_code} %{method} %{url_effective}"
TRACED = f"curl() {{ command curl --silent --show-error --write-out '{TRACE}' \"$@\"; }}\n"
"""Shell code that makes curl write status, method and URL to stderr."""


@dataclass(frozen=True)
class Example:
    """Commands of one block of the page, and the JSON documents shown for their answers. place: its section."""

    place: str
    commands: tuple[str, ...]
    shown: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """One call that was run. body: as text; etag: of the head, where it was printed."""

    command: str
    status: int
    method: str
    path: str
    body: str
    etag: str


def documents(text: str) -> tuple[Any, ...]:
    """The JSON values that follow one another in a text."""
    found, decoder, text = [], json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].lstrip()
    return tuple(found)


def commands(block: str) -> tuple[str, ...]:
    """The command lines of a block that call curl, each after the lines without curl before it."""
    setup, found, open_ = "", [], ""
    for line in block.splitlines():
        open_ += line
        if open_.endswith("\\"):
            open_ = f"{open_[:-1]} "
        elif open_.count("'") % 2 == 0:
            if re.search(r"\bcurl\b", open_):
                found.append(setup + open_)
            else:
                setup += f"{open_}\n"
            open_ = ""
    return tuple(found)


def examples(page: str) -> list[Example]:
    """The shell blocks of a page in its order. A JSON block belongs to the shell block before it."""
    found: list[Example] = []
    place = ""
    for heading, kind, block in re.findall(r"^##+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", page, re.M | re.S):
        place = heading or place
        if kind == "sh":
            found.append(Example(place, commands(block), ()))
        elif kind == "json":
            found[-1] = Example(place, found[-1].commands, documents(block))
    return found


def absent(shown: Any, answer: Any, at: str = "") -> list[str]:
    """Keys and entries that the page shows and the answer does not have. An ellipsis stands for what is left out."""
    if isinstance(shown, dict):
        if not isinstance(answer, dict):
            return [at]
        keys = [key for key in shown if key != "…"]
        return [
            place
            for key in keys
            for place in (absent(shown[key], answer[key], f"{at}.{key}") if key in answer else [f"{at}.{key}"])
        ]
    if isinstance(shown, list) and any(isinstance(entry, dict) for entry in shown):
        if not isinstance(answer, list) or len(answer) < len(shown):
            return [f"{at}[{len(shown) - 1}]"]
        return [place for i, entry in enumerate(shown) for place in absent(entry, answer[i], f"{at}[{i}]")]
    return []


class Words(ToyWords):
    """Text encoder: each word has a direction of its own, drawn by its hash."""

    key = SpaceKey("words", "1", 8)

    def words(self, texts: Any) -> Floats:
        self.read += texts
        rows = [np.sum([direction(word) for word in re.findall(r"\w+", text)], axis=0) for text in texts]
        return unit(np.stack(rows)).astype(np.float32)


def direction(word: str) -> Any:
    seed = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(8)


def encoders(config: object, decoders: DecoderPool, limits: Limits, models: Path) -> dict[str, Encoder]:
    return {"text": Words(limits), "image": ToyEyes(decoders, limits)}


def write_shop(folder: Path) -> pl.DataFrame:
    """Writes the tables of a shop that has the ids of the page, with pictures; returns its events."""
    folder.mkdir()
    rows = range(len(ITEMS))
    for row in rows:
        colour = np.full((8, 8, 3), np.random.default_rng(row).integers(0, 256, 3), np.uint8)
        (folder / f"{ITEMS[row]}.png").write_bytes(picture(colour, "PNG"))
    (folder / "1.wav").write_bytes(sound())
    pl.DataFrame(
        {
            "item_id": ITEMS,
            "title": [f"Title {row}" for row in rows],
            "categories": [["Animation" if row % 2 else "Drama"] for row in rows],
            "image": [f"{item}.png" for item in ITEMS],
            "audio": [f"{item}.wav" if item == "1" else None for item in ITEMS],
            "published_at": [datetime(1995, 1, 1, tzinfo=UTC)] * len(ITEMS),
            "adult": [row % 7 == 0 for row in rows],
        }
    ).write_parquet(folder / "items.parquet")
    order = np.argsort(EVENTS.times, kind="stable")
    pairs = zip(EVENTS.users[order].tolist(), EVENTS.items[order].tolist(), strict=True)
    events = toy_events([(USERS[user], ITEMS[item], 5.0) for user, item in pairs])
    events.write_parquet(folder / "events.parquet")
    return events


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """URL of a service with a trained bundle, and a folder for the files of the calls."""
    folder = tmp_path_factory.mktemp("docs")
    events = write_shop(folder / "data")
    data = {
        "source": "folder",
        "path": str(folder / "data"),
        "events": {"positive": {"rating": 3.5}},
        "placements": {"home": {"repeats": False}},
        "extra_columns": ["adult"],
        "log": str(folder / "log"),
    }
    config = toy_config(folder, data=data, encoder={"kind": "builtin"}, alignment={"nested": [4, 8], "steps": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "open_encoders", encoders)
        for command in (["embed", config], ["train", config, "--no-track"]):
            result = CliRunner().invoke(cli.app, [str(word) for word in command], catch_exceptions=False)
            assert result.exit_code == 0, result.output
    (folder / "rules.yaml").write_text("rules: []\n")
    calls = folder / "calls"
    calls.mkdir()
    shutil.copy(folder / "data" / "1.png", calls / "poster.jpg")
    store = RedisServer()
    app = create_app(
        toy_settings(folder, rules=folder / "rules.yaml", follow_seconds=0.05, redis_url=store.url),
        connect=lambda rules: RedisStore(store.url, rules),
        filler=ToyFiller(folder, lambda _: events),
        encoders=encoders,
    )
    with serving(app) as url:
        yield url, calls
    store.stop()


def run(url: str, folder: Path, command: str, before: list[Call]) -> Call:
    """Run one command. What the page shortens is the newest of the answers before: their cursor, their tag."""
    cursors = re.findall(r'"cursor":"([^"]+)"', "".join(call.body for call in before))
    tags = [call.etag for call in before if call.etag]
    if cursors:
        command = re.sub(r"(?<=cursor=)[^\"]*…", cursors[-1], command)
    if tags:
        command = re.sub(r"\"[^\"]*…\"(?=' )", tags[-1], command)
    done = subprocess.run(
        ["bash", "-c", TRACED + command.replace(HOST, url)],
        cwd=folder,
        env=os.environ | {"KEY": "none-is-needed"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (command, done.stderr)
    status, method, address = done.stderr.rpartition("\n")[2].split(" ", 2)
    head, _, body = done.stdout.rpartition("\n\n")
    etag = re.search(r"^etag: (.+)$", head, re.M)
    return Call(command, int(status), method, urlsplit(address).path, body, etag[1] if etag else "")


@pytest.fixture(scope="module")
def calls(service: tuple[str, Path]) -> list[tuple[Example, list[Call]]]:
    """All examples of the page with their calls, run in the order of the page."""
    found: list[tuple[Example, list[Call]]] = []
    before: list[Call] = []
    for example in examples((DOCS / "api.md").read_text()):
        for command in example.commands:
            before.append(run(*service, command, before))
        found.append((example, before[len(before) - len(example.commands) :]))
    return found


def test_the_reader_of_the_page() -> None:
    page = """
## One

```sh
url='http://h/a'  # a variable
curl "$url"       # "cursor": "a…"
curl -X POST "$url" \\
     -d '{"a": [1,
                2]}'
```

words

```json
{"a": 1}
{"b": [{"c": 2}, "…"], "…": "…"}
```
"""
    (example,) = examples(page)
    assert example.commands == (
        'url=\'http://h/a\'  # a variable\ncurl "$url"       # "cursor": "a…"',
        "url='http://h/a'  # a variable\ncurl -X POST \"$url\"       -d '{\"a\": [1,                2]}'",
    )
    assert example.shown == ({"a": 1}, {"b": [{"c": 2}, "…"], "…": "…"})
    assert example.place == "One"


@pytest.mark.parametrize(
    ("shown", "answer", "expected"),
    [
        ({"a": 1, "…": "…"}, {"a": None, "b": 2}, []),
        ({"a": 1}, {"b": 2}, [".a"]),
        ({"a": {"b": 1}}, {"a": None}, [".a"]),
        ([{"a": 1}, {"b": 1}], [{"a": 1}, {"a": 1}], ["[1].b"]),
        ([{"a": 1}, {"a": 1}], [{"a": 1}], ["[1]"]),
        (["x", "y"], [], []),
    ],
)
def test_absent_keys(shown: Any, answer: Any, expected: list[str]) -> None:
    assert absent(shown, answer) == expected


def test_every_call_has_the_status_of_the_page(calls: list[tuple[Example, list[Call]]]) -> None:
    wrong = []
    for example, made in calls:
        refused = [document["status"] for document in example.shown if isinstance(document.get("status"), int)]
        wrong += [
            (example.place, call.command, call.status, call.body[:300])
            for call in made
            if call.status not in (refused or range(200, 300))
        ]
    assert wrong == []
    assert sum(len(made) for _, made in calls) >= 38


def test_every_answer_has_the_keys_of_the_page(calls: list[tuple[Example, list[Call]]]) -> None:
    """The documents after a block are for its JSON answers, one for each."""
    wrong = []
    for example, made in calls:
        answers = [json.loads(call.body) for call in made if call.body.startswith("{")]
        if example.shown:
            assert len(example.shown) == len(answers), (example.place, answers)
            for document, answer in zip(example.shown, answers, strict=True):
                wrong += [f"{example.place}: {place}" for place in absent(document, answer)]
    assert wrong == []


def test_every_path_stands_on_the_page(calls: list[tuple[Example, list[Call]]], service: tuple[str, Path]) -> None:
    paths = httpx2.get(f"{service[0]}/openapi.json").json()["paths"]
    called = {(call.method, call.path) for _, made in calls for call in made}
    missing = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if not any(
            method.upper() == verb and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), at) for verb, at in called
        )
    }
    assert missing == set()


def test_the_calls_of_the_tables_exist(service: tuple[str, Path]) -> None:
    page = (DOCS / "migration.md").read_text()
    paths = httpx2.get(f"{service[0]}/openapi.json").json()["paths"]
    called = set(re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/[^`]+)`", page))
    assert called - {(method.upper(), path) for path, methods in paths.items() for method in methods} == set()
    assert len(called) >= 20


def test_the_commands_of_the_tables_exist() -> None:
    for words in set(re.findall(r"`recsys ([^`]+)`", (DOCS / "migration.md").read_text())):
        command: Any = get_command(cli.app)
        for word in words.split(" -")[0].split():
            if hasattr(command, "commands"):
                assert word in command.commands, words
                command = command.commands[word]


def test_every_example_of_the_description_runs(
    calls: list[tuple[Example, list[Call]]], service: tuple[str, Path]
) -> None:
    """The examples of /openapi.json, which /docs sends when a call is tried. Those that change nothing come first."""
    paths = httpx2.get(f"{service[0]}/openapi.json").json()["paths"]
    routes = [(method, path, route) for path, methods in paths.items() for method, route in methods.items()]
    found = {}
    for method, path, route in sorted(
        routes, key=lambda each: ("get", "post", "patch", "put", "delete").index(each[0])
    ):
        given = {
            place: {
                part["name"]: part.get("example", part["schema"].get("enum", [None])[0])
                for part in route.get("parameters", ())
                if part["required"] and part["in"] == place
            }
            for place in ("path", "query")
        }
        bodies: dict[str, Any] = route.get("requestBody", {}).get("content", {})
        media = next(iter(bodies), "")
        example = bodies[media]["example"] if media else None
        answer = httpx2.request(
            method.upper(),
            service[0] + path.format(**given["path"]),
            params=given["query"],
            content=example if isinstance(example, str) else json.dumps(example) if media else None,
            headers={"Content-Type": media} if media else {},
        )
        success = next(status for status in route["responses"] if status < "300")
        if str(answer.status_code) != success:
            found[route["operationId"]] = answer.status_code, answer.text[:200]
    assert {name: status for name, (status, _) in found.items()} == {"get_sound_or_video": 404}, (
        found
    )  # none is there
