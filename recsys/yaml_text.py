"""YAML as people write it: parsed with the place of what is wrong, and the lines of values."""

from collections.abc import Iterable
from typing import Any

import yaml

from features.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML without two surprises: a key that stands twice, and a key that is not read as text, such as yes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises ConstructorError, with the place, for such a key."""
        known: set[str] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(name, str):
                given = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                problem = f"the key {given} is read as {name!r}, not as text: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if name in known:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            known.add(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text. Raises ConfigError that names the place and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f" line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{place}{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date such as 2024-13-01
        raise ConfigError(f"{place}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise ConfigError(f"{place}: not a configuration: too many levels of nesting") from None


def line_of(text: str, keys: Iterable[str | int]) -> int:
    """The line, from 1, of the value at some keys of a YAML text; of the last key that is there."""
    node = yaml.compose(text, _Loader)
    for key in keys:
        if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
        elif isinstance(node, yaml.MappingNode):
            found = [value for name, value in node.value if name.value == key]
            if not found:
                break
            node = found[0]
        else:
            break
    return 1 if node is None else int(node.start_mark.line) + 1
