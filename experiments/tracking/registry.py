"""Bundles in MLflow's model registry: a version for each, and two aliases.

`champion` is what `bundles/current` points to, `challenger` the bundle that was trained last and is not published.
A version has the manifest of its bundle, not its files. It says where they are by two tags: `fingerprint`, and
`bundles`, the folder as a path relative to the working folder, which stays the same when a project is moved.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from recsys.bundle.formats import MANIFEST, read_manifest

CHAMPION, CHALLENGER = "champion", "challenger"

FOLDER = "bundle"
"""Folder of the artefacts of a run with the manifest of its bundle."""

FACTS = ("data_hash", "split_hash", "code_version", "seed")
"""Keys of a manifest that become tags of the version."""

MODELS = 1000
"""How many registered models are looked at."""


def register(client: Any, run: str, name: str, bundle: Path, *, current: bool) -> None:
    """Store the manifest of a bundle in a run, and give it a version of the registered model `name`, and an alias.

    client: an MlflowClient; current: whether the bundle is published. A bundle that has a version keeps it.
    """
    client.log_artifact(run, str(bundle / MANIFEST), FOLDER)
    tags = {"bundle": bundle.name, "bundles": _folder(bundle)}
    for key, value in tags.items():
        client.set_tag(run, key, value)
    name = name.translate(str.maketrans("/:", "__"))
    version = _version(client, bundle)
    if version is None:
        if not any(model.name == name for model in client.search_registered_models(max_results=MODELS)):
            client.create_registered_model(name)
        manifest = read_manifest(bundle)
        facts = {key: str(manifest[key]) for key in FACTS if manifest.get(key) is not None}
        version = client.create_model_version(
            name,
            f"runs:/{run}/{FOLDER}",
            run,
            tags=facts | {"fingerprint": bundle.name, "bundles": tags["bundles"]},
        )
    if current:
        move_champion(client, bundle)
    elif CHAMPION not in version.aliases:
        client.set_registered_model_alias(version.name, CHALLENGER, version.version)


def move_champion(client: Any, bundle: Path, facts: Mapping[str, str] | None = None) -> None:
    """Give the alias `champion` to the version of a bundle, and take it from all others of the same folder.

    facts: further tags of the version. A bundle that was never tracked has no version; then no bundle of the folder
    has the alias.
    """
    for model in client.search_registered_models(max_results=MODELS):
        if number := model.aliases.get(CHAMPION):
            other = client.get_model_version(model.name, number)
            if other.tags.get("bundles") == _folder(bundle):
                client.delete_registered_model_alias(model.name, CHAMPION)
    version = _version(client, bundle)
    if version is None:
        return
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    if CHALLENGER in version.aliases:
        client.delete_registered_model_alias(version.name, CHALLENGER)
    for key, value in (facts or {}).items():
        client.set_model_version_tag(version.name, version.version, key, value[:5000])


def _version(client: Any, bundle: Path) -> Any:
    """The version of a bundle; None where it has none."""
    found = client.search_model_versions(f"tags.fingerprint = '{bundle.name}'")
    same = [version for version in found if version.tags.get("bundles") == _folder(bundle)]
    return client.get_model_version(same[0].name, same[0].version) if same else None


def _folder(bundle: Path) -> str:
    """The folder of the bundles, relative to the working folder where that has it."""
    folder = bundle.parent.resolve()
    with suppress(ValueError):
        return str(folder.relative_to(Path.cwd()))
    return str(folder)
