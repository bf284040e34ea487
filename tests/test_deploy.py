"""The image, the compose file and the manifests: what can be checked without a container runtime.

Their commands, options and settings exist; the manifests are valid for the API servers of Kubernetes.
"""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from typer.main import get_command

from recsys.cli.main import app
from serving.settings import PREFIX, ServeSettings

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
MANIFESTS = [
    pytest.param(manifest, id=f"{path.name} {manifest['kind']} {manifest['metadata']['name']}")
    for path in (ROOT / "deploy" / "kubernetes" / "service.yaml", ROOT / "examples" / "schedules" / "kubernetes.yaml")
    for manifest in yaml.safe_load_all(path.read_text())
]


def check_command(words: list[str]) -> None:
    """Raises for a command or an option that does not exist."""
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("recsys", list(words))


def check_settings(names: list[str]) -> None:
    for name in names:
        if name.startswith(PREFIX):
            assert name.removeprefix(PREFIX).lower() in ServeSettings.model_fields, name


def test_the_image_has_what_it_copies_and_runs_as_nobody_special():
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M) for word in line.split()]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{path}" for path in copied} == {line for line in ignored if line.startswith("!")}
    assert re.search(r"^USER [1-9]\d*$", DOCKERFILE, re.M)
    (command,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.M)
    check_command(yaml.safe_load(command))
    extras = re.findall(r"\.\[\$FAISS,([a-z,]+)\]", DOCKERFILE)[0].split(",")
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in declared for extra in (*extras, "cpu", "gpu"))


def test_services_of_compose():
    services = COMPOSE["services"]
    for name, service in services.items():
        if "entrypoint" not in service and service["image"] == "recsys":
            check_command(service["command"])
        check_settings(list(service.get("environment", {})))
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert {*service.get("depends_on", {})} <= {*services}
        sources = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        mounted = {source for source in sources if source.startswith("./")}
        assert sources - mounted <= {*COMPOSE["volumes"]}
        assert all((ROOT / "deploy" / path).exists() for path in mounted)
        assert {*service.get("secrets", [])} <= {*COMPOSE["secrets"]}
    assert services["store"]["command"][3:5] == ["--maxmemory-policy", "noeviction"]
    hosts = services["api-1"]["environment"][f"{PREFIX}HOSTS"].split(",")
    assert hosts == [name for name in services if name.startswith("api-")]


@pytest.mark.parametrize("manifest", MANIFESTS)
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_manifests_are_valid(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_deployment():
    manifests: list[Any] = [param.values[0] for param in MANIFESTS[:5]]
    deployment, service, scaler, budget, claim = manifests
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    check_command(container["args"])
    check_settings([entry["name"] for entry in container["env"]])
    assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == labels
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    paths = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"/healthz", "/readyz"}
