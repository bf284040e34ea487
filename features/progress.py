"""How long work tells how far it has come."""

from collections.abc import Callable

Step = Callable[[int], None]
"""Called with how much a step has done."""

StartProgress = Callable[[str, int], Step]
"""Called with what begins and how much it is in all; gives the function to call at each step."""


def silent(what: str, total: int) -> Step:
    """Tells nobody."""
    return lambda done: None
