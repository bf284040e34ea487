"""A model of the reward of every choice of a slot, for the estimators that need one.

Gradient-boosted trees on what is known before the answer. It is cross-fitted over users (Chernozhukov et al. 2018):
the rewards of a user are predicted by a model that was fitted on other users, so that it cannot repeat what it was
fitted on.
"""

import numpy as np

from experiments.evaluation.off_policy.policies import Policy
from experiments.evaluation.off_policy.slots import Slots
from features.arrays import Doubles

FOLDS = 5
"""Groups of users, each predicted by a model of the others."""


def predicted_rewards(slots: Slots, policy: Policy, *, seed: int) -> Doubles | None:
    """(c,): the predicted reward of each choice of the slots; None with fewer users than FOLDS.

    The model reads the position, the place among the choices (0: the own item, then the pool, best first), how often
    the item was shown in these slots, and the judged policy's score of it.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # slow to import

    if len(slots.user_ids) < FOLDS:
        return None
    slot, places = slots.choices.places()
    times_shown = np.bincount(slots.choices.flat[slots.shown], minlength=len(slots.item_ids))
    features = np.column_stack(
        (
            slots.positions[slot],
            places - slots.choices.begin[slot],
            np.log1p(times_shown[slots.choices.flat]),
            policy.scores,
        )
    )  # (c, 4)
    fold = np.random.default_rng(seed).permutation(len(slots.user_ids))[slots.users] % FOLDS  # (m,)
    out = np.empty(len(slot))
    for number in range(FOLDS):
        fitted = fold != number
        model = HistGradientBoostingRegressor(
            max_iter=50, min_samples_leaf=50, early_stopping=False, random_state=seed
        )
        examples, own = features[slots.shown[fitted]], fold[slot] == number
        known = ~np.isnan(examples).all(0)  # (4,): a policy without scores has NaN alone
        model.fit(examples[:, known], slots.rewards[fitted])
        out[own] = model.predict(features[own][:, known])
    return out
