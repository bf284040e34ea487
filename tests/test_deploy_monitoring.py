"""Files of Prometheus and Grafana in deploy/: they name metrics and labels that exist, and each alert can fire."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.telemetry.metrics import REGISTRY

ROOT = Path(__file__).parent.parent
PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]

METRICS: dict[str, tuple[str, ...]] = {
    f"{metric.name}{suffix}": tuple(getattr(REGISTRY._names_to_collectors[metric.name], "_labelnames", ()))
    for metric in REGISTRY.collect()
    for suffix in {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
}
"""Name of a series -> its labels."""

OF_PROMETHEUS = {"instance", "job", "le"}
"""Labels that Prometheus adds."""


EXPRESSIONS: dict[str, str] = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
}
"""Where it stands -> PromQL, of every alert and panel."""


def unknown(expression: str) -> set[str]:
    """Metrics, and labels of selectors and groups, that an expression names and the service has not."""
    names = set(re.findall(r"\brecsys_\w+", expression))
    labels = set[str]()
    for selector in re.findall(r"\{([^{}\"]*(?:\"[^\"]*\"[^{}\"]*)*)\}", expression):
        labels |= set(re.findall(r"(\w+)\s*[=!]~?\s*\"", selector))
    for group in re.findall(r"\b(?:by|ignoring) \(([^)]*)\)", expression):
        labels |= set(re.findall(r"\w+", group))
    known = {label for name in names for label in METRICS.get(name, ())} | OF_PROMETHEUS
    return (names - set(METRICS)) | (labels - known)


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_what_is_named_exists(place: str) -> None:
    assert unknown(EXPRESSIONS[place]) == set()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rate(recsys_request_total[5m]) > 0", {"recsys_request_total"}),
        ("recsys_answers_total{degradation=\"a\", placement=~'x'}", {"degradation"}),
        ("sum by (stages, le) (rate(recsys_stage_seconds_bucket[5m]))", {"stages"}),
        ("recsys_stage_seconds", {"recsys_stage_seconds"}),
        ('recsys_request_seconds_count{route="/v1/users/{user_id}/recommendations", way="a"}', {"way"}),
    ],
)
def test_a_wrong_name_is_found(expression: str, expected: set[str]) -> None:
    assert unknown(expression) == expected


def test_every_metric_stands_in_the_dashboard() -> None:
    shown = {name for expression in EXPRESSIONS.values() for name in re.findall(r"\brecsys_\w+", expression)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in METRICS}
    assert families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} == set()


def test_the_documentation_names_every_metric_with_its_labels() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(recsys_\w+)` \|([^|]*)\|", text, re.MULTILINE)
    documented = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert documented == {re.sub(r"_(bucket|sum|count)$", "", name): labels for name, labels in METRICS.items()}


def test_panels_have_titles_descriptions_and_places_of_their_own() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) == 23


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_provisioning_and_the_scrape_configuration_fit_together() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    assert source["datasources"][0]["type"] == "prometheus"
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "recsys.yaml").read_text())
    assert provider["providers"][0]["type"] == "file"
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "recsys"
    assert job["authorization"]["type"] == "Bearer"
    assert config["rule_files"] == ["alerts.yaml"]


# --- promtool

R = "/v1/users/{user_id}/recommendations"
SERIES: dict[str, list[tuple[str, str]]] = {
    "RecsysDown": [('up{job="recsys"}', "1 0x20")],
    "RecsysNoBundle": [
        ("recsys_processes", "2x20"),
        ("recsys_ready_processes", "1x20"),
        ("recsys_log_unwritable", "0x20"),
    ],
    "RecsysLogUnwritable": [("recsys_log_unwritable", "1x20")],
    "RecsysErrors": [
        ('recsys_requests_total{status="200"}', "0+98x20"),
        ('recsys_requests_total{status="500"}', "0+2x20"),
    ],
    "RecsysStoreAway": [("recsys_store_away", "1x20")],
    "RecsysDegraded": [
        ('recsys_answers_total{degraded="true",placement="home"}', "0+6x20"),
        ('recsys_answers_total{degraded="false",placement="home"}', "0+94x20"),
    ],
    "RecsysSlow": [
        (f'recsys_request_seconds_bucket{{route="{R}",le="0.5"}}', "0+98x20"),
        (f'recsys_request_seconds_bucket{{route="{R}",le="1"}}', "0+100x20"),
        (f'recsys_request_seconds_bucket{{route="{R}",le="+Inf"}}', "0+100x20"),
    ],
    "RecsysShed": [
        ('recsys_requests_total{status="200"}', "0+98x20"),
        ('recsys_refused_requests_total{status="429",code="too_many_requests"}', "0+2x20"),
    ],
    "RecsysQueue": [('recsys_waiting_requests{queue="threads"}', "11x20")],
    "RecsysExposuresLost": [("recsys_unlogged_exposures_total", "0+1x20")],
    "RecsysDiskFull": [("recsys_log_disk_used_ratio", "0.95x20")],
    "RecsysStoreBehind": [("recsys_store_lag_seconds", "121x20")],
    "RecsysBundleOld": [("recsys_bundle_age_seconds", "172801x200")],
    "RecsysScoreDrift": [
        ('recsys_shown_probability_sum{placement="home"}', "0+0.2x1440 288.0+0.05x300"),
        ('recsys_shown_probability_count{placement="home"}', "0+10x1800"),
    ],
    "RecsysDescriptors": [("recsys_process_open_fds", "90x20"), ("recsys_process_max_fds", "100x20")],
    "RecsysProblem": [('recsys_problems{component="tables"}', "1x20")],
}
"""Alert -> series (value, then its growth a minute) that let it fire, and no other one."""

AT = {"RecsysBundleOld": "90m", "RecsysScoreDrift": "26h"}
"""Alert -> when it must fire; 18m for the others."""


def promtool(folder: Path, *arguments: str) -> None:
    if (program := shutil.which("promtool")) is None:
        pytest.skip("promtool is not on PATH: install Prometheus")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_its_files(tmp_path: Path) -> None:
    promtool(PROMETHEUS, "check", "rules", "alerts.yaml")
    promtool(PROMETHEUS, "check", "config", "--syntax-only", "prometheus.yml")


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    used = [text.replace("$__rate_interval", "1m").replace("$instance", ".*") for text in EXPRESSIONS.values()]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(used)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool(tmp_path, "check", "rules", "rules.yaml")


def test_each_alert_fires(tmp_path: Path) -> None:
    assert SERIES.keys() == {rule["alert"] for rule in RULES}
    tests: list[dict[str, Any]] = []
    for alert, series in SERIES.items():
        at = AT.get(alert, "18m")
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": at,
                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
                    }
                ],
            }
        )
    shutil.copy(PROMETHEUS / "alerts.yaml", tmp_path)
    content = {"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(content))
    promtool(tmp_path, "test", "rules", "test.yaml")
