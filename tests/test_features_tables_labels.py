"""Labels and training weights of canonical events."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from features.schema import EventRules
from features.tables.read import event_weights, label_events

RULES = EventRules(positive={"buy": None, "rate": 3.5})


def test_positive_and_seen_events() -> None:
    events = pl.DataFrame(
        {
            "event": ["buy", "buy", "rate", "rate", "rate", "look"],
            "value": [None, -1.0, 3.5, 3.4, None, 9.0],
        }
    )
    positive, seen = label_events(events, RULES)
    assert positive.tolist() == [True, True, True, False, False, False]
    assert seen.all()
    assert positive.dtype == seen.dtype == np.bool_
    _, seen = label_events(events, EventRules(positive={"never": None}, seen=("look", "rate", "other")))
    assert seen.tolist() == [False, False, True, True, True, True]
    positive, seen = label_events(events.head(0), RULES)
    assert positive.shape == seen.shape == (0,)


def test_training_weights() -> None:
    events = pl.DataFrame({"event": ["buy", "rate", "look", None]})
    assert event_weights(events, RULES) is None
    weights = event_weights(events, RULES.model_copy(update={"weights": {"buy": 2.5}}))
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == [2.5, 1.0, 1.0, 1.0]
    with pytest.raises(ValidationError, match="weights of look, see: only types named in `positive`"):
        EventRules(positive={"buy": None}, weights={"see": 1, "look": 2})
