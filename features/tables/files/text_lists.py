"""Lists of labels that are written as text: JSON arrays, and lists as Python, pandas and NumPy print them."""

import ast
import json
import re
import warnings

import orjson
import polars as pl

ENCLOSED = r"""(?s)^(?:\[.*\]|\{.*\}|\(\s*['"].*\)|(?:np\.)?array\(.*\)|(?:frozen)?set\(.*\))$"""
"""Text that looks like a list, a set or an object: it is read as a list, or reported, never split."""

MAX_LENGTH = 1 << 16
"""Number of characters of a list of Python from which on it is not read."""

LISTS = pl.List(pl.String)

_JSON_STRING = r'''"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u(?:[0-9a-cA-CefEF][0-9a-fA-F]|[dD][0-7])[0-9a-fA-F]{2})*"'''
_BLANK = r"[ \t\r\n]*"
_SIMPLE = rf"^\[{_BLANK}(?:{_JSON_STRING}{_BLANK}(?:,{_BLANK}{_JSON_STRING}{_BLANK})*)?\]$"
"""A JSON array of text alone, without surrogate pairs."""

_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ITEM = rf"(?:{_STRING}|None|True|False|[-+]?[0-9][0-9.eE+-]*)"
_PYTHON = re.compile(rf"\[\s*(?:{_ITEM}(?:\s*,\s*{_ITEM})*\s*,?)?\s*\]", re.DOTALL)
_NUMPY = re.compile(rf"\[\s*{_STRING}(?:\s+{_STRING})*\s*\]", re.DOTALL)
_ITEMS = re.compile(_ITEM, re.DOTALL)


def text_lists(lines: pl.Series) -> pl.Series:
    """The lists that the texts of a column hold, as a column of lists of text; null where a text holds none.

    JSON arrays of text alone are parsed by polars; of the other texts each distinct one once, by `text_list`.
    """
    simple = lines.str.contains(_SIMPLE).fill_null(False)
    arrays = lines.set(~simple, None).str.json_decode(LISTS)
    distinct = lines.filter(lines.str.starts_with("[").fill_null(False) & ~simple).unique()
    if len(distinct) == 0:
        return arrays
    other = pl.DataFrame({"text": distinct, "list": pl.Series([text_list(text) for text in distinct], dtype=LISTS)})
    others = lines.to_frame("text").join(other, on="text", how="left", maintain_order="left").get_column("list")
    return arrays.zip_with(simple, others)


def text_list(text: str) -> list[str] | None:
    """The labels of one list without its null elements. None: the text is no list, or has lists or objects in it."""
    try:
        values = orjson.loads(text)
        if any(isinstance(value, float) for value in values):
            values = json.loads(text, parse_int=str, parse_float=str)  # the digits as written
    except (ValueError, RecursionError):
        return _python_list(text)
    if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
        return None
    return [_label(value) for value in values if value is not None]


def _label(value: str | bool | int) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _python_list(text: str) -> list[str] | None:
    """The elements of a list as Python prints it, or of an array as NumPy prints it."""
    if len(text) > MAX_LENGTH or not (_PYTHON.fullmatch(text) or _NUMPY.fullmatch(text)):
        return None
    items = [item for item in _ITEMS.findall(text) if item != "None"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" stands for itself
            out = [ast.literal_eval(item) if item[0] in "'\"" else item for item in items]
        "".join(out).encode()
    except (ValueError, SyntaxError):  # a line feed in a string, or half a surrogate pair
        return None
    return out
