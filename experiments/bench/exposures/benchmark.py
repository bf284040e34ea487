"""`recsys bench exposures`: does the reranker learn more from exposures than from retrieved negatives alone?

One log with position bias and known exploration, one retrieval, and three rerankers that differ in what they learn
from alone: retrieved negatives, exposures as well, and exposures as if all positions were examined alike. Each is
worth what simulated people would do with its slates: the exact expectation, without position bias in the training
being part of it.
"""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from experiments.bench.exposures.world import BEGIN, PLACEMENT, K, Size, World, build
from experiments.bench.runner import Bar, Result
from experiments.pipelines.exposures.answers import Answers, read_answers
from experiments.pipelines.reranking import train_reranker
from experiments.simulation.behaviour import Moment
from experiments.simulation.people import SIMULATED
from experiments.simulation.truth import Truth
from experiments.splits import Split, targets
from features.arrays import Doubles
from features.errors import DataError
from recsys.evaluation.bootstrap import paired_bootstrap
from recsys.recommender import TwoStageRecommender

RETRIEVAL, NEGATIVES = "retrieval", "retrieved negatives"
EXPOSURES, NAIVE = "exposures", "exposures without debiasing"

SHORT = Size(items=300, people=400, rounds=3)


def run(*, short: bool = False, seed: int = 0) -> Result:
    """Clicks of a slate by the truth, for each reranker, and the differences with 95 % intervals over people.

    short: few people, no bars. Raises DataError where the log has too few responses to drawn items.
    """
    size = SHORT if short else Size()
    with tempfile.TemporaryDirectory(prefix="recsys-exposures-") as name:
        world = build(Path(name), size, seed)
        split = _split(world)
        answers, notes = read_answers(world.config, world.dataset, {PLACEMENT: split})
    if PLACEMENT not in answers:
        raise DataError(f"nothing can be learned from the exposures: {'; '.join(notes)}; choose another --seed")
    own = answers[PLACEMENT]
    learned: dict[str, dict[str, Answers]] = {
        NEGATIVES: {},
        EXPOSURES: answers,
        NAIVE: {PLACEMENT: replace(own, examination=replace(own.examination, probability=np.ones(K)))},
    }
    clicks = {RETRIEVAL: _clicks(world, split, world.retrieval)}
    for kind, given in learned.items():
        reranker, _ = train_reranker(world.config, world.dataset.catalog, {PLACEMENT: split}, world.retrieval, given)
        clicks[kind] = _clicks(world, split, replace(world.retrieval, reranker=reranker))
    gains = {
        f"{EXPOSURES} - {other}": paired_bootstrap(clicks[EXPOSURES], clicks[other], seed=seed)
        for other in (NEGATIVES, NAIVE)
    }
    figures = {
        "simulated": True,
        "note": SIMULATED,
        "size": asdict(size),
        "responses": int((own.gains > 0).sum()),
        "examination": own.examination.probability.round(3).tolist(),
        "true examination": world.behaviour.viewed(own.examination.positions).round(3).tolist(),
        "expected clicks of a slate": {kind: float(values.mean()) for kind, values in clicks.items()},
        **{name: asdict(gain) for name, gain in gains.items()},
    }
    return Result(figures, [] if short else [Bar(f"{name}, low", gain.low, ">", 0) for name, gain in gains.items()])


def _split(world: World) -> Split:
    """Everything before the visits to fit on; the visits as the validation window."""
    events = world.dataset.events
    window = targets(events, BEGIN, world.cut, "prequential", repeats=False)
    return Split("visits", world.cut, BEGIN, events.before(BEGIN), events.before(world.cut), window, window)


def _clicks(world: World, split: Split, recommender: TwoStageRecommender) -> Doubles:
    """(u,): the expected clicks of each person on a slate of what the person has not taken, after the visits."""
    people = np.arange(len(world.person))
    states = split.train.states(people, np.full(len(people), world.cut)).compact()
    rows = recommender.recommend(states, K, exclude=states.seen_items()).rows
    slates = np.where(rows >= 0, world.film[rows], -1)
    moment = Moment(world.person, np.full(len(people), float(world.size.rounds)), np.zeros_like(slates))
    return Truth(world.people, world.behaviour).of_slates(slates, moment)
