"""Dropout that is fast on a CPU: torch's own draws its random numbers one by one, a tenth of a training step."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """x with a share `rate` of its coordinates zero and the others divided by 1 - rate; x itself outside training.

    Same contract as `torch.nn.functional.dropout`. Each call seeds a numpy stream (SFC64) from torch's global
    generator; each coordinate takes 16 bits of the stream.
    """
    if x.is_cuda or not training or rate == 0:
        return functional.dropout(x, rate, training)
    stream = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    draws = stream.random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]  # (x.numel(),)
    scale = (draws >= round(rate * 2**16)).astype(np.float32) * np.float32(1 / (1 - rate))
    return x * torch.from_numpy(scale).view(x.shape)
