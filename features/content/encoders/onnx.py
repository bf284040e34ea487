"""Torch models exported once to ONNX and run by onnxruntime: several times faster on a CPU, and equal to 1e-5."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import Floats
from features.errors import StoreError, describe_read_error, missing_package


class Session:
    """An ONNX model with one input and one output, for arrays of any batch size."""

    def __init__(self, file: Path, export: Callable[[Path], None]) -> None:
        """Opens `file`; if it does not exist, `export` writes it first.

        Raises DependencyError when onnxruntime is missing, and StoreError when the file is damaged.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package("an encoder", "onnxruntime", "encoders") from error
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.part")
            export(partial)
            os.replace(partial, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # batches run in parallel instead: see `features.content.encoders.frozen`
        try:
            file.open("rb").close()  # the system says why it cannot be opened
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has one class for each cause
            why = describe_read_error(error)
            raise StoreError(f"{file}: cannot be loaded: {why}; remove it, and it is exported again") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, batch: Any) -> Floats:
        """The output of the model, float32."""
        return np.asarray(self._session.run(None, {self._input: batch})[0], dtype=np.float32)


def export(model: Any, example: Any, dynamic: dict[int, str], file: Path) -> None:
    """Write a torch module as ONNX; dynamic: axis of its input -> name, for axes of any length."""
    try:
        import onnxscript  # noqa: F401  # torch needs it later and would raise a longer error
        import torch
    except ImportError as error:
        raise missing_package("the export of an encoder", error.name, "encoders") from error
    # the exporter knows torchvision's operators, which no encoder here has
    logging.getLogger("torch.onnx._internal.exporter._registration").addFilter(_not_about_torchvision)
    shapes = ({axis: torch.export.Dim(name) for axis, name in dynamic.items()},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            model.eval(), (example,), dynamo=True, dynamic_shapes=shapes, optimize=True, verbose=False
        )
    assert program is not None
    program.save(str(file))


def _not_about_torchvision(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("torchvision is not installed")
