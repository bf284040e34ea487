"""The reranker, the second stage: LambdaMART on features of user, item and pair. The only import of lightgbm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.arrays import Bools, Doubles, Floats, Ints
from features.errors import BundleError, DataError, DependencyError, describe_read_error, detail
from features.interactions import UserStates
from recsys.config import RerankerConfig
from recsys.evaluation.calibration import Calibration
from recsys.interfaces import Candidates
from recsys.ranking.pair_features import FEATURES, PairFeatures

try:
    import lightgbm
except OSError as error:  # the wheel needs the system's OpenMP, which slim images lack
    raise DependencyError(
        f"lightgbm cannot be loaded ({error}): install libgomp, e.g. apt-get install libgomp1"
    ) from error


STATES_AT_ONCE = 128
"""States whose features are computed together: 200 MB with 500 candidates of 768 dimensions."""

NEGATIVES = 100
"""Approximate number of negatives per state in training, sampled from its candidates by the seed.

The time that sampling saves is better spent on more states and more trees.
"""


@dataclass(frozen=True)
class Reranker:
    """A `Scorer` by LambdaMART (Burges 2010).

    booster: the trees; features: what they read; cold_lift: added to the scores of cold items, those without a
    positive event; calibration: of the scores of the trees, None where it is not known.
    """

    booster: lightgbm.Booster
    features: PairFeatures
    cold_lift: float = 0.0
    calibration: Calibration | None = None

    def score(self, states: UserStates, candidates: Candidates, ranks: Ints | None = None) -> Floats:
        """See `Scorer`."""
        if len(states) > STATES_AT_ONCE:
            parts = (slice(at, at + STATES_AT_ONCE) for at in range(0, len(states), STATES_AT_ONCE))
            return np.concatenate(
                [
                    self.score(
                        states[at],
                        Candidates(candidates.rows[at], candidates.scores[at]),
                        None if ranks is None else ranks[at],
                    )
                    for at in parts
                ]
            )
        scores = self.predict(self.features.matrix(states, candidates, ranks)) + self._lifts(candidates.rows)
        return np.where(candidates.rows >= 0, scores, np.float32(-np.inf))

    def predict(self, matrix: Floats) -> Floats:
        """Scores (b, k) of the trees for features (b, k, len(FEATURES))."""
        scores = np.asarray(self.booster.predict(matrix.reshape(-1, len(FEATURES)), num_threads=1))
        return scores.reshape(matrix.shape[:2]).astype(np.float32)

    def probabilities(self, rows: Ints, scores: Floats) -> Doubles | None:
        """The probability that each item is the user's next one, by its score; None where it is not known.

        rows, scores: of one shape.
        """
        return None if self.calibration is None else self.calibration(scores - self._lifts(rows))

    def _lifts(self, rows: Ints) -> Floats:
        return np.where(self.features.is_cold[rows], np.float32(self.cold_lift), np.float32(0))

    def contributions(self, states: UserStates, candidates: Candidates, places: Ints) -> Doubles:
        """What each feature adds to the scores of the candidates at places (m,) of one state (b = 1).

        (m, len(PARTS) + 1): a column for each of PARTS, then the expected value. A row adds up to the score
        (TreeSHAP, Lundberg et al. 2018). At least one place.
        """
        matrix = self.features.matrix(states, candidates)[0, places]
        parts = np.asarray(self.booster.predict(matrix, pred_contrib=True, num_threads=1), dtype=np.float64)
        return np.insert(parts, len(FEATURES), self._lifts(candidates.rows[0, places]), axis=1)

    @property
    def importance(self) -> dict[str, float]:
        """Feature -> share of the total gain."""
        gain = self.booster.feature_importance("gain")
        return dict(zip(FEATURES, (gain / max(gain.sum(), 1e-12)).tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Write the trees in the text format of LightGBM."""
        path.write_text(self.booster.model_to_string())

    @property
    def arrays(self) -> dict[str, Doubles]:
        """What `load` needs besides the trees and the features."""
        known = {} if self.calibration is None else self.calibration.arrays
        return {"cold_lift": np.array([self.cold_lift])} | known

    @classmethod
    def load(cls, path: Path, features: PairFeatures, arrays: Mapping[str, Doubles]) -> "Reranker":
        """Read what `save` wrote, with its `arrays`, none of which an older version had.

        Raises BundleError when the file is not a model with these features.
        """
        try:
            text = path.read_text(encoding="utf-8")
            whole = "\nend of trees\n" in text and "\nend of parameters\n" in text
            if not text.startswith("tree\n") or not whole:
                raise BundleError(f"{path}: not a LightGBM model: it has no beginning or no end; train again")
            _check_trees(text)
            booster = lightgbm.Booster(model_str=text)
            names = booster.feature_name()
        except (lightgbm.basic.LightGBMError, ValueError, LookupError, OverflowError) as error:
            raise BundleError(f"{path}: not a LightGBM model: {describe_read_error(error)}; train again") from error
        if tuple(names) != FEATURES:
            raise BundleError(f"{path}: its features are {names}, this version has {list(FEATURES)}; train again")
        lift = arrays.get("cold_lift", np.zeros(1))
        return cls(booster, features, float(lift[0]), Calibration.of_arrays(arrays))


_OF_NODES = {
    **dict.fromkeys(("split_feature", "decision_type", "left_child", "right_child", "internal_count"), np.int32),
    **dict.fromkeys(("split_gain", "threshold", "internal_value", "internal_weight"), np.float64),
}
_OF_LEAVES = {"leaf_value": np.float64, "leaf_weight": np.float64, "leaf_count": np.int32}
"""Line of a tree in the text format of LightGBM -> type of its numbers, one for each inner node, or for each leaf."""


def _check_trees(text: str) -> None:
    """Raises ValueError or LookupError for a text whose trees are not whole: LightGBM ends the process on some."""
    header, _, body = text.partition("\n\n")
    at, sizes = 0, [int(size) for size in _lines(header)["tree_sizes"].split()]
    for number, size in enumerate(sizes):
        lines, at = _lines(body[at : at + size]), at + size
        n = int(lines["num_leaves"])
        whole = lines["Tree"] == str(number) and n >= 1 and lines["num_cat"] == lines["is_linear"] == "0"
        nodes = {name: np.array(lines[name].split(), dtype=kind) for name, kind in _OF_NODES.items() if n > 1}
        leaves = {name: np.array(lines[name].split(), dtype=kind) for name, kind in _OF_LEAVES.items() if n > 1}
        whole &= all(len(values) == n - 1 for values in nodes.values())
        whole &= all(len(values) == n for values in leaves.values())
        if whole and n > 1:
            children, parents = np.concatenate((nodes["left_child"], nodes["right_child"])), np.arange(n - 1)
            inner = children >= 0  # others are leaves, as -1 - number
            whole = bool((children[inner] > np.tile(parents, 2)[inner]).all())  # so that no walk is endless
            whole &= np.array_equal(np.sort(children), np.r_[np.arange(-n, 0), np.arange(1, n - 1)])
            whole &= bool(((nodes["split_feature"] >= 0) & (nodes["split_feature"] < len(FEATURES))).all())
        if not whole or not np.isfinite(float(lines["shrinkage"])):
            raise ValueError(f"tree {number} is not whole")
    if not body[at:].startswith("end of trees\n"):
        raise ValueError("the trees are not those of the header")


def _lines(text: str) -> dict[str, str]:
    """Name -> value of the lines NAME=VALUE."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class RankingExamples:
    """Candidates (b, k) of b states, and whether the user took each of them next: relevant (b, k) bool.

    ranks (b, k): of the candidates, see `PairFeatures.matrix`; weights (b,): of the states in the loss, None: all 1.
    """

    states: UserStates
    candidates: Candidates
    relevant: Bools
    ranks: Ints | None = None
    weights: Doubles | None = None


@dataclass(frozen=True)
class RankingRows:
    """The rows that trees are fitted on: features (r, len(FEATURES)) float32, relevant (r,) bool, in g groups.

    sizes (g,): rows of each group, one after another; users (g,): user of each; weights (g,): of each in the loss.
    """

    matrix: Floats
    relevant: Bools
    sizes: Ints
    users: Ints
    weights: Doubles

    @classmethod
    def of(cls, features: PairFeatures, examples: Sequence[RankingExamples], *, seed: int) -> "RankingRows | None":
        """Of the states with a relevant candidate: a sample of their candidates. None when there is no such state."""
        rng = np.random.default_rng(seed)
        parts, labels, sizes, users, weights = [], [], [], [], []
        for example in examples:
            rows, scores, relevant = example.candidates.rows, example.candidates.scores, example.relevant
            useful = np.flatnonzero((relevant & (rows >= 0)).any(1))
            for start in range(0, len(useful), STATES_AT_ONCE):
                part = useful[start : start + STATES_AT_ONCE]
                sampled = rng.random(rows[part].shape) < NEGATIVES / rows.shape[1]
                used = (rows[part] >= 0) & (relevant[part] | sampled)  # (c, k)
                chunk = Candidates(rows[part], scores[part])
                ranks = None if example.ranks is None else example.ranks[part]
                parts.append(features.matrix(example.states[part].compact(), chunk, ranks)[used])
                labels.append(relevant[part][used])
                sizes.append(used.sum(1))
                users.append(example.states.users[part])
                weights.append(np.ones(len(part)) if example.weights is None else example.weights[part])
        if not parts:
            return None
        return cls(*(np.concatenate(arrays) for arrays in (parts, labels, sizes, users, weights)))

    def where(self, keep: Bools) -> "RankingRows":
        """The groups where keep (g,) is True."""
        rows = np.repeat(keep, self.sizes)
        return RankingRows(
            self.matrix[rows], self.relevant[rows], self.sizes[keep], self.users[keep], self.weights[keep]
        )


def fit_reranker(
    features: PairFeatures, examples: Sequence[RankingExamples], config: RerankerConfig, *, seed: int
) -> Reranker | None:
    """Fit on ranking examples. Returns None when no state has a relevant candidate: there is no order to learn.

    Raises DataError when LightGBM refuses the examples or the settings.
    """
    rows = RankingRows.of(features, examples, seed=seed)
    return None if rows is None else fit_trees(features, rows, config, seed=seed)


def fit_trees(features: PairFeatures, rows: RankingRows, config: RerankerConfig, *, seed: int) -> Reranker:
    """Fit on ranking rows. Raises DataError when LightGBM refuses the rows or the settings."""
    data = lightgbm.Dataset(
        rows.matrix,
        label=rows.relevant.astype(np.float32),
        group=rows.sizes,
        weight=None if (rows.weights == 1).all() else np.repeat(rows.weights, rows.sizes),
        feature_name=list(FEATURES),
    )
    try:
        booster = lightgbm.train(
            {
                "objective": "lambdarank",
                # all candidates: initial scores are equal, and a smaller level would train on arbitrary ones
                "lambdarank_truncation_level": int(rows.sizes.max()),
                "num_leaves": config.leaves,
                "learning_rate": config.learning_rate,
                "min_data_in_leaf": min(2000, max(20, len(rows.matrix) // 500)),
                "deterministic": True,
                "force_row_wise": True,
                "seed": seed,
                "verbose": -1,
            },
            data,
            num_boost_round=config.trees,
        )
    except lightgbm.basic.LightGBMError as error:
        raise DataError(
            f"the reranker cannot be fitted: LightGBM refuses {len(rows.matrix):,} rows or the settings; check "
            f"`reranker`, or set it to null{detail(error)}"
        ) from error
    return Reranker(booster, features)
