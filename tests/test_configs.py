"""Every shipped configuration loads, names what it fits, and says where it comes from."""

import re
from pathlib import Path

import pytest

from experiments.config import load_config

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
ENVIRON = {"RECSYS_DATA": "/data"}

shipped = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


def test_there_are_some_and_nothing_else():
    assert len(CONFIGS) >= 2
    assert sorted(FOLDER.iterdir()) == CONFIGS


@shipped
def test_it_loads(path):
    config = load_config(path, ENVIRON)
    assert config.name == path.stem
    assert config.towers.dimension % config.towers.heads == 0


@shipped
def test_it_begins_with_its_source_the_date_it_was_checked_what_it_reaches_and_the_command(path):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header is not None
    told = header[0].replace("\n#", "")
    assert re.search(r"Checked \d{4}-\d{2}-\d{2}", told)
    assert re.search(r"Command: .*\b(recsys|make) ", told)
    if path.stem != "folder":  # whose data are yours
        assert re.search(r"HR@10 / NDCG@10 .*: \.\d{4} / \.\d{4}", told)


@shipped
def test_it_holds_no_absolute_path(path):
    config = load_config(path, {"RECSYS_DATA": "data"})
    for value in (config.data.path, config.data.origin, config.data.log, config.bundles, config.cache):
        assert value is None or not value.startswith(("/", "~"))
