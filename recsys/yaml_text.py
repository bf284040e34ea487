"""YAML as people write it: parsed with the place of what is wrong, and the lines of values."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from features.errors import ConfigError, describe_invalid, describe_read_error, detail
from features.files import not_a_file

T = TypeVar("T", bound=BaseModel)

WORDS = {
    "mapping values are not allowed": "a colon where no key can stand: put a text with a colon in quotes, or correct "
    "the indentation",
    "found character '\\t'": "a tab: indent with spaces",
    "that cannot start any token": "no text can begin with this character: put the text in quotes",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
    "expected ':'": "a key without a colon, or a wrong indentation",
    "expected <block end>": "the indentation does not fit the lines before: align it",
    "the node content": "a value is missing, or a bracket is not closed",
    "unexpected end of stream": "a quotation mark is opened and not closed",
    "incompatible": "it is of a later version of YAML: remove the line %YAML",
    "document": "a second document begins: keep one, and remove the lines --- and ...",
    "undefined alias": "an alias (*name) without its anchor (&name): put a text that begins with * in quotes",
    "second occurrence": "an anchor (&name) stands twice: name them differently",
    "could not determine a constructor": "a tag (!name) that is not known: put a text that begins with ! in quotes",
    "unknown escape character": "a backslash in a text with double quotes: use single quotes, or write it twice",
    "escape sequence": "a backslash in a text with double quotes: use single quotes, or write it twice",
    "not allowed": "a character that a text cannot have: save the file as UTF-8 text",
    "alphabetic or numeric character": "a * or & without a name: put a text that begins with it in quotes",
}
"""Part of what the parser says of a problem -> our words, with the remedy. The first that fits counts."""

NO_YAML = "it cannot be read there: correct it, or put the text in quotes"

NO_VALUE = "a date, a number or another value that does not exist: correct it, or put it in quotes"


class _OwnError(yaml.constructor.ConstructorError):
    """A key or a value that is not read; its problem is in our words."""


class _Loader(yaml.SafeLoader):
    """YAML without two surprises: a key that stands twice, and a key that is not read as text, such as yes."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. Raises ConstructorError, with the place, for one that does not exist, e.g. a date."""
        try:
            value = super().construct_object(node, deep)
            # JSON writes a character beyond U+FFFF as two escapes, which YAML reads as two halves
            return value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value
        except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
            raise _OwnError(None, None, f"{NO_VALUE}{detail(error)}", node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises ConstructorError, with the place, for such a key."""
        if not isinstance(node, yaml.MappingNode):
            raise _OwnError(None, None, "named values are needed there: remove the tag (!name)", node.start_mark)
        known: set[str] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(name, str):
                given = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                problem = f"the key {given} is read as {name!r}, not as text: put it in quotes"
                raise _OwnError(None, None, problem, key.start_mark)
            if name in known:
                raise _OwnError(None, None, f"the key {name!r} stands twice: keep one", key.start_mark)
            known.add(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text. Raises ConfigError that names the place and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f" line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{place}{line}: not YAML: {_reason(error)}") from error
    except yaml.reader.ReaderError as error:
        at = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{place} line {at}: not YAML: it has the character U+{error.character:04X}, which a text cannot have: "
            "save it as UTF-8 text"
        ) from error
    except RecursionError:
        raise ConfigError(f"{place}: not a configuration: too many levels of nesting") from None


class _Dumper(yaml.SafeDumper):
    """YAML that is read as it was written, also texts with line breaks of other kinds, such as U+0085."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """A text, with escapes where a character is no letter, sign or blank."""
        node: yaml.ScalarNode = self.represent_scalar(
            "tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"'
        )
        return node


_Dumper.add_representer(str, _Dumper.represent_str)


def yaml_text(value: Any) -> str:
    """YAML text of JSON's values, which `parse_yaml` reads as the same values."""
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=120))


def _reason(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, with the remedy."""
    said = str(error.problem or error.context)
    if isinstance(error, _OwnError):
        return said
    return next((words for sign, words in WORDS.items() if sign in said), f"{NO_YAML}{detail(ValueError(said))}")


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


class YamlFile:
    """A file of a list of named values, such as rules: its text, checked against a model, and where it is wrong."""

    def __init__(self, path: Path, root: str) -> None:
        """root: the key of the list. Raises ConfigError when the file cannot be read."""
        if wrong := not_a_file(path):
            raise ConfigError(f"{path}: {wrong}")
        try:
            self.text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {describe_read_error(error)}") from error
        self.path, self.root = path, root

    def checked(self, model: type[T]) -> T:
        """The values of the file; an empty file is an empty list. Raises ConfigError with each line and reason."""
        raw = parse_yaml(self.text, str(self.path))
        try:
            return model.model_validate({self.root: []} if raw is None else raw)
        except ValidationError as error:
            faults = describe_invalid(error.errors())
            raise ConfigError("; ".join(self._located(fault.place, fault.reason) for fault in faults)) from None

    def fault(self, place: tuple[str | int, ...], reason: str) -> ConfigError:
        """The error to raise for what is wrong at a place, as keys from the top."""
        return ConfigError(self._located(place, reason))

    def _located(self, place: tuple[str | int, ...], reason: str) -> str:
        keys = [str(key) for at, key in enumerate(place) if not isinstance(key, int) and (at, key) != (0, self.root)]
        about = f" {'.'.join(keys)}:" if keys else ""
        return f"{self.path} line {line_of(self.text, place)}:{about} {reason}"
