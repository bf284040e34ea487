"""Training speed of the towers against RecTools' SASRec in its own environment, in alternating passes.

Both have the same data, dimension, layers, heads, history, dropout, learning rate, loss (softmax over the whole
catalogue), steps a pass and threads. Positions are events that are predicted, without padding. The towers compute
more for each position: LiGR layers, times between events, event types and contents. Both are measured on the same
states of the validation window.
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
from experiments.config import RunConfig, load_config
from experiments.dataset import Dataset, encode_contents, load_dataset
from experiments.evaluation.ranking import headline_metrics
from experiments.pipelines.fit import build_two_stage
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.splits import Targets
from features.arrays import Bools, Floats
from features.errors import ConfigError, RecsysError
from features.interactions import Interactions, Ragged, UserStates
from recsys.config import TowerConfig, TrainingConfig
from recsys.interfaces import Candidates, Recommender, top_k
from recsys.towers.model import TwoTowers
from recsys.towers.training import fit_towers
from recsys.towers.training_batches import TrainingSequences

WORKER = Path(__file__).parent / "peers" / "_sasrec_worker.py"
PINS = (
    "rectools[torch]==0.19.0",
    "numpy==1.26.4",
    "pandas==2.3.3",
    "pytorch-lightning==2.5.2",
    f"torch=={metadata.version('torch')}",
)
"""Packages of the environment: RecTools needs numpy 1; torch has the version that we use."""

LEARNED = 0.95
"""Share of the best validation NDCG@10 that a model must reach to count as trained."""


@dataclass
class TrainingCurve:
    """Seconds and validation NDCG@10 of each pass of one model, and the positions of a pass."""

    seconds: list[float] = field(default_factory=list)
    positions: int = 0
    ndcg: list[float] = field(default_factory=list)

    def rate(self) -> float:
        """Positions a second in the median pass; the first pass warms up and is not counted."""
        return self.positions / statistics.median(self.seconds[1:])

    def passes_since_best(self) -> int:
        """0 before the first pass."""
        if not self.ndcg:
            return 0
        return len(self.ndcg) - 1 - int(np.argmax(self.ndcg))

    def seconds_to_learn(self) -> float:
        """Seconds of training until NDCG@10 reaches the share LEARNED of its best value."""
        first = int(np.argmax(np.array(self.ndcg) >= LEARNED * max(self.ndcg)))
        return float(np.cumsum(self.seconds)[first])


@dataclass(frozen=True)
class FixedVectorRecommender:
    """A recommender with fixed vectors: users (n_users, d), items (n, d); rows of unknown ones are NaN."""

    users: Floats
    items: Floats

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """As `Recommender.recommend`; only the user row of a state is read, not its history."""
        return top_k(self.users[states.users] @ self.items.T, k, allow=allow, exclude=exclude)


@dataclass(frozen=True)
class Comparison:
    """The configuration, the events and the validation states that both models share."""

    settings: RunConfig
    towers: TowerConfig
    training: TrainingConfig
    dataset: Dataset
    fit: Interactions
    validation: Targets
    sequences: TrainingSequences

    def steps(self) -> int:
        """Optimiser steps in one pass of the towers."""
        rng = np.random.default_rng(0)
        return sum(1 for _ in self.sequences.batches(self.towers.history, self.training.batch_events, rng))

    def ndcg(self, recommender: Recommender) -> float:
        """NDCG@10 on the validation states, without repeats."""
        return headline_metrics(recommender, self.validation, self.dataset.catalog, repeats=False)["ndcg_at_10"]


def run(
    *, short: bool = False, config: str = "configs/beauty.yaml", passes: int = 4, patience: int | None = None
) -> Result:
    """Positions a second, and validation NDCG@10 after each pass, of the towers and of RecTools' SASRec.

    passes: maximum of each. patience: a model stops after so many passes without improvement, by default as
    configured. The seconds to learn are null for a model that patience did not stop, since its best value is then not
    known. short: two passes over a tenth of the users. Raises ConfigError where the split is by time: the vectors of
    RecTools' users are those after their last training event, and users who first occur later are unknown to it.
    """
    settings = load_config(Path(config))
    if settings.split.kind != "leave-last-out":
        raise ConfigError(
            f"{config}: split.kind is {settings.split.kind}; bench train needs leave-last-out, as RecTools does"
        )
    passes = 2 if short else max(2, passes)
    comparison = _comparison(settings, passes, patience, short)
    steps = comparison.steps()
    message = _peer_settings(comparison, steps)
    ours, peer = _alternate(comparison, message, passes)

    ratio = ours.rate() / peer.rate()
    figures: dict[str, Any] = {
        "data_hash": comparison.dataset.hash,
        "threads": message["threads"],
        "steps_a_pass": steps,
    }
    for name, curve in {"ours": ours, "rectools": peer}.items():
        figures |= _figures(name, curve, comparison.training.patience)
    bars = [] if short else [Bar("positions a second, ours to RecTools'", ratio, ">=", 2.0)]
    return Result(figures | {"ratio": round(ratio, 3)}, bars)


def _comparison(settings: RunConfig, passes: int, patience: int | None, short: bool) -> Comparison:
    """The newest window's events and validation states; of a tenth of the users when short."""
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
    validation = validation.sample(training.validation_states, settings.seed)
    return Comparison(settings, towers, training, dataset, fit, validation, TrainingSequences.build(fit))


def _peer_settings(comparison: Comparison, steps: int) -> dict[str, Any]:
    """What the worker reads as settings.json; its batch size is such that a pass has as many steps as ours."""
    towers, fit = comparison.towers, comparison.fit
    n_sequences = int((np.diff(fit.positives().offsets) >= 2).sum())  # users with an event to predict
    return {
        "threads": torch.get_num_threads(),
        "seed": comparison.settings.seed,
        "shape": (fit.n_users, fit.n_items),
        "model": {
            "n_factors": towers.dimension,
            "n_blocks": towers.layers,
            "n_heads": towers.heads,
            "session_max_len": towers.history,
            "dropout_rate": towers.dropout,
            "lr": comparison.training.learning_rate,
            "batch_size": max(1, round(n_sequences / steps)),
        },
    }


def _alternate(comparison: Comparison, message: dict[str, Any], passes: int) -> tuple[TrainingCurve, TrainingCurve]:
    """The curves of the towers and of RecTools. Passes alternate, so that other load on the machine slows both."""
    settings, fit, patience = comparison.settings, comparison.fit, comparison.training.patience
    ours, peer = TrainingCurve(positions=len(comparison.sequences.target)), TrainingCurve()
    python = environment(Path(settings.cache) / "rectools", *PINS)
    with sasrec_worker(python, message, fit) as peer_pass:

        def step() -> None:
            seconds, peer.positions, vectors = peer_pass()
            peer.seconds.append(seconds)
            peer.ndcg.append(comparison.ndcg(vectors))

        resumed = time.perf_counter()

        def validate(model: TwoTowers) -> dict[str, float]:
            nonlocal resumed
            ours.seconds.append(time.perf_counter() - resumed)
            ours.ndcg.append(comparison.ndcg(build_two_stage(model, fit, settings)))
            if peer.passes_since_best() < patience:
                step()
            resumed = time.perf_counter()
            return {"ndcg_at_10": ours.ndcg[-1]}

        fit_towers(
            comparison.dataset.catalog,
            fit,
            comparison.towers,
            comparison.training,
            seed=settings.seed,
            validate=validate,
        )
        while peer.passes_since_best() < patience and len(peer.seconds) < passes:
            step()
    return ours, peer


def _figures(name: str, curve: TrainingCurve, patience: int) -> dict[str, Any]:
    """The figures of one model."""
    stopped = curve.passes_since_best() >= patience
    return {
        f"{name}: positions a second": round(curve.rate()),
        f"{name}: positions a pass": curve.positions,
        f"{name}: seconds of each pass": [round(seconds, 2) for seconds in curve.seconds],
        f"{name}: ndcg_at_10 after each pass": [round(value, 4) for value in curve.ndcg],
        f"{name}: seconds to {LEARNED:.0%} of the best ndcg_at_10": (
            round(curve.seconds_to_learn(), 1) if stopped else None
        ),
    }


@contextmanager
def sasrec_worker(
    python: Path, message: dict[str, Any], events: Interactions
) -> Iterator[Callable[[], tuple[float, int, FixedVectorRecommender]]]:
    """A RecTools process that is fitted on `events`. A call makes a pass; it returns seconds, positions and vectors.

    message: what the worker reads as settings.json. Raises RecsysError with the end of its standard error when the
    process ends by itself.
    """
    log = events.positives()
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+") as stderr:
        folder = Path(name)
        (folder / "settings.json").write_text(json.dumps(message))
        np.savez(folder / "events.npz", users=log.users, items=log.items)
        # -P keeps the worker's folder out of sys.path: modules there would hide those that its libraries import
        command = [str(python), "-P", str(WORKER), name]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True) as worker:
            requests, responses = worker.stdin, worker.stdout
            assert requests
            assert responses

            def response() -> dict[str, Any]:
                if not (line := responses.readline()):
                    stderr.seek(0)
                    raise RecsysError(f"RecTools has ended: {stderr.read().strip()[-2000:]}")
                fields: dict[str, Any] = json.loads(line)
                return fields

            def one_pass() -> tuple[float, int, FixedVectorRecommender]:
                with suppress(BrokenPipeError):  # the worker has ended: response() raises with the reason
                    print(file=requests, flush=True)
                done = response()
                with np.load(folder / "vectors.npz", allow_pickle=False) as tables:
                    return (
                        done["seconds"],
                        done["positions"],
                        FixedVectorRecommender(tables["users"], tables["items"]),
                    )

            try:
                response()  # wait until the worker is ready, so that its start does not slow our first pass
                yield one_pass
            finally:
                worker.kill()
                with suppress(BrokenPipeError):  # the worker had ended: this error would hide the reason
                    requests.close()
