"""The mutants of a source file: for each place of its code, the small faults that may be made there.

What is no behaviour is left alone: annotations, decorators, docstrings, log messages, `__repr__`, and texts for
people, which are strings with a space and f-strings.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

PACKAGES = ("features", "recsys", "serving", "experiments")

COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
"""Kind of node -> its text, and the texts put in its place."""

OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
"""Kind of node -> its text, and the text put in its place."""

PAIRS = ("min max", "any all", "minimum maximum", "zeros ones", "floor ceil", "startswith endswith", "lower upper")
NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
"""Function -> function called in its place."""

KEPT_KEYWORDS = {"description", "help", "strict", "encoding"}
"""Keywords of calls that are not removed: texts for people, and checks of what cannot happen."""

MESSAGES = {"logger", "logging", "warnings"}
"""Calls of these modules and objects are left alone."""

DELETED = (ast.Expr, ast.AugAssign, ast.Assign, ast.Raise, ast.Continue, ast.Break, ast.Delete)


@dataclass(frozen=True)
class Mutant:
    """A file with the bytes start:end replaced by `new`.

    first, last: lines of its statement, 0 outside of functions: such lines run when the file is imported, in any
    test. code: its line, stripped.
    """

    file: str
    line: int
    first: int
    last: int
    code: str
    start: int
    end: int
    new: str
    mutation: str

    def apply(self, source: bytes) -> bytes:
        """The mutated file."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {name: value for name, value in asdict(self).items() if name in ("file", "line", "code", "mutation")}


def mutants(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file. A few do not compile: a fault in an f-string, for example."""
    return list(_File(file, source).of(ast.parse(source), None, (0, 0)))


class _File:
    def __init__(self, file: str, source: bytes) -> None:
        self.file = file
        self.source = source

    @cached_property
    def starts(self) -> list[int]:
        """Offset of each line."""
        out = [0, 0]
        for line in self.source.splitlines(keepends=True):
            out.append(out[-1] + len(line))
        return out

    def span(self, node: Any) -> tuple[int, int]:
        return self.starts[node.lineno] + node.col_offset, self.starts[node.end_lineno] + node.end_col_offset

    def of(self, node: ast.AST, parent: ast.AST | None, lines: tuple[int, int]) -> Iterator[Mutant]:
        """The mutants of a node and of the nodes below it. lines: `Mutant.first` and `last`."""
        if _is_no_behaviour(node, parent):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (isinstance(node, ast.stmt) and lines[0]):
            lines = _header(node)
        for start, end, new, mutation in self.faults(node, parent):
            line = self.source.count(b"\n", 0, start) + 1
            code = self.source[self.starts[line] : self.starts[line + 1]].decode().strip()
            yield Mutant(self.file, line, *lines, code, start, end, new, mutation)
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or name == "decorator_list":
                    continue
                if name in ("annotation", "returns"):  # of these only the limits of pydantic's fields are behaviour
                    calls = [inner for inner in ast.walk(child) if isinstance(inner, ast.Call)]
                    for call in calls:
                        yield from self.of(call, child, lines)
                else:
                    yield from self.of(child, node, lines)

    def faults(self, node: ast.AST, parent: ast.AST | None) -> Iterator[tuple[int, int, str, str]]:
        """(start, end, new text, what it is) of each fault at one node."""
        match node:
            case ast.Compare():
                yield from self.comparisons(node)
            case ast.BoolOp():
                yield from self.conditions(node)
            case ast.BinOp(left, op, right) if type(op) in OPERATORS and not any(map(_is_sequence, (left, right))):
                yield from self.token(left, right, *OPERATORS[type(op)])
            case ast.AugAssign(target, op, value) if type(op) in OPERATORS:
                yield from self.token(target, value, *OPERATORS[type(op)])
            case ast.UnaryOp(op) if not isinstance(op, ast.UAdd):
                start, end = self.span(node)
                skip = 3 if isinstance(op, ast.Not) else 1
                rest = self.source[start + skip : end].decode()
                yield start, end, rest.lstrip(), f"{self.source[start : start + skip].decode()} dropped"
            case ast.Constant():
                yield from self.constants(node)
            case ast.Slice():
                yield from self.slices(node)
            case ast.Call():
                yield from self.calls(node)
            case ast.IfExp(_, body, orelse):
                yield from self.replaced(node, {"if always": body, "if never": orelse})
            case ast.If(test):
                start, end = self.span(test)
                yield from ((start, end, value, f"if {value}") for value in ("True", "False"))
            case ast.Return(value) if value is not None and ast.unparse(value) != "None":
                yield *self.span(value), "None", "return None"
            case ast.List(elts) | ast.Set(elts) | ast.Tuple(elts) if len(elts) > 1 and _may_shrink(node, parent):
                yield from self.shorter(node)
            case ast.comprehension(_, _, [_, *_]):
                for condition in node.ifs:
                    yield *self.span(condition), "True", f"no condition {ast.unparse(condition)}"
        if isinstance(node, DELETED) and _is_effect(node):
            yield *self.span(node), "pass", "statement deleted"

    def token(self, left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[tuple[int, int, str, str]]:
        """An operator between two operands."""
        begin, end = self.span(left)[1], self.span(right)[0]
        at = self.source.find(old.encode(), begin, end)
        if at >= 0:
            yield at, at + len(old), f" {new} " if new[0].isalpha() else new, f"{old} -> {new}"

    def comparisons(self, node: ast.Compare) -> Iterator[tuple[int, int, str, str]]:
        operands = [node.left, *node.comparators]
        for i, op in enumerate(node.ops):
            old, choices = COMPARISONS[type(op)]
            for new in choices:
                yield from self.token(operands[i], operands[i + 1], old, new)

    def conditions(self, node: ast.BoolOp) -> Iterator[tuple[int, int, str, str]]:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield from self.token(node.values[0], node.values[1], old, new)
        for i, dropped in enumerate(node.values):
            rest = node.values[:i] + node.values[i + 1 :]
            value = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
            yield from self.replaced(node, {f"{ast.unparse(dropped)} dropped": value})

    def constants(self, node: ast.Constant) -> Iterator[tuple[int, int, str, str]]:
        value, choices = node.value, list[Any]()
        if isinstance(value, bool):
            choices = [not value]
        elif isinstance(value, int):
            choices = [value + 1, value - 1]
        elif isinstance(value, float):
            choices = [value * 2 if value else 1.0, value / 2 if value else -1.0]
        elif isinstance(value, bytes):
            choices = [value + b"X"]
        elif isinstance(value, str) and " " not in value:
            choices = [value + "X"]
        for choice in choices:
            new = f"({choice!r})" if isinstance(choice, int | float) and choice < 0 else repr(choice)
            yield *self.span(node), new, f"{value!r} -> {choice!r}"

    def slices(self, node: ast.Slice) -> Iterator[tuple[int, int, str, str]]:
        for bound, sign in (("lower", "+"), ("upper", "-")):
            value = getattr(node, bound)
            if value is None:
                continue
            without = copy.copy(node)
            setattr(without, bound, None)
            yield from self.replaced(node, {f"{bound} bound dropped": without}, parentheses=False)
            if not isinstance(value, ast.Constant | ast.UnaryOp):
                start, end = self.span(value)
                text = self.source[start:end].decode()
                yield start, end, f"({text}) {sign} 1", f"{bound} bound {sign} 1"

    def calls(self, node: ast.Call) -> Iterator[tuple[int, int, str, str]]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in NAMES:
            end = self.span(node.func)[1]
            yield end - len(name), end, NAMES[name], f"{name} -> {NAMES[name]}"
        if len(node.args) > 1 and not isinstance(node.args[-1], ast.Starred):
            rest = ast.Call(node.func, node.args[:-1], node.keywords)
            yield from self.replaced(node, {"last argument dropped": rest}, parentheses=False)
        for i, keyword in enumerate(node.keywords):
            if keyword.arg is not None and keyword.arg not in KEPT_KEYWORDS:
                rest = ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])
                yield from self.replaced(node, {f"{keyword.arg}= removed": rest}, parentheses=False)

    def shorter(self, node: Any) -> Iterator[tuple[int, int, str, str]]:
        for i, dropped in enumerate(node.elts):
            if not isinstance(dropped, ast.Starred):
                without = copy.copy(node)
                without.elts = node.elts[:i] + node.elts[i + 1 :]
                yield from self.replaced(node, {f"{ast.unparse(dropped)} dropped": without}, parentheses=False)

    def replaced(
        self, node: ast.AST, choices: dict[str, ast.AST], *, parentheses: bool = True
    ) -> Iterator[tuple[int, int, str, str]]:
        for mutation, new in choices.items():
            text = ast.unparse(ast.fix_missing_locations(new))
            yield *self.span(node), f"({text})" if parentheses else text, mutation


def _is_no_behaviour(node: ast.AST, parent: ast.AST | None) -> bool:
    match node:
        case ast.FunctionDef(name) if name in ("__repr__", "__str__"):
            return True
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test) if "TYPE_CHECKING" in ast.unparse(test) or "__name__" in ast.unparse(test):
            return True
        case ast.Expr(ast.Constant()):
            return True
        case ast.Call(func) if ast.unparse(func).split(".")[0] in MESSAGES:
            return True
        case ast.Call(ast.Name("TypeVar" | "cast" | "NewType")):
            return True
        case ast.Subscript(ast.Name("Literal" | "Callable")):
            return True
        case ast.keyword(arg) if arg in KEPT_KEYWORDS:
            return True
        case ast.BinOp(op=ast.BitOr()) if _is_type(node):
            return True
        case _:
            return isinstance(parent, ast.Assign) and ast.unparse(parent.targets[0]) == "__all__"


def _is_type(node: ast.AST) -> bool:
    """Whether a node is a union of types, as in isinstance(x, int | float)."""
    match node:
        case ast.BinOp(left, ast.BitOr(), right):
            return _is_type(left) and _is_type(right)
        case ast.Name(name) | ast.Attribute(attr=name):
            return name[:1].isupper() or name in ("str", "int", "float", "bool", "bytes", "list", "dict")
        case ast.Constant(None) | ast.Subscript():
            return True
    return False


def _is_sequence(node: ast.AST) -> bool:
    """Whether an operand is written as a text or list: other operators than + fail at once."""
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _may_shrink(node: Any, parent: ast.AST | None) -> bool:
    """Whether a literal may lose an element: it is no target, index, or one of several results."""
    if not isinstance(node.ctx if hasattr(node, "ctx") else ast.Load(), ast.Load):
        return False
    if not isinstance(node, ast.Tuple):
        return True
    if isinstance(parent, ast.Assign):
        return parent.value is node and isinstance(parent.targets[0], ast.Name)
    return isinstance(parent, ast.Compare | ast.Call | ast.ExceptHandler | ast.For | ast.comprehension)


def _is_effect(node: ast.AST) -> bool:
    """Whether a statement may be deleted without the name that it sets being missed."""
    if isinstance(node, ast.Expr):
        inner = node.value.value if isinstance(node.value, ast.Await) else node.value
        return isinstance(inner, ast.Call) and not _is_no_behaviour(inner, node)
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    return True


def _header(node: Any) -> tuple[int, int]:
    """First and last line of a statement; of `if`, `for`, … the lines before the body; of a function all lines."""
    body = getattr(node, "body", None)
    if not body or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.lineno, node.end_lineno
    return node.lineno, max(node.lineno, body[0].lineno - 1)
