"""The answers of a validation window that the reranker can learn from, with what followed them.

Only explored positions count (`recsys.ranking.exploration`): of the others nobody knows how often they are examined.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from experiments.config import RunConfig
from experiments.dataset import Dataset
from experiments.evaluation.ranking import published_batches
from experiments.pipelines.exposures.examination import MIN_RESPONSES, Examination, estimate
from experiments.splits import Split
from features.arrays import Bools, Doubles, Ints
from features.files import working_folder
from features.instants import DAY
from features.log.outcomes.table import FOLDER, write_outcomes
from features.log.records import EXPOSURES
from features.log.segments import stream_paths
from features.interactions import UserStates
from features.schema import ITEM, POSITION, PROPENSITY, REQUEST_ID, TIME, USER, EventRules
from recsys.interfaces import Candidates
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import RankingExamples
from recsys.recommender import TwoStageRecommender

WITHIN_DAYS = 7
"""An event counts for an exposure at most so many days earlier."""


@dataclass(frozen=True)
class Answers:
    """m items at explored positions of answers in one placement, by answer and position.

    answers (m,): number of the answer; users, items, positions (m,): rows, and the place, from 1; times (m,): of the
    answer (µs); drawn (m,): whether the item was drawn; gains (m,): what followed is worth, 0 for nothing.
    """

    answers: Ints
    users: Ints
    items: Ints
    positions: Ints
    times: Ints
    drawn: Bools
    gains: Doubles
    examination: Examination

    def where(self, keep: Bools) -> "Answers":
        """The items where keep (m,) is True."""
        arrays = (self.answers, self.users, self.items, self.positions, self.times, self.drawn, self.gains)
        return Answers(*(array[keep] for array in arrays), self.examination)


def read_answers(
    config: RunConfig, dataset: Dataset, splits: Mapping[str, Split]
) -> tuple[dict[str, Answers], tuple[str, ...]]:
    """Placement -> its answers of the validation window, and a line for each placement with exposures in the log.

    Nothing of the cut or later is read. A placement whose examination cannot be estimated has no answers. Raises
    LogError when the log cannot be read.
    """
    split = next(iter(splits.values()))
    start, cut = split.validation_cut, split.cut
    log = None if config.data.log is None else Path(config.data.log)
    if log is None or start is None or cut is None or not stream_paths(log, EXPOSURES):
        return {}, ()
    with working_folder(Path(tempfile.gettempdir()), FOLDER) as folder:
        write_outcomes(log, folder / "outcomes.parquet", WITHIN_DAYS * DAY, before=cut)
        begin = pl.lit(start).cast(pl.Datetime("us", "UTC"))
        rows = pl.scan_parquet(folder / "outcomes.parquet").filter(pl.col(TIME) >= begin).collect()
    found, notes = dict[str, Answers](), list[str]()
    for name in splits:
        worth = objectives(config, name)
        own = rows.filter(pl.col("placement") == name)
        if not len(own) or not worth:
            continue
        answers = _of_rows(own.filter(pl.col(PROPENSITY) < 1), dataset, worth, config.data.events)
        if isinstance(answers, Answers):
            found[name] = answers
        notes.append(f"{name}: {_note(answers)}")
    return found, tuple(notes)


def objectives(config: RunConfig, placement: str) -> dict[str, float]:
    """Event type -> what an event after an exposure of the placement is worth; see `RerankerConfig.objectives`."""
    rules = config.data.events
    named = {} if config.reranker is None else config.reranker.objectives
    return named.get(placement, {name: rules.weights.get(name, 1.0) for name in rules.positive})


def _of_rows(
    rows: pl.DataFrame, dataset: Dataset, worth: Mapping[str, float], rules: EventRules
) -> "Answers | tuple[int, int]":
    """The answers of outcome rows; the numbers of drawn items and of responses to them where these are too few."""
    rows = rows.sort(TIME, REQUEST_ID, POSITION).with_columns(_gain(rows, worth, rules).alias("gain"))
    users, items = dataset.users.rows_of(rows.get_column(USER)), dataset.catalog.ids.rows_of(rows.get_column(ITEM))
    usable = (users >= 0) & (items >= 0)
    rows = rows.filter(pl.Series(usable, dtype=pl.Boolean))
    positions = rows.get_column(POSITION).to_numpy().astype(np.int64)
    drawn, gains = rows.get_column("explored").to_numpy(), rows.get_column("gain").to_numpy()
    examination = estimate(positions, drawn, gains > 0)
    if examination is None:
        return int(drawn.sum()), int((gains[drawn] > 0).sum())
    times = rows.get_column(TIME).to_physical().to_numpy()
    answers = rows.get_column(REQUEST_ID).rle_id().to_numpy().astype(np.int64)
    return Answers(answers, users[usable], items[usable], positions, times, drawn, gains, examination)


def _gain(rows: pl.DataFrame, worth: Mapping[str, float], rules: EventRules) -> pl.Expr:
    """The sum of what the event types are worth that followed; below the minimum value of `positive`, none did."""
    total = pl.lit(0.0)
    for name, value in worth.items():
        if f"{name}_count" in rows.columns:
            least = rules.positive.get(name)
            followed = pl.col(f"{name}_count") > 0
            if least is not None and f"{name}_value" in rows.columns:
                followed = (pl.col(f"{name}_value") >= least).fill_null(False)
            total = total + pl.when(followed).then(value).otherwise(0.0)
    return total


def _note(answers: "Answers | tuple[int, int]") -> str:
    if isinstance(answers, Answers):
        seen = answers.examination
        return (
            f"the reranker learns from {int((answers.gains > 0).sum()):,} responses to "
            f"{len(np.unique(answers.answers)):,} answers; position {seen.positions[-1]} is examined "
            f"{seen.probability[-1]:.2f} times as often as position {seen.positions[0]}"
        )
    drawn, responses = answers
    return (
        f"exposures are not learned from: {responses:,} responses to {drawn:,} drawn items do not tell how often each "
        f"position is looked at ({MIN_RESPONSES} are needed); serve with a rule `explore` (docs/rules.md)"
    )


def examples_of(
    answers: Answers,
    split: Split,
    features: PairFeatures,
    retrieval: TwoStageRecommender,
    *,
    repeats: bool,
    candidates: int,
    groups: int,
    seed: int,
) -> RankingExamples | None:
    """A ranking example for each response: its item, against the other items of the answer. None without any.

    The loss of a response is weighted by gain / examination, so that its expectation is that of a list whose every
    item is examined (Joachims et al. 2017); the mean weight is 1. Features are as of the answer, with the rank that
    each item had among that many candidates. At most `groups` examples, drawn by the seed.
    """
    states, rows, positions, gains = _slates(answers, split)
    at, place = np.nonzero((gains > 0) & ((rows >= 0).sum(1) > 1)[:, None])
    if not len(at):
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(len(at))[:groups])
    at, place = at[chosen], place[chosen]
    weights = gains[at, place] / answers.examination.of(positions[at, place])
    asked, of = np.unique(at, return_inverse=True)
    found = Candidates.empty(len(asked), rows.shape[1])
    ranks = np.zeros(found.rows.shape, dtype=np.int64)
    for batch, published in published_batches(states.as_of[asked], features.catalog):
        own = states[asked[batch]].compact()
        seen = None if repeats else own.seen_items()
        retrieved = retrieval.retrieve(own, candidates, allow=published, exclude=seen, features=features)
        placed, ranks[batch] = retrieval.places(own, rows[asked[batch]], retrieved)
        found.put(batch, placed)
    shown = Candidates(found.rows[of], found.scores[of])
    relevant = shown.rows == rows[at, place][:, None]
    return RankingExamples(states[at], shown, relevant, ranks[of], weights / weights.mean())


def _slates(answers: Answers, split: Split) -> tuple[UserStates, Ints, Ints, Doubles]:
    """Of a answers to people with a history: states, and rows (-1 for none), positions and gains, (a, k) each."""
    _, first, number = np.unique(answers.answers, return_index=True, return_inverse=True)
    column = np.arange(len(number)) - first[number]
    shape = len(first), int(column.max(initial=0)) + 1
    rows, positions, gains = np.full(shape, -1, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
    for table, values in ((rows, answers.items), (positions, answers.positions), (gains, answers.gains)):
        table[number, column] = values
    states = split.train.states(answers.users[first], answers.times[first])
    warm = np.flatnonzero(states.positives().lengths > 0)  # the reranker does not serve cold users
    return states[warm], rows[warm], positions[warm], gains[warm]
