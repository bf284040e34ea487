"""Problem documents: the table of their codes is what the code raises, and what the documentation lists."""

import ast
import re
from pathlib import Path

import serving
from serving.errors import PROBLEMS

ROOT = Path(serving.__file__).parent.parent
SOURCES = [ast.parse(file.read_text()) for file in (ROOT / "serving").rglob("*.py")]


def texts() -> set[str]:
    """All texts in the code of the service, besides the keys of the table."""
    keys = {id(key) for tree in SOURCES for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
    nodes = (node for tree in SOURCES for node in ast.walk(tree))
    return {
        str(node.value)
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in keys
    }


def test_every_code_is_used_and_has_a_title() -> None:
    assert set(PROBLEMS) - texts() == set()
    for code, (status, title) in PROBLEMS.items():
        assert 400 <= status < 600, code
        assert title[0].isupper(), code
        assert not title.endswith("."), code


def test_every_code_is_documented_with_its_status() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    table = dict(re.findall(r"^\| (\d{3}) \| (.*) \|$", page.partition("## Errors")[2], re.MULTILINE))
    for code, (status, _) in PROBLEMS.items():
        assert code == "client_gone" or f"`{code}`" in table[str(status)], code
