"""`recsys bench loop`: does the loop of exploration, estimate, promotion and test find the truth?"""

import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.bench.loop.turn import Estimate, Turn, run_turn
from experiments.bench.loop.world import Size, build
from experiments.bench.runner import Bar, Result
from experiments.simulation.people import SIMULATED
from features.errors import ConfigError
from features.instants import DAY
from features.progress import Step

SHARE = 0.85
"""Share of the turns whose interval at explored slots holds the truth: 17 of 20."""

SHORT = Size(items=120, people=300, past=8, explorers=120, rounds=2, testers=120)
REPORT = ("loop.json", "loop.md")


class _Quiet:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def steps(self, description: str, total: int) -> Step:
        """Nothing."""
        return lambda done: None


def run(*, short: bool = False, seed: int = 0, seeds: int = 20, out: Path = Path("data/loop")) -> Result:
    """The loop over HTTP with simulated people, `seeds` times from `seed` on: is the true gain in the interval?

    Both bundles are trained once, by `seed`; each turn has other people, another service and another log. out: folder
    of the reports, loop.json and loop.md. short: one turn of few people, B is promoted whatever was found, no bars.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least one turn is needed")
    size, turns = SHORT if short else Size(), list[Turn]()
    with tempfile.TemporaryDirectory(prefix="recsys-loop-") as name:
        folder = Path(name)
        started = time.perf_counter()
        world = build(folder, size, seed, time.time_ns() // 1000 // DAY * DAY, _Quiet())
        training = time.perf_counter() - started
        for number in range(seed, seed + (1 if short else seeds)):
            place = folder / f"turn-{number}"
            place.mkdir()
            turns.append(run_turn(world, place, number, always=short))
            shutil.rmtree(place)
            print(f"seed {number}: {turns[-1].to_dict()}", file=sys.stderr, flush=True)
    figures = _figures(size, turns, training)
    bars = [] if short else _bars(turns)
    _write(out, figures, bars, turns)
    return Result(figures, bars)


def _figures(size: Size, turns: list[Turn], training: float) -> dict[str, Any]:
    tested = [turn.online for turn in turns if turn.online is not None]
    return {
        "simulated": True,
        "note": SIMULATED,
        "size": asdict(size),
        "training seconds": training,
        "turns": len(turns),
        "inside offline": _inside(turns),
        "promoted": len(tested),
        "inside online": sum(estimate.inside for estimate in tested),
        "agree online": sum(estimate.agrees for estimate in tested),
        "by seed": {str(turn.seed): turn.to_dict() for turn in turns},
    }


def _inside(turns: list[Turn]) -> int:
    """Turns whose true gain is inside the offline interval; a refused estimate has none."""
    return sum(turn.offline is not None and turn.offline.inside for turn in turns)


def _bars(turns: list[Turn]) -> list[Bar]:
    needed = math.ceil(SHARE * len(turns))
    agree = sum(turn.online is not None and turn.online.agrees for turn in turns)
    return [
        Bar("turns whose true gain is inside the offline interval", _inside(turns), ">=", needed),
        Bar("turns whose online test agrees with the truth", agree, ">=", needed),
    ]


def _write(out: Path, figures: dict[str, Any], bars: list[Bar], turns: list[Turn]) -> None:
    """The reports. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT[0]).write_text(json.dumps(figures | {"bars": [bar.to_dict() for bar in bars]}, indent=1))
    lines = [
        "# The loop, closed",
        "",
        f"**{SIMULATED.capitalize()}.** The service, its log and the commands are real.",
        "",
        "A serves and explores. B is judged on the log and, where the interval lies above zero, promoted. Then a "
        "test shows A to half of other people again. Gains are B minus A: clicks at an explored slot, and of an "
        "answer. Brackets: 95 % intervals; *true*: the exact expectation.",
        "",
        *(f"* {bar.name}: {bar.value:g} of {len(turns)} (needed: {bar.bar:g})" for bar in bars),
        "",
        "| seed | slots | offline gain | true | inside | promoted | online gain | true | inside |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for turn in turns:
        cells = [str(turn.seed), f"{turn.slots:,}", *_cells(turn.offline), "yes" if turn.promoted else "no"]
        lines.append(f"| {' | '.join(cells + _cells(turn.online))} |")
    (out / REPORT[1]).write_text("\n".join([*lines, ""]), encoding="utf-8")


def _cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["", "", ""]
    gain = estimate.gain
    shown = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    return [shown, f"{estimate.truth:+.4f}", "yes" if estimate.inside else "no"]
