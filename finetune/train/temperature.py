"""Temperature scaling: one number that makes a network's probabilities as large as its answers are often right.

Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks, ICML 2017.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_RANGE = 3.0  # of the temperature's logarithm either way: a factor of 20


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T with the lowest cross-entropy of logits / T (float, N×C) on labels (int64, N).

    Between exp(-3) and exp(3), to four significant digits; never changes which class is the most probable.
    """
    from scipy.optimize import minimize_scalar

    given, true = logits.double().cpu(), labels.cpu()

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(given / math.exp(log_temperature), true))

    found = minimize_scalar(loss, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded")
    return float(f"{math.exp(found.x):.4g}")
