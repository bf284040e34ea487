"""Metrics at /metrics: what requests, answers and the state of the service add to them; sums over processes."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_harness import ServiceHarness, service_harness, serving
from toy_service import NOW, RULES, Nearest, ToyFiller, ToyShelf, toy_bundle, toy_settings, with_contents

from features.errors import LogError
from features.store.memory import MemoryStore
from serving.access.key_file import create_key
from serving.app import create_app
from serving.state.gauges import COMPONENTS, Gauges
from serving.telemetry import metrics

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Values:
    """(name, labels) -> value of each line."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(harness: ServiceHarness) -> Values:
    response = harness.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return parsed(response.text)


def value(values: Values, name: str, **labels: Any) -> float:
    key = f"recsys_{name}", frozenset((label, str(of)) for label, of in labels.items())
    return values.get(key, 0.0)


def added(before: Values, after: Values, name: str, **labels: Any) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


def test_requests_are_counted_by_route_and_no_label_holds_an_id(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        before = scraped(harness)
        harness.get("ann-4711", k=2)
        harness.get("bob-4711", k=2)
        harness.client.get("/v1/items/i4-4711")
        harness.client.get("/wp-login-4711.php")
        harness.client.request("BREW4711", "/v1/about")
        harness.client.post("/v1/about", content=b"{}")
        harness.client.get("/v1/users/%ff4711/history")
        after = scraped(harness)
    recommendations = "/v1/users/{user_id}/recommendations"
    expected = {
        ("GET", recommendations, 200): 2,
        ("GET", "/v1/items/{item_id}", 404): 1,
        ("GET", "other", 404): 1,
        ("GET", "other", 400): 1,
        ("other", "/v1/about", 405): 1,
        ("POST", "/v1/about", 405): 1,
        ("GET", "/metrics", 200): 1,
    }
    seen = {
        (labels["method"], labels["route"], int(labels["status"])): count
        for (name, pairs), of in after.items()
        if name == "recsys_requests_total"
        for labels in [dict(pairs)]
        if (count := of - before.get((name, pairs), 0.0))
    }
    assert seen == expected
    assert added(before, after, "request_seconds_count", method="GET", route=recommendations) == 2
    assert 0 < added(before, after, "request_seconds_sum", method="GET", route=recommendations) < 60
    assert not any("4711" in label for _, pairs in after for _, label in pairs)
    refused = ((404, "unknown_item"), (404, "not_found"), (405, "method_not_allowed"), (400, "bad_url"))
    counts = [added(before, after, "refused_requests_total", status=status, code=code) for status, code in refused]
    assert counts == [1, 1, 2, 1]


def test_answers_are_counted_by_placement_source_and_stage(tmp_path: Path) -> None:
    bundle = replace(with_contents(toy_bundle(tmp_path)), recommender=Nearest(12, calibrated=True))
    shelf = ToyShelf(bundle)
    with service_harness(tmp_path, shelf=shelf, exposure_sample=1.0) as harness:
        before = scraped(harness)
        answer = harness.get("ann", k=3)
        harness.get("nobody", k=2)
        harness.found(text="blue", limit=2)
        harness.client.get("/v1/items/i1/similar?limit=2")
        harness.client.post("/v1/rank", content=orjson.dumps({"user_id": "ann", "items": [{"item_id": "i1"}]}))
        harness.click("ann", "i1")
        harness.store.away = True
        harness.get("eve", k=1)
        after = scraped(harness)
        assert value(after, "store_away") == 1
    answers = {
        (place, source, degraded): added(
            before, after, "answers_total", placement=place, source=source, degraded=degraded
        )
        for place in ("home", "search", "similar", "rank")
        for source in ("model", "popular")
        for degraded in ("true", "false")
    }
    assert {key for key, count in answers.items() if count} == {
        *(("home", source, "false") for source in ("model", "popular")),
        ("home", "popular", "true"),
        *((place, "model", "false") for place in ("search", "similar", "rank")),
    }
    assert set(answers.values()) == {0, 1}
    assert added(before, after, "degraded_answers_total", placement="home", component="store") == 1
    assert added(before, after, "shown_items_total", placement="home", reason="history") == 3
    assert added(before, after, "shown_items_total", placement="home", reason="popular") == 3
    assert added(before, after, "shown_items_total", placement="search", reason="search") == 2
    stages = {
        stage: added(before, after, "stage_seconds_count", placement="home", stage=stage) for stage in answer["trace"]
    }
    assert stages == {"store": 3, "rank": 3, "log": 3}
    assert added(before, after, "stage_seconds_sum", placement="home", stage="rank") * 1e3 >= answer["trace"]["rank"]
    assert added(before, after, "events_total", result="accepted") == 1
    assert added(before, after, "sampled_candidates_total", source="unknown") > 3
    probabilities = [item["probability"] for item in answer["items"]]
    mean = added(before, after, "shown_probability_sum", placement="home", bundle="toy-1")
    assert mean == pytest.approx(sum(probabilities) / 3)
    assert added(before, after, "shown_probability_count", placement="home", bundle="toy-1") == 1


def test_items_without_events_before_the_training_are_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = toy_bundle(tmp_path)
    popularity = bundle.popularity.copy()
    popularity[[0, 2]] = 0
    monkeypatch.setattr(type(bundle), "popularity", property(lambda _: popularity))
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        before = scraped(harness)
        assert harness.items("nobody", 4) == ["i0", "i1", "i2", "i4"]
        after = scraped(harness)
    assert added(before, after, "shown_cold_items_total", placement="home") == 2
    assert added(before, after, "shown_items_total", placement="home", reason="popular") == 4


def test_the_gauges_say_what_the_service_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path, shelf=ToyShelf(None)) as harness:
        values = scraped(harness)
        assert (value(values, "processes"), value(values, "ready_processes")) == (1, 0)
        assert value(values, "problems", component="bundle") == 1
        harness.shelf.put("one", toy_bundle(tmp_path, fingerprint="toy-7"))
        monkeypatch.setattr(harness.service, "now", lambda: NOW + 90_000_000)
        harness.service.step()
        harness.client.post("/v1/events", content=b'{"user_id": "u", "item_id": "i1", "event": "click"}')
        harness.service.keeper.caught_up -= 100.0
        harness.service.log.fault = "no room"
        values = scraped(harness)
        assert (value(values, "ready_processes"), value(values, "log_unwritable")) == (0, 1)
        problems = {component: value(values, "problems", component=component) for component in COMPONENTS}
        assert {component for component, count in problems.items() if count} == {"log"}
        harness.service.log.fault = ""
        values = scraped(harness)
        version = {dict(labels)["version"] for name, labels in values if name == "recsys_bundle_info"}
        assert value(values, "bundle_info", version=version.pop(), bundle="toy-7") == 1
        assert value(values, "bundle_age_seconds") == 90
        assert value(values, "ready_processes") == 1
        assert 100 <= value(values, "store_lag_seconds") < 160
        assert value(values, "store_lag_bytes") > 50  # the event; the watermark is that of before
        assert 0 < value(values, "log_disk_used_ratio") < 1
        assert value(values, "process_resident_memory_bytes") > 1e7
        assert 0 < value(values, "process_open_fds") < value(values, "process_max_fds")
        assert value(values, "process_cpu_seconds_total") > 0
        harness.shelf.put("two", toy_bundle(tmp_path, fingerprint="toy-8"))
        harness.service.step()
        served = {
            dict(labels)["bundle"]: count
            for (name, labels), count in scraped(harness).items()
            if name == "recsys_bundle_info"
        }
        assert (served["toy-7"], served["toy-8"]) == (0, 1)


def test_queues_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path) as harness:
        harness.get("ann")

        with monkeypatch.context() as patch:
            patch.setattr(type(harness.service.turns), "waiting", 7)
            patch.setattr(harness.client.app.state.encoder_pool, "waiting", 3)  # type: ignore[attr-defined]
            patch.setattr(type(harness.service.log), "waiting", (2, 800))
            Gauges(harness.service, harness.client.app.state.encoder_pool).update()  # type: ignore[attr-defined]
        values = parsed(metrics.exposition().decode())
    assert [value(values, "waiting_requests", queue=queue) for queue in ("threads", "encoder")] == [7, 3]
    assert (value(values, "log_waiting_writes"), value(values, "log_waiting_bytes")) == (2, 800)


def test_a_lost_exposure_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(records: Any) -> None:
        raise LogError("no room")

    with service_harness(tmp_path) as harness:
        before = scraped(harness)
        monkeypatch.setattr(harness.service.log, "append", refuse)
        harness.get("ann")
        after = scraped(harness)
    assert added(before, after, "unlogged_exposures_total") == 1
    assert added(before, after, "degraded_answers_total", placement="home", component="log") == 1


def test_metrics_need_the_role_read_and_are_not_in_the_log_of_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "recsys.access")
    file = tmp_path / "keys.jsonl"
    key = create_key(file, "prometheus", "read")
    with service_harness(tmp_path, keys=file, request_log=True) as harness:
        assert harness.client.get("/metrics").status_code == 401
        assert harness.client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        harness.client.get("/healthz")
    paths = [orjson.loads(line.getMessage())["path"] for line in caplog.records if line.name == "recsys.access"]
    assert paths == ["/healthz"]


def test_refusals_of_the_web_server_and_its_connections_are_counted(tmp_path: Path) -> None:
    shelf, store = ToyShelf(None), MemoryStore(RULES)
    app = create_app(
        toy_settings(tmp_path),
        load=shelf.load,
        current=shelf.current,
        connect=lambda _: store,
        filler=ToyFiller(tmp_path),
    )
    before = parsed(metrics.exposition().decode())
    with serving(app) as url, httpx2.Client() as client:
        headers = {f"x-{number}": "1" for number in range(150)}
        response = client.get(f"{url}/healthz", headers=headers)
        assert response.status_code == 431
        assert len(response.headers["x-request-id"]) == 36
        deadline = time.monotonic() + 20
        with socket.create_connection(("127.0.0.1", httpx2.URL(url).port)):
            while not value(parsed(metrics.exposition().decode()), "open_connections"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
    after = parsed(metrics.exposition().decode())
    assert added(before, after, "refused_requests_total", status=431, code="head_too_large") == 1


WORKER = """
import os, sys
from serving.telemetry import metrics
metrics.count_request("GET", "/v1/users", 200, float(sys.argv[1]))
metrics.PROCESSES.set(1)
metrics.STORE_LAG.set(float(sys.argv[2]))
print(os.getpid(), flush=True)
sys.stdin.readline()
print(metrics.exposition().decode(), flush=True)
"""


def test_processes_that_share_a_folder_are_summed_and_the_dead_forgotten(tmp_path: Path) -> None:
    environment = os.environ | {metrics.FOLDER: str(tmp_path)}

    def worker(seconds: float, lag: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(seconds), str(lag)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid  # its values are written
        return process

    one, two = worker(0.5, 3.0), worker(0.25, 8.0)
    both = parsed(one.communicate("go\n")[0])
    assert value(both, "requests_total", method="GET", route="/v1/users", status=200) == 2
    assert value(both, "request_seconds_sum", method="GET", route="/v1/users") == 0.75
    assert value(both, "request_seconds_bucket", method="GET", route="/v1/users", le="0.25") == 1
    assert (value(both, "processes"), value(both, "store_lag_seconds")) == (2, 8)
    last = parsed(two.communicate("go\n")[0])
    assert value(last, "requests_total", method="GET", route="/v1/users", status=200) == 2
    assert value(last, "processes") == 1
    assert one.returncode == two.returncode == 0
