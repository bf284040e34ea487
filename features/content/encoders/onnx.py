"""Torch models exported once to ONNX, run by onnxruntime: several times faster on a CPU, and equal to 1e-5."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import Floats
from features.errors import DependencyError, StoreError


class Session:
    """One input, one output, arrays of any batch."""

    def __init__(self, file: Path, export: Callable[[Path], None]) -> None:
        """Opens `file`; where it is not there, `export` writes it first. Raises DependencyError, and StoreError for a
        damaged file."""
        try:
            import onnxruntime
        except ImportError as error:
            raise DependencyError("encoders need onnxruntime: pip install 'recsys[encoders]'") from error
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            export(part)
            os.replace(part, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # several batches at a time instead: see `features.content.encoders.frozen`
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has a class of its own for each reason
            raise StoreError(f"{file}: cannot be loaded; remove it, and it is made again: {error}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, batch: Any) -> Floats:
        """The model's answer, float32."""
        return np.asarray(self._session.run(None, {self._input: batch})[0], dtype=np.float32)


def export(model: Any, example: Any, dynamic: dict[int, str], file: Path) -> None:
    """Write a torch module as ONNX; dynamic: axis of its one input -> name, for axes of any length."""
    try:
        import onnxscript  # noqa: F401  # which torch would miss later, with more words
        import torch
    except ImportError as error:
        raise DependencyError(f"exporting an encoder needs {error.name}: pip install 'recsys[encoders]'") from error
    shapes = ({axis: torch.export.Dim(name) for axis, name in dynamic.items()},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own workings
        program = torch.onnx.export(
            model.eval(), (example,), dynamo=True, dynamic_shapes=shapes, optimize=True, verbose=False
        )
    assert program is not None
    program.save(str(file))
