"""The service as programs of others call it: a client that a generator makes, and a fuzzer of its description.

Both are programs in an environment of their own, which `make tools` makes.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_harness import Flaky, serving
from toy_service import RULES, ToyFiller, ToyShelf, toy_bundle, toy_encoders, toy_settings, toy_upsert, with_contents

from serving.access.key_file import create_key
from serving.app import create_app

TOOLS = Path(__file__).parent.parent / "build" / "tools" / "bin"
pytestmark = pytest.mark.skipif(not TOOLS.exists(), reason="`make tools` has not made the environment of the tools")

PROGRAM = """
import json, sys
from client import AuthenticatedClient
from client.api.events import post_events
from client.api.items import get_item, put_item
from client.api.users import get_history, get_recommendations, recommend
from client.models import EventIn, ItemIn, Problem, RecommendationsIn, SessionEvent

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
first = get_recommendations.sync("ann", client=client, limit=2)
event = EventIn(user_id="ann", item_id=first.items[0].item_id, event="click", request_id=first.request_id)
sent = post_events.sync(client=client, body=event)
again = post_events.sync(client=client, body=[event, EventIn(user_id="", item_id="i1", event="click")])
put = put_item.sync("new", client=client, body=ItemIn(title="red", price=2.5))
session = RecommendationsIn(session=[SessionEvent(item_id="i3", event="click")], limit=1)
refused = get_recommendations.sync("ann", client=client, placement="attic")
assert isinstance(refused, Problem)
print(json.dumps({
    "first": [item.item_id for item in first.items],
    "accepted": [sent.accepted, again.accepted, again.rejected, again.results[1].place],
    "put": [put.item_id, put.new],
    "stored": get_item.sync("new", client=client).fields.to_dict()["price"],
    "session": [item.item_id for item in recommend.sync(client=client, body=session).items],
    "history": [event.event for event in get_history.sync("ann", client=client).events],
    "refused": [refused.code, refused.status, refused.place],
}))
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL of a service, and an admin key."""
    folder = tmp_path_factory.mktemp("clients")
    shelf, store = ToyShelf(with_contents(toy_bundle(folder))), Flaky(RULES)
    key = create_key(folder / "keys.jsonl", "test", "admin", None)
    app = create_app(
        toy_settings(folder, keys=folder / "keys.jsonl"),
        load=shelf.load,
        current=shelf.current,
        find=shelf.find,
        upsert=toy_upsert,
        place=toy_upsert,
        merge=lambda bundle: None,
        filler=ToyFiller(folder),
        connect=lambda rules: store,
        encoders=toy_encoders,
    )
    with serving(app) as url:
        yield url, key


def run(folder: Path, *command: str) -> str:
    """What a program prints; it must end well."""
    environment = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}", "NO_COLOR": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join(line[:300] for line in (done.stdout + done.stderr).splitlines())
    return done.stdout + done.stderr


def test_a_generated_client(service: tuple[str, str], tmp_path: Path) -> None:
    generator = str(TOOLS / "openapi-python-client")
    printed = run(
        tmp_path,
        generator,
        "generate",
        "--url",
        f"{service[0]}/openapi.json",
        "--meta",
        "none",
        "--output-path",
        "client",
    )
    left_out = [line for line in printed.splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert sorted(line.removeprefix("WARNING parsing ").partition(" within")[0] for line in left_out) == [
        *(
            "GET /media/{item_id}",
            *["GET /media/{item_id}/{name}"] * 2,  # 200 and 206
            "GET /v1/items.ndjson",
            "POST /v1/items",
        ),  # files, lines of JSON
    ]
    (tmp_path / "program.py").write_text(PROGRAM)
    assert json.loads(run(tmp_path, str(TOOLS / "python"), "program.py", *service)) == {
        "first": ["i7", "i9"],
        "accepted": [1, 1, 1, "events[1].user_id"],
        "put": ["new", True],
        "stored": 2.5,
        "session": ["i2"],
        "history": ["click", "click", "rating", "rating"],
        "refused": ["unknown_placement", 422, "placement"],
    }


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, ("--phases", "examples,fuzzing", "--max-examples", "5")),
        *(pytest.param(seed, ("--max-examples", "50"), marks=pytest.mark.soak) for seed in (1, 2, 3)),
    ],
    ids=str,
)
def test_what_is_described_is_what_happens(
    service: tuple[str, str], tmp_path: Path, seed: int, options: tuple[str, ...]
) -> None:
    """All checks of schemathesis but one, which schemathesis.toml names. It makes no lines of JSON."""
    fuzz = [str(TOOLS / "schemathesis"), "--config-file", str(Path(__file__).parent / "schemathesis.toml"), "run"]
    fuzz += [f"{service[0]}/openapi.json", "--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    fuzz += ["--exclude-operation-id", "import_items", "--header", f"Authorization: Bearer {service[1]}"]
    run(tmp_path, *fuzz, "--seed", str(seed), *options)
