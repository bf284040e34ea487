"""What rotation takes from the scores of products that were shown: by hand."""

from pathlib import Path

import numpy as np
import pytest
from test_recsys_rules import CATALOG, VECTORS, N, rules_of

from features.errors import ConfigError
from features.instants import DAY
from recsys.interfaces import Candidates
from recsys.ranking.rules import Rotation, load_rules
from recsys.ranking.slate import fill_slates, item_groups
from recsys.ranking.slate_rules import Losses, SlateRules, compile_rules

NOW = 1_000 * DAY
PRODUCTS = np.arange(6)


def losses(shown: dict[int, list[float]], touched: dict[int, list[float]] | None = None) -> list[float]:
    """Of products 0 to 5. shown, touched: product -> days before now, of a rule {by: 0.5, days: 7}."""

    def columns(days: dict[int, list[float]]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [(product, NOW - round(day * DAY)) for product, ago in days.items() for day in ago]
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    rule = Rotation(by=0.5, days=7)
    return [
        round(loss, 12) for loss in Losses.of(rule, *columns(shown), *columns(touched or {}), NOW).among(PRODUCTS)
    ]


def test_the_loss_falls_with_the_age_of_the_last_showing() -> None:
    # 0.5 * (1 - 3.5/7) = 0.25; 0.5 * (1 - 0.7/7) = 0.45; of two showings the newest counts
    assert losses({1: [3.5], 4: [6, 0.7, 2], 2: [7], 3: [8]}) == [0, 0.25, 0, 0, 0.45, 0]
    assert losses({}) == [0] * 6


def test_a_touch_after_the_last_showing_ends_the_loss() -> None:
    shown = {0: [3.5], 1: [3.5], 2: [3.5], 3: [3.5, 1.4]}
    # 0: touched later; 1: touched at that moment; 2: touched before; 3: shown again after the touch, 0.5 * (1 - .2)
    assert losses(shown, {0: [1], 1: [3.5], 2: [4], 3: [2], 5: [1], 9: [1]}) == [0, 0, 0.25, 0.4, 0, 0]


def test_showings_at_or_after_the_begin_of_the_list_do_not_count() -> None:
    assert losses({0: [0], 1: [-1], 2: [7 * (1 - 1e-3)]}) == [0, 0, 0.0005, 0, 0, 0]
    assert losses({0: [3.5, -1]}) == [0.25, 0, 0, 0, 0, 0]


def slate(rules: SlateRules, k: int = 4) -> list[int]:
    """Of the items 1, 4, 6, 7, 9, scored 1, .9, .8, .7, .6: their standard deviation is .1414."""
    rows, scores = np.array([1, 4, 6, 7, 9]), np.array([1, 0.9, 0.8, 0.7, 0.6], np.float32)

    def find(_: np.ndarray, n: int) -> Candidates:
        return Candidates(rows[None, :n], scores[None, :n])

    return fill_slates(find, 1, k, item_groups(CATALOG), rules).rows[0].tolist()


def test_what_was_shown_steps_back_by_standard_deviations_and_so_do_its_variants() -> None:
    (rule,) = rules_of({"rotation": {"by": 2, "days": 10}})
    plain = compile_rules([rule], CATALOG, VECTORS, NOW)
    assert not plain.notes
    assert slate(plain) == [1, 4, 6, 9]  # without showings, as in batch slates; 6 and 7 are variants
    assert not plain.reorders
    groups = item_groups(CATALOG)

    def rotated(row: int, days: float) -> SlateRules:
        times = np.array([NOW - round(days * DAY)])
        none = np.zeros(0, dtype=np.int64)
        loss = Losses.of(Rotation(by=2, days=10), groups[[row]], times, none, none, NOW)
        return SlateRules(np.ones(N, dtype=np.bool_), losses=loss)

    # 1 is 1.41 above the mean, 4 .71, 6 0, 7 -.71, 9 -1.41
    assert slate(rotated(1, 7)) == [1, 4, 6, 9]  # 1.41 - .6 = .81
    assert slate(rotated(1, 6)) == [4, 1, 6, 9]  # 1.41 - .8 = .61
    assert slate(rotated(1, 2)) == [4, 6, 1, 9]  # 1.41 - 1.6 = -.19
    assert slate(rotated(7, 1)) == [1, 4, 9, 6]  # 7 was shown: its variant 6 loses 1.8, too
    assert rotated(1, 7).reorders


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("{by: 0, days: 7}", "rotation.by: must be more than 0"),
        ("{by: -1, days: 7}", "rotation.by: must be more than 0"),
        ("{by: .nan, days: 7}", "rotation.by: must be"),
        ("{by: 1, days: 0}", "rotation.days: must be more than 0"),
        ("{by: 1, days: 366}", "rotation.days: must be 365 or less"),
        ("{by: 1}", "rotation.days: missing"),
    ],
)
def test_wrong_rules_are_refused_with_their_line(rule: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"rules:\n- name: a\n  rotation: {rule}\n")
    with pytest.raises(ConfigError, match="line 3: " + reason.replace(".", r"\.")):
        load_rules(file)


def test_two_rotations_of_one_request_contradict_each_other(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("rules:\n- {name: a, rotation: {by: 1, days: 7}}\n- {name: b, rotation: {by: 2, days: 7}}\n")
    with pytest.raises(ConfigError, match="line 3: 'b' contradicts 'a': both set rotation"):
        load_rules(file)
