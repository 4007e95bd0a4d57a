"""Temperature scaling: one number that logits are divided by, fitted to held-out images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_RANGE = (-3.0, 3.0)  # of the natural logarithm of a temperature: 0.05 to 20


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the temperature T > 0 at which logits / T have the lowest mean log loss (Guo et al., arXiv:1706.04599).

    logits: float, N×C. labels: int64, N. The logarithm of T is searched for from -3 to 3.
    """
    from scipy.optimize import minimize_scalar

    given, classes = logits.detach().cpu().double(), labels.cpu()

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(given / math.exp(log_temperature), classes))

    return math.exp(float(minimize_scalar(loss, bounds=LOG_RANGE, method="bounded").x))
