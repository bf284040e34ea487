"""API keys: the file and its mistakes; roles, limits and rotation in a running service."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import HOME, ServiceHarness, facts_of, service_harness
from toy_service import NOW
from typer.testing import CliRunner

from features.errors import ConfigError
from recsys.cli.main import app as cli
from serving.access.key_file import create_key, load_keys, rate, revoke_key
from serving.access.keys import ApiKeys
from serving.access.roles import role_needed
from serving.errors import ApiError

EVENT = {"user_id": "eve", "item_id": "i1", "event": "click"}
DIGEST = hashlib.sha256(b"rk_x").hexdigest()


def as_key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def line(**fields: Any) -> bytes:
    return orjson.dumps({"name": "a", "sha256": DIGEST, "role": "read"} | fields) + b"\n"


# --- the file


def test_a_new_key_is_random_and_the_file_has_its_hash_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secrets = [create_key(file, name, "write", "5/minute", "2027-01-31") for name in ("a", "b.c-d_1")]
    assert all(
        re.fullmatch(r"rk_[A-Za-z0-9_-]{43}", secret) for secret in secrets
    )  # 43 * 6 bits are 256 and 2 to spare
    assert secrets[0] != secrets[1]
    assert [orjson.loads(text) for text in file.read_bytes().splitlines()] == [
        {
            "name": name,
            "sha256": hashlib.sha256(secret.encode()).hexdigest(),
            "role": "write",
            "limit": "5/minute",
            "expires": "2027-01-31",
        }
        for name, secret in zip(("a", "b.c-d_1"), secrets, strict=True)
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_goes_to_a_line_of_its_own_and_leaves_when_it_is_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_bytes(b"\n" + line(name="by-hand").rstrip())  # without an end of line
    file.chmod(0o640)
    create_key(file, "b", "admin")
    assert [(key.name, key.role, key.limit, key.expires) for key in load_keys(file)] == [
        ("by-hand", "read", None, None),
        ("b", "admin", None, None),
    ]
    (tmp_path / "link").symlink_to(file)
    revoke_key(tmp_path / "link", "by-hand")
    assert ([key.name for key in load_keys(file)], stat.S_IMODE(file.stat().st_mode)) == (["b"], 0o640)
    assert (tmp_path / "link").is_symlink()
    revoke_key(file, "b")
    assert (load_keys(file), file.read_bytes()) == ((), b"")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"x", "line 1: not one JSON object in UTF-8: correct the line, or remove it"),
        (line() + b'{"name": "b"', "line 2: not one JSON object in UTF-8: correct the line, or remove it"),
        (b"\xff\xfe", "line 1: not one JSON object in UTF-8"),
        (b"[]", "line 1: must be named values"),
        (b'{"name": "a", "role": "read"}', "line 1: sha256: missing; add it"),
        (line(colour=1), "line 1: colour: unknown key"),
        (line(role="root"), "line 1: role: must be 'read', 'write' or 'admin'"),
        (line(name=""), "line 1: name: must be 1 to 64 letters, digits"),
        (line(name="x" * 65), "line 1: name: must be 1 to 64 letters, digits"),
        (line(name="a b"), "line 1: name: must be 1 to 64 letters, digits"),
        (line(sha256="rk_x"), "line 1: sha256: must be the 64 hexadecimal digits"),
        (line(sha256=DIGEST.upper()), "line 1: sha256: must be the 64 hexadecimal digits"),
        (line(limit="5"), "line 1: limit: must be a number of calls and a period: second, minute or hour"),
        (line(limit="0/hour"), "line 1: limit: must be a number of calls"),
        (line(limit="5/day"), "line 1: limit: must be a number of calls"),
        (line(limit="10000000/hour"), "line 1: limit: must be a number of calls"),
        (line(expires="soon"), "line 1: expires: is not an ISO 8601 time such as 2026-01-31T12:00:00Z"),
        (line(expires="2027-01-31T12:00:00"), "line 1: expires: has no zone"),
        (line() + b"\n" + line(sha256="0" * 64), "line 3: the name or the key stands in line 1, too: remove one"),
        (line() + line(name="b"), "line 2: the name or the key stands in line 1, too: remove one"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_keys(file)
    assert str(caught.value).startswith(f"{file} {message}")
    with pytest.raises(ConfigError):
        create_key(file, "new", "read")
    assert file.read_bytes() == text


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone: no such file; check the path; `recsys keys create NAME --keys "):
        load_keys(tmp_path / "gone")
    with pytest.raises(ConfigError, match="a folder; give a file"):
        load_keys(tmp_path)


def test_the_limits_of_keys() -> None:
    assert [rate(text) for text in ("1/second", "9999999/minute", "60/hour")] == [
        (1, 1_000_000),
        (9_999_999, 60_000_000),
        (60, 3_600_000_000),
    ]


# --- the command


def keys(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    before = Path.cwd()
    os.chdir(cwd)
    try:
        result = CliRunner().invoke(cli, ["keys", *arguments])
    finally:
        os.chdir(before)
    return result.exit_code, result.stdout, f"{result.exception or ''}{result.stderr}"


def test_the_commands(tmp_path: Path) -> None:
    status, secret, said = keys("create", "shop", "--role", "write", "--limit", "10/second", cwd=tmp_path)
    assert (status, secret[:3], len(secret)) == (0, "rk_", 47)
    assert said == "keys.jsonl: key 'shop' of the role write; this is the only time that it is shown:\n"
    (key,) = load_keys(tmp_path / "keys.jsonl")
    assert key.sha256 == hashlib.sha256(secret.strip().encode()).hexdigest()
    assert keys("create", "reader", "--keys", "keys.jsonl", cwd=tmp_path)[0] == 0
    status, shown, _ = keys("list", "--json", cwd=tmp_path)
    assert orjson.loads(shown) == [
        {"name": "shop", "role": "write", "limit": "10/second", "expires": None},
        {"name": "reader", "role": "read", "limit": None, "expires": None},
    ]
    assert "reader │ read  │ none      │ never" in keys("list", cwd=tmp_path)[1]
    assert keys("revoke", "shop", cwd=tmp_path)[1] == "keys.jsonl: key 'shop' is revoked\n"
    assert [key.name for key in load_keys(tmp_path / "keys.jsonl")] == ["reader"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "reader"), "there is a key 'reader': choose another name, or revoke that key first"),
        (("create", "x", "--limit", "5"), "limit: must be a number of calls and a period"),
        (("create", "x", "--expires", "soon"), "expires: is not an ISO 8601 time"),
        (("create", "x y"), "name: must be 1 to 64 letters, digits"),
        (("revoke", "shop"), "there is no key 'shop'; keys: reader"),
        (("list", "--keys", "gone.jsonl"), "gone.jsonl: no such file; check the path; `recsys keys create"),
    ],
)
def test_mistakes_of_commands(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    create_key(tmp_path / "keys.jsonl", "reader", "read")
    before = (tmp_path / "keys.jsonl").read_bytes()
    status, _, said = keys(*arguments, cwd=tmp_path)
    assert (status, message in said) == (1, True), said
    assert (tmp_path / "keys.jsonl").read_bytes() == before


def test_a_role_that_there_is_not(tmp_path: Path) -> None:
    status, _, said = keys("create", "x", "--role", "root", cwd=tmp_path)
    assert (status, (tmp_path / "keys.jsonl").exists()) == (2, False)
    assert "give one of read, write, admin" in said


# --- roles


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        *(("GET", path, None) for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/static/page.js")),
        ("HEAD", "/healthz", None),
        ("POST", "/healthz", "write"),
        ("GET", "/static/a/b", None),
        ("GET", "/static/", "read"),
        ("GET", "/healthz/x", "read"),
        ("GET", "/v1/about", "read"),
        ("GET", "/media/i1", "read"),
        ("GET", "/v1/users/u/history", "read"),
        ("OPTIONS", "/v1/events", "read"),
        ("POST", "/v1/search", "read"),
        ("POST", "/v1/rank", "read"),
        ("PUT", "/v1/search", "write"),
        ("POST", "/v1/search/x", "write"),
        ("POST", "/v1/events", "write"),
        ("PUT", "/v1/items/i1", "write"),
        ("POST", "/v1/users/u/merge", "write"),
        ("DELETE", "/v1/users/u/events/e", "write"),
        ("DELETE", "/v1/users/u/events/e/f", "admin"),
        ("DELETE", "/v1/users/u", "admin"),
        ("DELETE", "/v1/items/i1", "admin"),
        ("GET", "/v1/items.ndjson", "read"),
        ("POST", "/v1/items", "write"),
        ("GET", "/v1/rules", "admin"),
        ("PUT", "/v1/rules", "admin"),
        ("QUERY", "/v1/anything", "write"),
    ],
)
def test_the_role_of_a_call(method: str, path: str, role: str | None) -> None:
    assert role_needed(method, path) == role


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceHarness, dict[str, str]]]:
    """A service with a key of each role, and the keys."""
    folder = tmp_path_factory.mktemp("keys")
    file = folder / "keys.jsonl"
    secrets = {role: create_key(file, f"of-{role}", role) for role in ("read", "write", "admin")}
    with service_harness(folder, keys=file) as harness:
        yield harness, secrets


CALLS: list[tuple[str, str, Any, tuple[str, ...]]] = [
    ("GET", HOME.format("eve", 2, "home"), None, ("read", "write", "admin")),
    ("GET", "/v1/users/eve/why-not?item_id=i1", None, ("read", "write", "admin")),
    ("GET", "/media/i2", None, ("read", "write", "admin")),
    ("POST", "/v1/search", {"text": "red"}, ("read", "write", "admin")),
    ("POST", "/v1/rank", {"user_id": "eve", "items": ["i1"]}, ("read", "write", "admin")),
    ("POST", "/v1/events", EVENT, ("write", "admin")),
    ("PUT", "/v1/items/i3", {"title": "x"}, ("write", "admin")),
    ("POST", "/v1/users/eve/merge", {"from": "anon"}, ("write", "admin")),
    ("DELETE", "/v1/users/eve/events/e1", None, ("write", "admin")),
    ("DELETE", "/v1/items/i4", None, ("admin",)),
    ("POST", "/v1/items", None, ("write", "admin")),
    ("GET", "/v1/items.ndjson", None, ("read", "write", "admin")),
    ("DELETE", "/v1/users/gone", None, ("admin",)),
    ("GET", "/v1/rules", None, ("admin",)),
    ("PUT", "/v1/rules", {"rules": []}, ("admin",)),
]


@pytest.mark.parametrize(("method", "path", "body", "roles"), CALLS)
def test_each_call_needs_its_role(
    steady: tuple[ServiceHarness, dict[str, str]], method: str, path: str, body: Any, roles: tuple[str, ...]
) -> None:
    harness, secrets = steady
    for role, secret in secrets.items():
        response = harness.client.request(method, path, json=body, headers=as_key(secret))
        assert (response.status_code != 403) == (role in roles), response.text
        assert response.status_code != 401
    refused = harness.client.request(method, path, json=body)
    assert (refused.status_code, refused.json()["code"]) == (401, "no_key")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "send it as `Authorization: Bearer KEY`, or as `X-API-Key: KEY`" in refused.json()["detail"]


def test_every_route_is_closed_but_the_open_ones(steady: tuple[ServiceHarness, dict[str, str]]) -> None:
    client = steady[0].client
    open_paths = {route.path for route in client.app.routes if client.get(route.path).status_code != 401}  # type: ignore[attr-defined]
    pages = {"/", "/map", "/console", "/docs", "/static/{name:path}"}
    assert open_paths == pages | {"/healthz", "/readyz", "/openapi.json"}
    assert client.get("/nowhere").status_code == 401


def test_how_a_key_is_sent(steady: tuple[ServiceHarness, dict[str, str]]) -> None:
    client, key = steady[0].client, steady[1]["read"]
    sent: list[tuple[dict[str, str], int]] = [
        ({"X-API-Key": key}, 200),
        ({"Authorization": f"bearer {key}"}, 200),
        ({"Authorization": f"Bearer  {key} "}, 200),
        ({"Authorization": f"Basic {key}", "X-API-Key": key}, 200),  # of a gateway, and ours
        ({"Authorization": "Bearer x", "X-API-Key": key}, 401),
        ({"Authorization": key}, 401),
        ({"Authorization": f"Basic {key}"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"X-API-Key": key[:-1]}, 401),
        ({"X-API-Key": key + "x"}, 401),
        ({"X-API-Key": hashlib.sha256(key.encode()).hexdigest()}, 401),
        ({"X-API-Key": "of-read"}, 401),
        ({"Cookie": f"key={key}"}, 401),
    ]
    answers = [(headers, client.get("/v1/about", headers=headers).status_code) for headers, _ in sent]
    assert answers == sent
    assert client.get(f"/v1/about?key={key}").status_code == 401
    unknown = client.get("/v1/about", headers={"X-API-Key": "rk_guess"}).json()
    assert (unknown["code"], "rk_guess" in unknown["detail"]) == ("unknown_key", False)


def test_two_keys_in_one_call(steady: tuple[ServiceHarness, dict[str, str]]) -> None:
    read, write = steady[1]["read"], steady[1]["write"]
    client = steady[0].client
    both = {"Authorization": f"Bearer {read}", "X-API-Key": read}
    assert client.get("/v1/about", headers=both).status_code == 200
    response = client.get("/v1/about", headers=both | {"X-API-Key": write})
    assert (response.status_code, response.json()["code"]) == (401, "unknown_key")
    of_a_proxy = {"Authorization": "Basic Zm9vOmJhcg==", "X-API-Key": read}
    assert client.get("/v1/about", headers=of_a_proxy).status_code == 200


def test_a_role_that_is_too_small_is_named(steady: tuple[ServiceHarness, dict[str, str]]) -> None:
    response = steady[0].client.post("/v1/events", json=EVENT, headers=as_key(steady[1]["read"]))
    assert response.status_code == 403
    assert facts_of(response.json()) == {
        "code": "role_too_small",
        "detail": "the call needs a key of the role write; this key has the role read",
        "place": "header",
    }
    assert steady[0].client.get("/v1/users/eve/history", headers=as_key(steady[1]["read"])).json()["total"] <= 3


def test_readiness_gives_reasons_to_calls_with_a_key(steady: tuple[ServiceHarness, dict[str, str]]) -> None:
    harness, secrets = steady
    harness.service.notes["store"] = "redis://10.0.0.7 is away"
    try:
        assert harness.client.get("/readyz").json()["notes"] == {"store": "call with a key to see it"}
        told = harness.client.get("/readyz", headers=as_key(secrets["read"])).json()["notes"]
        assert told == {"store": "redis://10.0.0.7 is away"}
        unknown = harness.client.get("/readyz", headers=as_key("rk_x"))
        assert (unknown.status_code, unknown.json()["notes"]) == (200, {"store": "call with a key to see it"})
    finally:
        harness.service.notes.clear()


# --- a file that changes


def test_keys_are_rotated_while_the_service_runs(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    first = create_key(file, "shop", "read")
    with service_harness(tmp_path, keys=file) as harness:

        def statuses(*secrets: str) -> list[int]:
            harness.service.step()
            return [harness.client.get("/v1/about", headers=as_key(secret)).status_code for secret in secrets]

        second = create_key(file, "shop-2", "read")
        assert statuses(first, second) == [200, 200]
        revoke_key(file, "shop")
        assert statuses(first, second) == [401, 200]
        file.write_text("{")
        assert statuses(first, second) == [401, 200]
        notes = harness.client.get("/readyz", headers=as_key(second)).json()
        assert notes["status"] == "degraded"
        assert notes["notes"]["keys"].startswith(f"{file} line 1: not one JSON object")
        assert notes["notes"]["keys"].endswith("; the keys of before stay in use")
        file.unlink()
        assert statuses(first, second) == [401, 200]
        file.write_text("")  # the last key was revoked
        assert statuses(first, second) == [401, 401]
        assert harness.client.get("/readyz").json()["status"] == "degraded"
        assert harness.service.keys.fault.startswith(f"{file} has no key: every call is refused until `recsys keys")
        third = create_key(file, "shop-3", "read")
        assert statuses(third) == [200]
        assert harness.client.get("/readyz").json()["status"] == "ready"


def test_a_revoked_key_is_refused_although_the_log_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.jsonl"
    secret = create_key(file, "shop", "read")
    with service_harness(tmp_path, keys=file) as harness:

        def fail() -> None:
            raise OSError

        revoke_key(file, "shop")
        monkeypatch.setattr(harness.service.log, "probe", fail)
        harness.service.step()
        assert harness.client.get("/v1/about", headers=as_key(secret)).status_code == 401


# --- limits and expiry, by a clock


def held(tmp_path: Path, **fields: Any) -> tuple[ApiKeys, list[int]]:
    """Keys with one key rk_x, and their clock."""
    file, clock = tmp_path / "keys.jsonl", [NOW]
    file.write_bytes(line(**fields))
    return ApiKeys(file, lambda: clock[0]), clock


def waits(keys: ApiKeys, calls: int) -> list[str]:
    """Of so many calls: seconds to wait, "" for each that is admitted."""
    out = []
    for _ in range(calls):
        try:
            keys.admit(keys.authenticate(b"rk_x"), "read")
            out.append("")
        except ApiError as error:
            out.append(error.headers.get("Retry-After", error.code))
    return out


def test_a_key_is_limited(tmp_path: Path) -> None:
    keys, clock = held(tmp_path, limit="3/minute")  # 3 at once, then one in 20 s
    assert waits(keys, 5) == ["", "", "", "20", "20"]
    clock[0] += 5_500_000
    assert waits(keys, 1) == ["15"]  # 14.5 s
    clock[0] += 14_500_000
    assert waits(keys, 2) == ["", "20"]
    clock[0] += 50_000_000
    assert waits(keys, 3) == ["", "", "10"]
    clock[0] += 3_600_000_000
    assert waits(keys, 4) == ["", "", "", "20"]  # not more than 3 after any pause
    clock[0] -= 3_600_000_000  # a clock that is set back
    assert waits(keys, 1) == ["20"]


def test_a_key_without_a_limit_is_not_limited(tmp_path: Path) -> None:
    assert waits(held(tmp_path)[0], 1000) == [""] * 1000


def test_a_limit_outlives_a_change_of_the_file(tmp_path: Path) -> None:
    keys, _ = held(tmp_path, limit="1/hour")
    assert waits(keys, 2) == ["", "3600"]
    create_key(tmp_path / "keys.jsonl", "other", "read")
    keys.follow()
    assert waits(keys, 1) == ["3600"]


def test_a_call_that_is_refused_does_not_count(tmp_path: Path) -> None:
    keys, _ = held(tmp_path, limit="1/hour")
    with pytest.raises(ApiError, match="needs a key of the role write"):
        keys.admit(keys.authenticate(b"rk_x"), "write")
    assert waits(keys, 1) == [""]


def test_a_key_expires(tmp_path: Path) -> None:
    keys, clock = held(tmp_path, expires="2027-01-15T08:00:01Z")  # NOW and one second
    clock[0] += 999_999
    assert keys.authenticate(b"rk_x").name == "a"
    clock[0] += 1
    with pytest.raises(ApiError) as caught:
        keys.authenticate(b"rk_x")
    assert (caught.value.status, caught.value.code) == (401, "expired_key")
    assert "expired at 2027-01-15T08:00:01Z" in caught.value.detail


def test_a_limit_of_a_running_service(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret, other = create_key(file, "a", "read", "2/hour"), create_key(file, "b", "read", "2/hour")
    with service_harness(tmp_path, keys=file) as harness:
        answers = [harness.client.get("/v1/about", headers=as_key(secret)) for _ in range(3)]
        assert [response.status_code for response in answers] == [200, 200, 429]
        assert answers[2].headers["retry-after"] == "1800"
        assert facts_of(answers[2].json()) == {
            "code": "too_many_requests",
            "detail": "the key is limited to 2/hour; try again in 1800 s",
            "place": "header",
        }
        assert harness.client.get("/v1/about", headers=as_key(other)).status_code == 200
        assert harness.client.get("/healthz", headers=as_key(secret)).status_code == 200
