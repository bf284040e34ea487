"""Every shipped configuration loads, and its header documents the source, the date and the results."""

import re
from pathlib import Path

import pytest

from experiments.config import load_config

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
ENVIRON = {"RECSYS_DATA": "/data"}

shipped = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


def test_the_folder_holds_configurations_only():
    assert len(CONFIGS) >= 2
    assert sorted(FOLDER.iterdir()) == CONFIGS


@shipped
def test_a_shipped_configuration_loads(path):
    config = load_config(path, ENVIRON)
    assert config.name == path.stem
    assert config.towers.dimension % config.towers.heads == 0


@shipped
def test_the_header_has_source_date_results_and_command(path):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header is not None
    text = header[0].replace("\n#", "")
    assert re.search(r"Checked \d{4}-\d{2}-\d{2}", text)
    assert re.search(r"Command: .*\b(recsys|make) ", text)
    if path.stem not in (
        "folder",
        "amazon-2023",
        "microlens",
    ):  # the user's own data, and downloads that were not run
        assert re.search(r"HR@10 / NDCG@10 .*: \.\d{4} / \.\d{4}", text)


@shipped
def test_a_shipped_configuration_has_no_absolute_paths(path):
    config = load_config(path, {"RECSYS_DATA": "data"})
    for value in (config.data.path, config.data.origin, config.data.log, config.bundles, config.cache):
        assert value is None or not value.startswith(("/", "~"))
