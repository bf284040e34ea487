"""Labels and training weights of canonical events."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from features.history_rules import Labels
from features.schema import EventRules
from features.tables.read import event_weights

RULES = EventRules(positive={"buy": None, "rate": 3.5})


def test_positive_and_seen_events() -> None:
    events = pl.DataFrame(
        {
            "event": ["buy", "buy", "rate", "rate", "rate", "look"],
            "value": [None, -1.0, 3.5, 3.4, None, 9.0],
        }
    )
    labels = Labels.of_frame(events, RULES)
    assert labels.positive.tolist() == [True, True, True, False, False, False]
    assert labels.seen.all()
    assert labels.types.tolist() == [1, 1, 2, 2, 2, 0]
    assert labels.positive.dtype == labels.seen.dtype == np.bool_
    others = Labels.of_frame(events, EventRules(positive={"never": None}, seen=("look", "rate", "other")))
    assert others.seen.tolist() == [False, False, True, True, True, True]
    none = Labels.of_frame(events.head(0), RULES)
    assert none.positive.shape == none.seen.shape == none.types.shape == (0,)


def test_training_weights() -> None:
    events = pl.DataFrame({"event": ["buy", "rate", "look", None]})
    assert event_weights(events, RULES) is None
    weights = event_weights(events, RULES.model_copy(update={"weights": {"buy": 2.5}}))
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == [2.5, 1.0, 1.0, 1.0]
    with pytest.raises(ValidationError, match="weights of look, see: only types named in `positive`"):
        EventRules(positive={"buy": None}, weights={"see": 1, "look": 2})
