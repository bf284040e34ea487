"""How fast the towers learn, beside RecTools' SASRec in an environment of its own, pass by pass in turns.

Same data, dimension, layers, heads, history, dropout, learning rate, loss (softmax over the whole catalogue), steps a
pass and threads. Positions are events that are predicted, padding left out. Ours does more for each: LiGR layers,
waits, kinds of events and contents. Both are judged by our metrics on the same states of the validation window.
"""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.bench.peers.environment import environment
from experiments.bench.runner import Bar, Result
from experiments.config import load_config
from experiments.dataset import encode_contents, load_dataset
from experiments.evaluation.ranking import headline_metrics
from experiments.pipelines.fit import build_two_stage, sample_states
from experiments.pipelines.rolling_windows import evaluation_windows
from features.arrays import Bools, Floats
from features.errors import ConfigError, RecsysError
from features.interactions import Interactions, Ragged, UserStates
from recsys.interfaces import Candidates, Recommender, top_k
from recsys.towers.model import TwoTowers
from recsys.towers.training import fit_towers
from recsys.towers.training_batches import TrainingSequences

WORKER = Path(__file__).parent / "peers" / "sasrec_worker.py"
PINS = (
    "rectools[torch]==0.19.0",
    "numpy==1.26.4",
    "pandas==2.3.3",
    "pytorch-lightning==2.5.2",
    f"torch=={metadata.version('torch')}",
)
"""RecTools needs numpy 1; torch is of the version that we use ourselves."""

ENOUGH = 0.95
"""Share of the best validation NDCG@10 that counts as having learned."""


@dataclass
class Course:
    """How one of them went, pass by pass: seconds, the positions of a pass, validation NDCG@10."""

    seconds: list[float] = field(default_factory=list)
    positions: int = 0
    ndcg: list[float] = field(default_factory=list)

    def rate(self) -> float:
        """Positions a second in the median pass; the first, which warms up, is left out."""
        return self.positions / statistics.median(self.seconds[1:])

    def waited(self) -> int:
        """Passes since the best one."""
        if not self.ndcg:
            return 0
        return len(self.ndcg) - 1 - int(np.argmax(self.ndcg))

    def learned(self) -> float:
        """Seconds of training until ENOUGH of the best NDCG@10."""
        at = int(np.argmax(np.array(self.ndcg) >= ENOUGH * max(self.ndcg)))
        return float(np.cumsum(self.seconds)[at])


@dataclass(frozen=True)
class Vectors:
    """A recommender of given vectors: users (n_users, d), items (n, d), NaN for an unknown one."""

    users: Floats
    items: Floats

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """As `Recommender.recommend`; the state of a user is not looked at."""
        return top_k(self.users[states.users] @ self.items.T, k, allow=allow, exclude=exclude)


def run(
    *, short: bool = False, config: str = "configs/beauty.yaml", passes: int = 4, patience: int | None = None
) -> Result:
    """At most `passes` of each, or until it has not become better for `patience` of them (else as configured).

    The seconds each needs to learn are null where patience has not ended it: then its best is not known yet. short:
    two passes over a tenth of the users. Raises ConfigError where the split is by time: RecTools' users stand where
    their last training event put them, and who comes later is unknown to it.
    """
    settings = load_config(Path(config))
    if settings.split.kind != "leave-last-out":
        raise ConfigError(
            f"{config}: split.kind is {settings.split.kind}, and RecTools is judged leave-last-out alone"
        )
    passes = 2 if short else max(2, passes)
    towers = settings.towers.model_copy(update={"nested": ()})
    training = settings.training.model_copy(update={"loss": "softmax", "negatives": 0, "epochs": passes})
    if patience is not None:
        training = training.model_copy(update={"patience": max(1, patience)})
    dataset, splits = evaluation_windows(settings, load_dataset(settings))[-1]
    dataset, split = encode_contents(dataset, settings), next(iter(splits.values()))
    fit, validation = split.fit, split.validation
    if short:
        fit = fit.where(fit.users % 10 == 0)
        validation = validation.where(validation.users % 10 == 0)
    validation = sample_states(validation, training.validation_states, settings.seed)
    material = TrainingSequences.build(fit)
    steps = sum(1 for _ in material.batches(towers.history, training.batch_events, np.random.default_rng(0)))
    sequences = int((fit.positives().offsets[1:] - fit.positives().offsets[:-1] >= 2).sum())
    told = {
        "threads": torch.get_num_threads(),
        "seed": settings.seed,
        "shape": (fit.n_users, fit.n_items),
        "model": {
            "n_factors": towers.dimension,
            "n_blocks": towers.layers,
            "n_heads": towers.heads,
            "session_max_len": towers.history,
            "dropout_rate": towers.dropout,
            "lr": training.learning_rate,
            "batch_size": max(1, round(sequences / steps)),
        },
    }
    ours, theirs = Course(positions=len(material.target)), Course()

    def judged(recommender: Recommender) -> float:
        return headline_metrics(recommender, validation, dataset.catalog, repeats=False)["ndcg_at_10"]

    with rival(environment(Path(settings.cache) / "rectools", *PINS), told, fit) as one_pass:

        def step() -> None:
            seconds, theirs.positions, vectors = one_pass()
            theirs.seconds.append(seconds)
            theirs.ndcg.append(judged(vectors))

        resumed = time.perf_counter()

        def validate(model: TwoTowers) -> dict[str, float]:
            nonlocal resumed
            ours.seconds.append(time.perf_counter() - resumed)
            ours.ndcg.append(judged(build_two_stage(model, fit, settings)))
            if theirs.waited() < training.patience:  # in turns: what else the machine does slows both
                step()
            resumed = time.perf_counter()
            return {"ndcg_at_10": ours.ndcg[-1]}

        fit_towers(dataset.catalog, fit, towers, training, seed=settings.seed, validate=validate)
        while theirs.waited() < training.patience and len(theirs.seconds) < passes:
            step()

    ratio = ours.rate() / theirs.rate()
    figures: dict[str, Any] = {"data_hash": dataset.hash, "threads": told["threads"], "steps_a_pass": steps}
    for name, course in {"ours": ours, "rectools": theirs}.items():
        figures |= {
            f"{name}: positions a second": round(course.rate()),
            f"{name}: positions a pass": course.positions,
            f"{name}: seconds of each pass": [round(seconds, 2) for seconds in course.seconds],
            f"{name}: ndcg_at_10 after each pass": [round(value, 4) for value in course.ndcg],
            f"{name}: seconds to {ENOUGH:.0%} of the best ndcg_at_10": (
                round(course.learned(), 1) if course.waited() >= training.patience else None
            ),
        }
    bars = [] if short else [Bar("positions a second, ours to RecTools'", ratio, ">=", 2.0)]
    return Result(figures | {"ratio": round(ratio, 3)}, bars)


@contextmanager
def rival(
    python: Path, told: dict[str, Any], events: Interactions
) -> Iterator[Callable[[], tuple[float, int, Vectors]]]:
    """RecTools fitted on `events`, a pass for each call: its seconds, its positions, the vectors it has led to.

    Raises RecsysError with its last words when it ends by itself.
    """
    log = events.positives()
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+") as words:
        folder = Path(name)
        (folder / "settings.json").write_text(json.dumps(told))
        np.savez(folder / "events.npz", users=log.users, items=log.items)
        # -P: the modules beside the worker are not to be taken for those of the same names that its libraries import
        command = [str(python), "-P", str(WORKER), name]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=words, text=True) as worker:
            asks, answers = worker.stdin, worker.stdout
            assert asks
            assert answers

            def answer() -> dict[str, Any]:
                if not (line := answers.readline()):
                    words.seek(0)
                    raise RecsysError(f"RecTools has ended: {words.read().strip()[-2000:]}")
                told: dict[str, Any] = json.loads(line)
                return told

            def one_pass() -> tuple[float, int, Vectors]:
                with suppress(BrokenPipeError):  # it has ended, and says so instead of an answer
                    print(file=asks, flush=True)
                done = answer()
                with np.load(folder / "vectors.npz", allow_pickle=False) as tables:
                    return done["seconds"], done["positions"], Vectors(tables["users"], tables["items"])

            try:
                answer()  # it is ready: nothing of it runs beside our first pass
                yield one_pass
            finally:
                worker.kill()
                with suppress(BrokenPipeError):  # it had ended by itself, and this would hide why
                    asks.close()
