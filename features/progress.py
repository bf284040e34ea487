"""The interface by which long operations report their progress."""

from collections.abc import Callable

Step = Callable[[int], None]
"""Called with the amount of work that was completed since the last call."""

StartProgress = Callable[[str, int], Step]
"""Called with a description and the total amount of work; returns the function to call at each step."""


def silent(what: str, total: int) -> Step:
    """A `StartProgress` that reports nothing."""
    return lambda done: None
