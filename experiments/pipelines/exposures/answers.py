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
from experiments.evaluation.off_policy.slots import explorations
from experiments.evaluation.ranking import published_batches
from experiments.pipelines.exposures.examination import MIN_RESPONSES, Examination, estimate
from experiments.splits import Split
from features.arrays import Doubles, Ints
from features.files import working_folder
from features.instants import DAY
from features.interactions import UserStates
from features.log.outcomes.table import FOLDER, write_outcomes
from features.log.records import EXPOSURES
from features.log.segments import stream_paths
from features.schema import ITEM, POSITION, PROPENSITY, REQUEST_ID, TIME, USER, EventRules
from recsys.interfaces import Candidates
from recsys.ranking.pair_features import PairFeatures
from recsys.ranking.reranker import RankingExamples
from recsys.recommender import TwoStageRecommender

SHOWN_WEIGHT = 10.0
"""Weight of a response to an answer relative to a query over retrieved candidates. That has about ten times as many
items: each item counts about alike. `experiments/LOG.md` has what other weights give."""

WITHIN_DAYS = 7
"""An event counts for an exposure at most so many days earlier."""


@dataclass(frozen=True)
class Answers:
    """m items at explored positions of answers in one placement, by answer and position.

    answers (m,): number of the answer; users, items (m,): rows; positions (m,): from 1; times (m,): of the answer,
    µs; gains (m,): what followed is worth, 0 for nothing; examination: of the positions.
    """

    answers: Ints
    users: Ints
    items: Ints
    positions: Ints
    times: Ints
    gains: Doubles
    examination: Examination


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
        begin, end = (pl.lit(at).cast(pl.Datetime("us", "UTC")) for at in (start, cut))
        inside = pl.col(TIME).is_between(begin, end, closed="left")
        rows = pl.scan_parquet(folder / "outcomes.parquet").filter(inside).collect()
    places = _places(explorations(log, inside))
    found, notes = dict[str, Answers](), list[str]()
    for name in splits:
        worth = objectives(config, name)
        own = rows.filter(pl.col("placement") == name)
        if not len(own) or not worth:
            continue
        explored = own.filter(pl.col(PROPENSITY) < 1).join(places, on=[REQUEST_ID, POSITION, ITEM], how="left")
        answers = _of_rows(explored, dataset, worth, config.data.events)
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
    drawn, gains = rows.get_column("place").is_not_null().to_numpy(), rows.get_column("gain").to_numpy()
    places = rows.get_column("place").fill_null(-1).to_numpy().astype(np.int64)
    examination = estimate(positions[drawn], places[drawn], gains[drawn] > 0)
    if examination is None:
        return int(drawn.sum()), int((gains[drawn] > 0).sum())
    times = rows.get_column(TIME).to_physical().to_numpy()
    answers = rows.get_column(REQUEST_ID).rle_id().to_numpy().astype(np.int64)
    return Answers(answers, users[usable], items[usable], positions, times, gains, examination)


def _places(explored: pl.DataFrame) -> pl.DataFrame:
    """Of each item that could be drawn: request, position, ITEM, and `place`, among those that follow the slate.

    The turns of the pools are in the order of their positions.
    """
    turn, turns = pl.col(POSITION).rank("ordinal").over(REQUEST_ID) - 1, pl.len().over(REQUEST_ID)
    return (
        explored.with_columns(turn=turn, turns=turns, round=pl.int_ranges(pl.col("pool").list.len()))
        .explode("pool", "round")
        .with_columns(place=pl.col("round") * pl.col("turns") + pl.col("turn"))
        .select(REQUEST_ID, POSITION, pl.col("pool").alias(ITEM), "place")
    )


def _gain(rows: pl.DataFrame, worth: Mapping[str, float], rules: EventRules) -> pl.Expr:
    """The sum of what the event types are worth that followed; below the minimum value of `positive`, none did."""
    total = pl.lit(0.0)
    for name, value in worth.items():
        least = rules.positive.get(name)
        column = f"{name}_count" if least is None else f"{name}_value"  # no column: no event has one
        if column in rows.columns:
            followed = pl.col(column) > 0 if least is None else pl.col(column) >= least
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
        f"exposures are not learned from: {responses:,} responses to {drawn:,} drawn items do not tell how often "
        f"each position is examined ({MIN_RESPONSES} are needed); serve with a rule `explore` (docs/rules.md)"
    )


def examples_of(
    answers: Answers,
    config: RunConfig,
    placement: str,
    split: Split,
    features: PairFeatures,
    retrieval: TwoStageRecommender,
    *,
    share: int,
) -> RankingExamples | None:
    """A ranking example for each response: its item, against the other items of the answer. None without any.

    The loss of a response is weighted by gain / examination, so that its expectation is that of a list whose every
    item is examined (Joachims et al. 2017); the mean weight is SHOWN_WEIGHT. Features are as of the answer, with the
    rank that each item had among the candidates. At most a `share`-th of `reranker.groups`, drawn by the seed.
    """
    assert config.reranker is not None
    repeats, groups = config.data.placements[placement].repeats, max(1, config.reranker.groups // share)
    states, rows, positions, gains = _slates(answers, split)
    at, place = np.nonzero((gains > 0) & ((rows >= 0).sum(1) > 1)[:, None])
    if not len(at):
        return None
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(at))[:groups])
    at, place = at[chosen], place[chosen]
    weights = gains[at, place] / answers.examination.of(positions[at, place])
    asked, of = np.unique(at, return_inverse=True)
    found = Candidates.empty(len(asked), rows.shape[1])
    ranks = np.zeros(found.rows.shape, dtype=np.int64)
    for batch, published in published_batches(states.as_of[asked], features.catalog):
        own = states[asked[batch]].compact()
        seen = None if repeats else own.seen_items()
        k = config.reranker.candidates
        retrieved = retrieval.retrieve(own, k, allow=published, exclude=seen, features=features)
        placed, ranks[batch] = retrieval.places(own, rows[asked[batch]], retrieved)
        found.put(batch, placed)
    shown = Candidates(found.rows[of], found.scores[of])
    relevant = shown.rows == rows[at, place][:, None]
    return RankingExamples(states[at], shown, relevant, ranks[of], SHOWN_WEIGHT * weights / weights.mean())


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
