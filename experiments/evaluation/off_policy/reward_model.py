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
    the item was shown to the users whom it is fitted on, and the judged policy's score of it.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # slow to import

    if len(slots.user_ids) < FOLDS:
        return None
    slot, places = slots.choices.places()
    known = [slots.positions[slot], places - slots.choices.begin[slot], policy.scores]  # (c,) each
    known = known if not np.isnan(policy.scores).all() else known[:2]  # a policy may have no scores
    items, shown_items = slots.choices.flat, slots.choices.flat[slots.shown]
    fold = np.random.default_rng(seed).permutation(len(slots.user_ids))[slots.users] % FOLDS  # (m,)
    out = np.empty(len(slot))
    for number in range(FOLDS):
        fitted = fold != number
        model = HistGradientBoostingRegressor(
            max_iter=50, min_samples_leaf=50, early_stopping=False, random_state=seed
        )
        times_shown = np.bincount(shown_items[fitted], minlength=len(slots.item_ids))
        features = np.column_stack((*known, np.log1p(times_shown[items])))  # (c, 3) or (c, 4)
        own = fold[slot] == number
        model.fit(features[slots.shown[fitted]], slots.rewards[fitted])
        out[own] = model.predict(features[own])
    return out
