"""How the settings of a baseline were chosen, for tables and trackers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recsys.baselines import Setting


@dataclass(frozen=True)
class Choice:
    """How the settings of a baseline were chosen in one window, for one placement.

    fixed: settings of the configuration; chosen: those that had the best NDCG@10 on validation, among `tried`
    combinations; best, worst: NDCG@10 of the best and of the worst combination there. Where the configuration fixes
    all settings, tried is 0, and best and worst are NaN.
    """

    fixed: Mapping[str, Setting]
    chosen: Mapping[str, Setting]
    tried: int = 0
    best: float = float("nan")
    worst: float = float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def describe_choices(choices: Sequence[Choice]) -> str:
    """One clause for people on the choices of one baseline, one for each window; "" for none."""
    if not choices:
        return ""
    fixed = ", ".join(f"{name} {_show(value)}" for name, value in choices[0].fixed.items())
    if not choices[0].tried:
        return f"fixed in the configuration: {fixed}"
    best, worst = (float(np.mean([getattr(choice, name) for choice in choices])) for name in ("best", "worst"))
    settings = ", ".join(
        f"{name} {_show_windows([choice.chosen[name] for choice in choices])}" for name in choices[0].chosen
    )
    where = "on validation" if len(choices) == 1 else f"in each of {len(choices)} windows on its own validation"
    means = "" if len(choices) == 1 else "; means over the windows"
    text = f"chosen {where} of {choices[0].tried}: {settings} (NDCG@10 best {best:.4f}, worst {worst:.4f}{means})"
    return f"{text}; fixed in the configuration: {fixed}" if fixed else text


def _show_windows(values: Sequence[Setting]) -> str:
    """The value, or each value with the number of its windows, the most frequent first."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return _show(values[0])
    return " / ".join(f"{_show(value)} ({n})" for value, n in counts)


def _show(value: Setting) -> str:
    return "all" if value is None else f"{value:g}"
