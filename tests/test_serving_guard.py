"""What every call passes: hosts, origins, types of bodies, CORS, the logs of calls; errors without traces."""

import hashlib
import logging
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import ServiceHarness, facts_of, service_harness
from toy_service import NOW
from typer.testing import CliRunner

from features.errors import ConfigError
from features.log.segments import is_log
from recsys.cli.main import app as cli
from serving.access.key_file import create_key
from serving.access.origins import check_exposure
from serving.errors import ApiError
from serving.settings import load_settings

EVENT = orjson.dumps({"user_id": "eve", "item_id": "i1", "event": "click"})
SHOP = "https://www.shop.example"


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    folder = tmp_path_factory.mktemp("guard")
    with service_harness(folder, hosts=("api.shop.example", "*.internal"), origins=(SHOP,)) as harness:
        yield harness


# --- hosts


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            (name, 200)
            for name in ("127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "a.localhost", "[::1]:80")
        ),
        *((name, 200) for name in ("10.1.2.3:8000", "[2001:db8::1]", "localhost.")),  # no name to rebind
        *(
            (name, 200)
            for name in ("api.shop.example", "API.shop.example:443", "api.shop.example.", "pod-1.internal")
        ),
        *(
            (name, 421)
            for name in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example")
        ),
        *(
            (name, 421)
            for name in ("evil-localhost", "x.api.shop.example", "internal", "shop.example", "127.1", "0x7f.1")
        ),
        *(
            (name, 421)
            for name in ("", ":80", "a b", "localhost:x", "localhost@evil.example", "[::1", "::1", "*.internal")
        ),
    ],
)
def test_names_in_the_header_host(steady: ServiceHarness, host: str, status: int) -> None:
    response = steady.client.get("/v1/about", headers={"Host": host})
    assert response.status_code == status
    if status == 421:
        assert response.json()["code"] == "wrong_host"
        assert "can allow it by the setting HOSTS" in response.json()["detail"]
        assert steady.client.get("/", headers={"Host": host}).status_code == 421  # the page, too


def test_a_request_has_one_host(steady: ServiceHarness) -> None:
    response = steady.client.get("/healthz", headers=[("Host", "localhost"), ("Host", "localhost")])
    assert (response.status_code, response.json()["code"]) == (400, "bad_host")


def test_the_name_to_listen_on_is_a_host(tmp_path: Path) -> None:
    with service_harness(tmp_path, host="My-Machine") as harness:
        assert harness.client.get("/healthz", headers={"Host": "my-machine:8000"}).status_code == 200
        assert harness.client.get("/healthz", headers={"Host": "my-machine.x"}).status_code == 421


# --- origins


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1", 202),
        ("https://127.0.0.1", 202),  # a gateway in front ends TLS
        (SHOP, 202),
        (SHOP.upper(), 202),
        ("https://evil.example", 403),
        ("http://127.0.0.1:81", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("https://shop.example", 403),
        ("http://www.shop.example", 403),
        (f"{SHOP}.evil.example", 403),
        ("null", 403),
        ("127.0.0.1", 403),
        ("http://", 403),
    ],
)
def test_pages_that_may_change_something(steady: ServiceHarness, origin: str, status: int) -> None:
    response = steady.client.post("/v1/events", content=EVENT, headers={"Origin": origin})
    assert response.status_code == status, response.text
    if status == 403:
        assert response.json()["code"] == "wrong_origin"
        assert response.json()["detail"].endswith("can allow them by the setting ORIGINS")
    assert steady.client.get("/v1/about", headers={"Origin": origin}).status_code == 200  # without leave to read it


def test_a_web_page_can_post_no_event_to_a_service_on_loopback(steady: ServiceHarness) -> None:
    """What a form or `fetch` of a page can send without asking: three types of bodies, and an origin."""
    before = steady.client.get("/v1/users/victim/history").json()["total"]
    event = EVENT.replace(b"eve", b"victim")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        for origin in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {}):
            response = steady.client.post("/v1/events", content=event, headers={"Content-Type": kind, **origin})
            assert response.status_code == (403 if origin else 415), (kind, origin)
    rebound = steady.client.post(
        "/v1/events", content=event, headers={"Host": "evil.example", "Origin": "http://evil.example"}
    )
    assert rebound.status_code == 421
    assert steady.client.get("/v1/users/victim/history").json()["total"] == before == 0


# --- types of bodies


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 202),
        ("Application/JSON; charset=utf-8", 202),
        ("application/json ;x=y", 202),
        ("", 415),
        ("text/json", 415),
        ("application/jsonx", 415),
        ("application/x-ndjson", 415),
        ("text/plain; application/json", 415),
    ],
)
def test_bodies_are_json(steady: ServiceHarness, kind: str, status: int) -> None:
    response = steady.client.post("/v1/events", content=EVENT, headers={"Content-Type": kind})
    assert response.status_code == status
    if status == 415:
        assert facts_of(response.json()) == {
            "code": "bad_type",
            "detail": "the body must be JSON: send the header Content-Type: application/json",
            "place": "header",
        }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/events"),
        ("POST", "/v1/rank"),
        ("POST", "/v1/search"),
        ("POST", "/v1/users/u/merge"),
        ("PUT", "/v1/items/i1"),
        ("PATCH", "/v1/items/i1"),
    ],
)
def test_every_writing_route_takes_json_alone(steady: ServiceHarness, method: str, path: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = steady.client.request(method, path, content=b"{}", headers={"Content-Type": kind})
        assert (response.status_code, response.json()["code"]) == (415, "bad_type")
    chunked = steady.client.request(method, path, content=iter([b"{}"]), headers={"Content-Type": "text/plain"})
    assert chunked.status_code == 415
    form = steady.client.request(method, path, content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert form.status_code == (400 if path == "/v1/search" else 415)
    empty = steady.client.request(method, path)  # says what is missing, not how to name it
    assert empty.json()["code"] in ("bad_json", "method_not_allowed")


# --- CORS


def test_pages_of_an_origin_may_ask_and_read(steady: ServiceHarness) -> None:
    asked = {
        "Origin": SHOP,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization,content-type,x-api-key",
    }
    leave = steady.client.options("/v1/items/i1", headers=asked)
    assert (leave.status_code, leave.headers["access-control-allow-origin"]) == (200, SHOP)
    assert "PUT" in leave.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in leave.headers
    response = steady.client.get("/v1/about", headers={"Origin": SHOP})
    assert response.headers["access-control-allow-origin"] == SHOP
    refused = steady.client.get("/v1/items/nothing", headers={"Origin": SHOP})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (404, SHOP)
    other = steady.client.options("/v1/items/i1", headers=asked | {"Origin": "https://evil.example"})
    assert (other.status_code, "access-control-allow-origin" in other.headers) == (400, False)
    assert "access-control-allow-origin" not in steady.client.get("/v1/about", headers={"Origin": "null"}).headers


def test_a_preflight_needs_no_key(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.jsonl", "a", "read")
    with service_harness(tmp_path, keys=tmp_path / "keys.jsonl", origins=(SHOP,)) as harness:
        asked = {"Origin": SHOP, "Access-Control-Request-Method": "GET"}
        assert harness.client.options("/v1/about", headers=asked).status_code == 200
        assert harness.client.get("/v1/about", headers={"Origin": SHOP}).status_code == 401


def test_without_origins_no_page_may_read(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        response = harness.client.get("/v1/about", headers={"Origin": SHOP})
        assert [name for name in response.headers if name.startswith("access-control")] == []
        assert harness.client.post("/v1/events", content=EVENT, headers={"Origin": SHOP}).status_code == 403


# --- settings


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("hosts", "A.example, *.b.example,", ("a.example", "*.b.example")),
        ("hosts", "", ()),
        (
            "origins",
            "https://A.example,http://b:81,http://[::1]:8",
            ("https://a.example", "http://b:81", "http://[::1]:8"),
        ),
    ],
)
def test_lists_in_the_environment(
    name: str, text: str, value: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"RECSYS_SERVE__{name.upper()}", text)
    assert getattr(load_settings({}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        *(("hosts", text, "must be names of hosts") for text in ("https://a", "a:80", "*", "a.*", "a b", "a..b")),
        *(("origins", text, "must be origins") for text in ("*", "a.example", "https://a/", "ftp://a")),
    ],
)
def test_lists_that_cannot_be(name: str, text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"RECSYS_SERVE__{name.upper()}", f"x.example,{text}" if name == "hosts" else text)
    with pytest.raises(ConfigError) as caught:
        load_settings({})
    assert str(caught.value).startswith(f"environment variable RECSYS_SERVE__{name.upper()} = '{text}': {reason}")


@pytest.mark.parametrize(
    ("addresses", "keys", "unprotected", "refused"),
    [
        (["127.0.0.1", "::1"], False, False, ""),
        (["127.9.9.9"], False, False, ""),
        (["127.0.0.1", "0.0.0.0"], False, False, "0.0.0.0"),
        (["::"], False, False, "::"),
        (["10.0.0.1"], False, False, "10.0.0.1"),
        (["fe80::1%eth0"], False, False, "fe80::1%eth0"),
        (["0.0.0.0"], True, False, ""),
        (["0.0.0.0"], False, True, ""),
    ],
)
def test_others_are_served_with_keys_alone(addresses: list[str], keys: bool, unprotected: bool, refused: str) -> None:
    if not refused:
        check_exposure(addresses, keys=keys, unprotected=unprotected)
        return
    with pytest.raises(ConfigError) as caught:
        check_exposure(addresses, keys=keys, unprotected=unprotected)
    assert str(caught.value).startswith(f"{refused} can be reached from other machines, and no keys are given: make ")
    assert "recsys keys create NAME --keys keys.jsonl" in str(caught.value)
    assert "--unprotected" in str(caught.value)


def test_the_command_refuses_to_serve_others_without_keys(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["serve", "--host", "0.0.0.0", "--port", "0", "--log", str(tmp_path / "log")])
    assert result.exit_code == 1
    assert str(result.exception).startswith("0.0.0.0 can be reached from other machines")
    assert not (tmp_path / "log").exists()


def test_the_command_says_what_is_wrong_with_the_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.jsonl").write_text("{}")
    arguments = ["serve", "--keys", str(tmp_path / "keys.jsonl"), "--port", "0", "--log", str(tmp_path / "log")]
    result = CliRunner().invoke(cli, arguments)
    assert str(result.exception) == f"{tmp_path}/keys.jsonl line 1: name: missing; add it"


# --- logs of calls


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in file.read_bytes().splitlines()]


def test_calls_of_administrators_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    reader, admin = create_key(file, "reader", "read"), create_key(file, "boss", "admin")
    with service_harness(tmp_path, keys=file) as harness:
        audit = harness.service.settings.log / "audit.jsonl"

        def delete(path: str, secret: str) -> int:
            return int(harness.client.delete(path, headers={"X-API-Key": secret}).status_code)

        assert delete("/v1/items/i4", admin) == 200
        assert delete("/v1/items/i4", "rk_unknown") == 401  # anybody could fill the file
        assert delete("/v1/items/a%2Fb", reader) == 403
        assert delete("/v1/items/never", admin) == 404
        assert delete("/v1/users/eve@example.org", admin) == 200
        assert delete("/v1/users/eve/events/e1", admin) == 202  # a call for the role write
        kept = lines_of(audit)
        assert len({line.pop("request_id") for line in kept}) == 4
        path = kept[-1].pop("path")
        assert kept == [
            {
                "time": "2027-01-15T08:00:00+00:00",
                "key": key,
                "method": "DELETE",
                "path": f"/v1/items/{item}",
                "status": status,
            }
            for key, item, status in (("boss", "i4", 200), ("reader", "a%2Fb", 403), ("boss", "never", 404))
        ] + [{"time": "2027-01-15T08:00:00+00:00", "key": "boss", "method": "DELETE", "status": 200}]
        assert re.fullmatch(r"/v1/users/[0-9a-f]{16}", path)
        assert b"example.org" not in audit.read_bytes()
        assert stat.S_IMODE(audit.stat().st_mode) == 0o600
        assert is_log(audit.parent)
        audit.rename(audit.with_suffix(".1"))
        assert delete("/v1/items/never", admin) == 404
        assert len(lines_of(audit)) == 1
    with service_harness(tmp_path, keys=file) as harness:  # a restart hashes as before
        harness.client.delete("/v1/users/eve@example.org", headers={"X-API-Key": admin})
        assert lines_of(audit)[-1]["path"] == path


def test_an_audit_that_cannot_be_written_goes_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with service_harness(tmp_path) as harness:
        (harness.service.settings.log / "audit.jsonl").mkdir()
        assert harness.client.delete("/v1/items/i4").status_code == 200
    (said,) = (record.getMessage() for record in caplog.records if "is not written" in record.getMessage())
    assert said.startswith("audit.jsonl is not written: ")
    assert (
        '{"time":"2027-01-15T08:00:00+00:00","key":null,"method":"DELETE","path":"/v1/items/i4","status":200,' in said
    )


def test_requests_are_logged_without_users(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recsys.access")
    with service_harness(tmp_path, request_log=True) as harness:
        calls = [
            "/v1/users/eve-4711/recommendations?limit=1",
            "/v1/users/eve-4711/history",
            "/v1/users/bob/why-not?item_id=i1",
            "/v1/items/i4?user=eve-4711",
            "/v1/users/",
            "/v1/users",
        ]
        for path in calls:
            harness.client.get(path)
        harness.client.delete("/v1/users/eve-4711/events/eve-event")
        harness.client.get("/healthz", headers={"Host": "evil.example"})
        salt = (harness.service.settings.log / ".access-salt").read_bytes()
    lines = [orjson.loads(record.getMessage()) for record in caplog.records if record.name == "recsys.access"]
    eve, bob, event = (
        hashlib.blake2b(name, key=salt, digest_size=8).hexdigest() for name in (b"eve-4711", b"bob", b"eve-event")
    )
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", f"/v1/users/{eve}/recommendations", 200),
        ("GET", f"/v1/users/{eve}/history", 200),
        ("GET", f"/v1/users/{bob}/why-not", 200),
        ("GET", "/v1/items/i4", 422),
        ("GET", "/v1/users/", 422),
        ("GET", "/v1/users", 200),
        ("DELETE", f"/v1/users/{eve}/events/{event}", 202),
        ("GET", "/healthz", 421),
    ]
    assert len(salt) == 32
    assert "eve-4711" not in caplog.text
    assert all(line["ms"] >= 0 and line["key"] is None for line in lines)


def test_requests_are_not_logged_by_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recsys.access")
    with service_harness(tmp_path) as harness:
        harness.client.get("/v1/users/eve/history")
        assert not (harness.service.settings.log / ".access-salt").exists()
    assert [record for record in caplog.records if record.name == "recsys.access"] == []


# --- errors


def test_an_unexpected_error_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path, request_log=True) as harness:

        def fail(*_: Any) -> Any:
            raise RuntimeError("s3cret in a trace")

        monkeypatch.setattr(harness.service.keeper, "read_user", fail)
        response = harness.client.get("/v1/users/eve/history")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "/docs#internal",
        "title": "The service has a defect",
        "status": 500,
        "detail": "internal error; the service's log has the details",
        "code": "internal",
        "place": "",
    }
    assert "s3cret" not in response.text + str(response.headers)


def test_headers_of_an_error() -> None:
    assert ApiError("busy", "y", "z", {"Retry-After": "1"}).response().headers["retry-after"] == "1"
    assert NOW == 1_800_000_000_000_000  # 2027-01-15T08:00:00+00:00, as the lines above
