"""Temperature scaling: one number that makes a network's probabilities as large as its answers are often right.

Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks, ICML 2017.
"""

from __future__ import annotations

import math

from torch import Tensor

LOG_RANGE = 4.6  # of the temperature's logarithm either way: a factor of nearly 100


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T with the lowest cross-entropy of logits / T (float, N×C) on labels (int64, N).

    One mistake more than was seen counts, spread over the images: of images that are all named rightly the best
    temperature would be 0, and every answer certain. Between 0.01 and 100, to four significant digits; it never
    changes which class is the most probable.
    """
    from scipy.optimize import minimize_scalar

    given, true = logits.double().cpu(), labels.cpu()
    highest = given.argmax(1, keepdim=True)

    def loss(log_temperature: float) -> float:
        logs = (given / math.exp(log_temperature)).log_softmax(1)
        mistake = logs.scatter(1, highest, -math.inf).logsumexp(1)  # of the probability that the answer is wrong
        return -float(logs.gather(1, true[:, None]).mean() + mistake.mean() / len(true))

    found = minimize_scalar(loss, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded")
    return float(f"{math.exp(found.x):.4g}")
