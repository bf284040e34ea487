"""States of users as the feature store has them, in the form that recommenders read."""

from collections.abc import Iterable, Sequence

import numpy as np

from features.ids import IdMap
from features.interactions import Ragged, UserStates
from features.schema import EventRules
from features.store.user_state import UserState


def states_in_rows(users: Sequence[UserState], ids: IdMap, rules: EventRules, now: int) -> UserStates:
    """The states of b users with items as rows of a catalogue. Items that it lacks are skipped.

    ids: of the catalogue; now: µs; a state is as of now, or just after its latest event where that is later.
    """
    found, labels = [ids.rows(state.items) for state in users], [state.labels(rules) for state in users]
    known = [rows >= 0 for rows in found]
    ends = np.cumsum([mask.sum() for mask in known], dtype=np.int64)  # (b,)
    latest = [int(state.times[-1]) + 1 if len(state.times) else now for state in users]

    def joined(columns: Iterable[np.ndarray], kind: type = np.bool_) -> np.ndarray:
        kept = (column[mask] for column, mask in zip(columns, known, strict=True))
        return np.concatenate([np.empty(0, kind), *kept])

    return UserStates(
        users=np.full(len(users), -1, dtype=np.int64),
        as_of=np.maximum(np.array(latest, dtype=np.int64), now),
        items=Ragged(joined(found, np.int64), np.append(np.zeros(1, np.int64), ends)[:-1], ends),
        times=joined((state.times for state in users), np.int64),
        positive=joined(label.positive for label in labels),
        seen=joined(label.seen for label in labels),
        types=joined((label.types for label in labels), np.int64),
    )
