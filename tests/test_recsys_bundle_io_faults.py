"""Bundles that cannot be written, and a matrix that has no inverse."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from features.errors import DataError, FileError
from recsys.baselines import ease
from recsys.bundle import io


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "{root}: No space left on device; free space on its disk"),
        (
            RuntimeError("could not open x"),
            "{root}: it cannot be written there as it is; choose another path (RuntimeError: could not open x)",
        ),
    ],
)
def test_a_bundle_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    root, folders = tmp_path / "bundles", list[Path]()

    def write(folder: Path, *parts: Any) -> Any:
        folders.append(folder)
        (folder / "half").write_text("x")
        raise error

    monkeypatch.setattr(io, "_write_files", write)
    none: Any = None
    with pytest.raises(FileError) as caught:
        io.save_bundle(root, none, none, none, {})
    why = reason.format(root=root)
    assert str(caught.value) == f"the bundle cannot be written: {why}; nothing was published"
    assert folders[0].parent == root
    assert folders[0].name.startswith(".writing-")
    assert list(root.iterdir()) == []


def test_a_mistake_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, *parts: Any) -> Any:
        raise KeyError("wrong")

    monkeypatch.setattr(io, "_write_files", write)
    none: Any = None
    with pytest.raises(KeyError, match="wrong"):
        io.save_bundle(tmp_path, none, none, none, {})
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_is_not_built_is_not_saved(tmp_path: Path) -> None:
    recommender: Any = SimpleNamespace(index=[1, 2])
    none: Any = None
    with pytest.raises(TypeError, match="a bundle is saved with a built Index, given list"):
        io._save_indexes(tmp_path, none, recommender, None)


@pytest.mark.parametrize("block", [1, 2, 3, 512])
def test_a_matrix_is_inverted_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(ease, "_BLOCK", block)
    factor = np.random.default_rng(0).standard_normal((5, 5))
    matrix = (factor @ factor.T + 5 * np.eye(5)).astype(np.float32)
    inverse = scipy.linalg.inv(matrix.astype(np.float64))
    ease._invert(matrix)
    np.testing.assert_allclose(matrix, inverse, atol=1e-6)


def test_a_matrix_that_is_not_positive_definite() -> None:
    matrix = np.diag([1.0, 2.0, -1.0, 4.0]).astype(np.float32)
    with pytest.raises(DataError) as caught:
        ease._invert(matrix)
    assert str(caught.value) == "EASE: Cholesky of 4 items failed at row 3; raise regularization"
