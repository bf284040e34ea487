"""The mutants of small sources by hand. `make mutants` itself is not a test."""

import ast

import pytest
from mutations import mutants


def mutated(source: str) -> set[str]:
    """The mutated sources, as ast prints them: layout and parentheses do not count."""
    data = source.encode()
    return {ast.unparse(ast.parse(mutant.apply(data))) for mutant in mutants("f.py", data)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a <= b", {"x = a < b", "x = a > b"}),
        ("x = (a) is not b", {"x = a is b"}),
        ("x = a not in b", {"x = a in b"}),
        ("x = a + b * c", {"x = a - b * c", "x = a + b / c"}),
        ("x += y", {"x -= y", "pass"}),
        ("x = a and b", {"x = a or b", "x = a", "x = b"}),
        ("x = not a", {"x = a"}),
        ("x = ~a", {"x = a"}),
        ("x = 3", {"x = 4", "x = 2"}),
        ("x = 0", {"x = 1", "x = -1"}),
        ("x = 0.5", {"x = 1.0", "x = 0.25"}),
        ("x = True", {"x = False"}),
        ("x = 'é'", {"x = 'éX'"}),
        ("é = a < b", {"é = a <= b", "é = a > b"}),  # columns of ast are bytes
        ("x = a[b:]", {"x = a[:]", "x = a[b + 1:]"}),
        ("x = b if a else c", {"x = b", "x = c"}),
        ("x = (a, b)", {"x = (a,)", "x = (b,)"}),
        ("f(a, b, c=d)", {"f(a, c=d)", "f(a, b)", "pass"}),
        ("x = min(a)", {"x = max(a)"}),
        ("x = [a for a in b if c]", {"x = [a for a in b if True]"}),
        ("x.y = a", {"pass"}),
        ("if a:\n    b = c", {"if True:\n    b = c", "if False:\n    b = c"}),
        ("def f(a=b):\n    return a", {"def f(a=b):\n    return None"}),
        ("async def f():\n    await g()", {"async def f():\n    pass"}),
        ("raise E", {"pass"}),
        # what is no behaviour
        ('"""A text."""', set()),
        ("x: int | None = a", set()),
        ("x = 'a text for people'", set()),
        ("x = f'{a + 1}'", set()),
        ("logger.info(a + 1)", set()),
        ("@d(1)\ndef f():\n    pass", set()),
        ("def __repr__(self):\n    return a + 1", set()),
        ("if TYPE_CHECKING:\n    x = 1", set()),
        ("x = isinstance(a, int | str)", {"x = isinstance(a)"}),
    ],
)
def test_mutants_by_hand(source: str, expected: set[str]) -> None:
    assert mutated(source) == {ast.unparse(ast.parse(text)) for text in expected}


def test_a_mutant_names_its_line_and_the_lines_of_its_statement() -> None:
    source = b"def f():\n    x = g(\n        a,\n        1,\n    )\n"
    found = next(m for m in mutants("f.py", source) if m.mutation == "1 -> 2")
    assert (found.line, found.first, found.last, found.code) == (4, 2, 5, "1,")
    assert found.apply(source) == source.replace(b"1,", b"2,")
    assert [(m.first, m.last) for m in mutants("f.py", b"class A:\n    x = True")] == [(0, 0)]  # run at the import
