"""Fits the novelty score: reference vectors of training images, and a threshold from held-out ones."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.checkpoint.confidence import MAX_NOVELTY_BYTES, Novelty, NoveltyLayer
from finetune.models.novelty import decoded, nearest_distance

MAX_REFERENCES = 1_000  # training images that are kept
SHARE = 0.01  # of held-out images that are to be called unlike
LEVELS = 127  # of a signed byte


def reference_layer(cut: int, features: Tensor) -> NoveltyLayer:
    """The vectors (float, M×F) of a layer as a checkpoint keeps them, not yet standardised."""
    unit = torch.nn.functional.normalize(features.cpu().float())[: max(1, MAX_NOVELTY_BYTES // features.shape[1])]
    scale = max(float(unit.abs().max()), 1e-6) / LEVELS
    numbers = (unit / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    vectors = base64.b64encode(numbers.numpy().tobytes()).decode()
    return NoveltyLayer(cut=cut, count=len(unit), width=unit.shape[1], scale=scale, mean=0.0, std=1.0, vectors=vectors)


def distances(layers: Sequence[NoveltyLayer], features: Sequence[Tensor]) -> Tensor:
    """Distance of each image (N) to its nearest reference in each layer: float, N×layers."""
    if not layers:
        return torch.zeros(len(features[0]) if features else 0, 0)
    return torch.stack([nearest_distance(own, decoded(layer)) for layer, own in zip(layers, features, strict=True)], 1)


def fit_novelty(layers: Sequence[NoveltyLayer], held: Tensor) -> Novelty | None:
    """The score of these layers, standardised by held-out images' distances (float, N×layers); None for under two.

    The threshold is passed by SHARE of new images of the same kind (split conformal prediction); by 1 / (N + 1), above
    all of them, where they are too few for that.
    """
    count = len(held)
    if count < 2 or not layers:
        return None
    mean, std = held.double().mean(0), held.double().std(0).clamp_min(1e-6)
    scores = ((held.double() - mean) / std).mean(1).sort().values
    place = min(count, math.ceil((count + 1) * (1 - SHARE)))
    fitted = [
        layer.model_copy(update={"mean": float(m), "std": float(s)})
        for layer, m, s in zip(layers, mean, std, strict=True)
    ]
    threshold = float(scores[place - 1]) + 1e-6  # it is not itself above
    return Novelty(layers=fitted, threshold=threshold, share=max(SHARE, 1 / (count + 1)), images=count)
