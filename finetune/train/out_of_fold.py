"""Out-of-fold class probabilities: what other images say of each image's class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FOLDS = 5
LANDMARKS = 2_000  # images that the kernel is computed with, at most
RIDGE = 0.3  # added to the kernel's diagonal
WIDTH = 1.5  # of the kernel: the factor of squared distances over their median
BLOCK = 2_000

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def folds_by_hash(keys: Sequence[str]) -> Integers:
    """The fold of each image, 0 to FOLDS - 1, by a hash of its key; images of one group have one key."""
    digests = {key: hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in {*keys}}
    return np.array([int.from_bytes(digests[key], "little") % FOLDS for key in keys], dtype=np.int64)


def out_of_fold(features: Tensor, labels: Tensor, folds: Integers, classes: int) -> Floats:
    """Probabilities (N×C) of each image's class, from images of other folds only.

    features: float, N×F. labels: int64, N. A Gaussian kernel on features of length 1 and ridge regression on one-hot
    labels, with the kernel's Nyström approximation of LANDMARKS images; what it gives is clipped to 0 and sums to 1.
    Unlike logistic regression it does not strain to fit the labels that are wrong.
    """
    unit = torch.nn.functional.normalize(features.cpu().float().flatten(1) - features.cpu().float().flatten(1).mean(0))
    marks = unit[torch.linspace(0, len(unit) - 1, min(len(unit), LANDMARKS)).round().long()]
    scale = WIDTH / float(_squares(marks[:500], marks).median().clamp_min(1e-6))
    shares = torch.bincount(labels, minlength=classes).double() / len(labels)
    targets = torch.nn.functional.one_hot(labels, classes).double() - shares
    inner = torch.exp(-scale * _squares(marks, marks)).double()
    kernel = torch.cat([torch.exp(-scale * _squares(part, marks)) for part in torch.split(unit, BLOCK)])
    own = [torch.from_numpy(np.flatnonzero(folds == fold)) for fold in range(FOLDS)]
    products = [kernel[rows].double().T @ kernel[rows].double() for rows in own]
    moments = [kernel[rows].double().T @ targets[rows] for rows in own]
    found = torch.zeros(len(unit), classes, dtype=torch.float64)
    ridge = RIDGE * inner + 1e-6 * len(unit) * torch.eye(len(marks), dtype=torch.float64)
    for fold, rows in enumerate(own):
        left = torch.stack([p for k, p in enumerate(products) if k != fold]).sum(0) + ridge
        right = torch.stack([m for k, m in enumerate(moments) if k != fold]).sum(0)
        weights = torch.linalg.solve(left, right)
        found[rows] = kernel[rows].double() @ weights
    found = (found + shares).clamp_min(0)
    return (found / found.sum(1, keepdim=True).clamp_min(1e-9)).numpy()


def _squares(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances of vectors of length 1 (N×F, M×F): N×M."""
    return (2 - 2 * one @ other.T).clamp_min(0)
