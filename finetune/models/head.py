"""Swapping a head by class name: shared classes keep their rows, new classes start from their class means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ClassMeans:
    """The nearest-class-mean classifier of some features, written as a linear layer.

    `weight` (C×F) and `bias` (C) give logits whose largest is the class whose mean is nearest in Euclidean distance:
    |x - m|² differs from -2(x·m - |m|²/2) by a term that is the same for all classes (Mensink et al. 2013, section 3).
    """

    weight: Tensor
    bias: Tensor


def class_means(features: Tensor, labels: Tensor, classes: int) -> ClassMeans:
    """From features (float, N×F) and labels (int64, N, each class present).

    Means are taken about the overall mean of the classes, which moves every logit by the same amount, and the logits
    are divided by the mean squared distance within classes so that the softmax is neither flat nor a step.
    """
    features = features.double()
    means = torch.stack([features[labels == c].mean(0) for c in range(classes)])
    centre = means.mean(0)
    within = (features - means[labels]).square().sum(1).mean().clamp_min(1e-6)
    weight = (means - centre) / within
    bias = -(means.square().sum(1) - centre.square().sum()) / (2 * within)
    return ClassMeans(weight, bias)


def shared_rows(source_classes: Sequence[str], target_classes: Sequence[str]) -> dict[str, str]:
    """{target class: source class} for the classes that both know, in the target's order; names must be equal."""
    known = set(source_classes)
    return {name: name for name in target_classes if name in known}


def swap_head(
    head: nn.Linear,
    source_classes: Sequence[str],
    target_classes: Sequence[str],
    *,
    means: ClassMeans | None,
    keep_rows: bool,
) -> tuple[nn.Linear, dict[str, str]]:
    """A head for `target_classes` and the map {target class: source class} of the rows it took over.

    Rows of new classes come from `means` (of the target's classes, in its order) or, without them, from torch's default
    initialisation. Where old and new rows meet, the new ones are scaled to the mean length of the old, so that neither
    side wins by size alone.
    """
    reused = shared_rows(source_classes, target_classes) if keep_rows else {}
    new = nn.Linear(head.in_features, len(target_classes)).to(head.weight)
    old_row = {name: i for i, name in enumerate(source_classes)}
    fresh = [i for i, name in enumerate(target_classes) if name not in reused]
    with torch.no_grad():
        for i, name in enumerate(target_classes):
            if name in reused:
                new.weight[i] = head.weight[old_row[reused[name]]]
                new.bias[i] = head.bias[old_row[reused[name]]]
        if means is not None and fresh:
            weight, bias = means.weight[fresh], means.bias[fresh]
            if reused:
                scale = head.weight.norm(dim=1).mean() / weight.norm(dim=1).mean().clamp_min(1e-12)
                weight, bias = weight * scale, bias * scale
            new.weight[fresh], new.bias[fresh] = weight.to(new.weight), bias.to(new.bias)
    return new, reused
