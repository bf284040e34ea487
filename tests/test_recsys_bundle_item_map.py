"""The map of items: near items are near on it, and the same vectors give the same map."""

import sys

import numpy as np
import pytest

from recsys.bundle import item_map
from recsys.bundle.item_map import fit_map


def clusters(n: int, groups: int, d: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (n, d) around as many centres as groups, and the group of each."""
    rng = np.random.default_rng(seed)
    of = np.arange(n) % groups
    vectors = 3 * rng.standard_normal((groups, d))[of] + 0.3 * rng.standard_normal((n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), of


def share_of_own_group(points: np.ndarray, of: np.ndarray) -> float:
    """How often the nearest point is of the same group."""
    far = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(far, np.inf)
    return float((of[far.argmin(axis=1)] == of).mean())


@pytest.mark.parametrize("sample", [10_000, 300])
def test_neighbours_stay_neighbours(monkeypatch: pytest.MonkeyPatch, sample: int) -> None:
    monkeypatch.setattr(item_map, "SAMPLE", sample)
    vectors, of = clusters(600, 20)
    made = fit_map(vectors, 0)
    assert made.method == "t-SNE"
    assert (made.points.shape, made.points.dtype) == ((600, 2), np.float32)
    assert share_of_own_group(made.points, of) > 0.95
    assert np.array_equal(fit_map(vectors, 0).points, made.points)
    assert (made.points.min(), made.points.max()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_few_items_and_no_library_are_placed_by_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    line = np.array([[3.0, 0, 1], [0, 0, 1], [-3, 1, 1], [0, -1, 1]], dtype=np.float32)
    made = fit_map(line, 0)
    assert made.method == "PCA"
    # the longest direction first, from 0 to 1; the middle of the others in the middle
    assert made.points[:, 0].argsort().tolist() in ([0, 1, 3, 2], [0, 3, 1, 2], [2, 1, 3, 0], [2, 3, 1, 0])
    assert np.ptp(made.points[:, 0]) == pytest.approx(1)
    assert np.ptp(made.points[:, 1]) < 0.5
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    monkeypatch.setattr(item_map, "find_spec", lambda name: None)
    assert fit_map(clusters(600, 20)[0], 0).method == "PCA"


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_items_are_a_map(n: int) -> None:
    points = fit_map(np.eye(n, 4, dtype=np.float32), 0).points
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()


def test_equal_items_stand_in_the_middle() -> None:
    assert fit_map(np.ones((5, 3), dtype=np.float32), 0).points.tolist() == [[0.5, 0.5]] * 5
