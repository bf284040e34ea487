"""The export of a torch model to ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch

from features.content.encoders.onnx import Session, export
from features.errors import StoreError


def test_an_exported_model_gives_the_same_output_and_the_export_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript")
    model = torch.nn.Linear(2, 1)
    session = Session(tmp_path / "m.onnx", lambda file: export(model, torch.zeros(2, 2), {0: "n"}, file))
    batch = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    expected = model(torch.from_numpy(batch)).detach().numpy()
    assert np.allclose(session(batch), expected, atol=1e-6)
    assert "torchvision" not in capfd.readouterr().err + caplog.text  # it is not installed, and not needed


def test_a_damaged_model_is_told_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(StoreError) as caught:
        Session(tmp_path / "m.onnx", lambda file: None)
    assert str(caught.value) == (
        f"{tmp_path}/m.onnx: cannot be loaded: not what this version writes; remove it, and it is exported again"
    )
