"""Swaps a head by class name: shared classes keep their rows, new classes start from their class means."""

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
    """The nearest-class-mean classifier of features (float, N×F) with labels (int64, N, each class present).

    Means are taken about the overall mean of the classes, which moves every logit by the same amount, and the logits
    are divided by the mean squared distance within classes so that the softmax is neither flat nor a step.
    """
    features = features.double()
    order, counts = labels.argsort(stable=True), torch.bincount(labels, minlength=classes)
    means = torch.stack([own.mean(0) for own in torch.split(features[order], counts.tolist())])
    centre = means.mean(0)
    within = (features - means[labels]).square().sum(1).mean().clamp_min(1e-6)
    weight = (means - centre) / within
    bias = -(means.square().sum(1) - centre.square().sum()) / (2 * within)
    return ClassMeans(weight, bias)


def swap_head(
    head: nn.Linear,
    source_classes: Sequence[str],
    target_classes: Sequence[str],
    *,
    means: ClassMeans | None,
    keep_rows: bool,
) -> tuple[nn.Linear, dict[str, str]]:
    """Makes a head for `target_classes`; returns it and {target class: source class} for the rows it kept.

    With `keep_rows`, a class that the source has by the same name keeps its row. Other rows come from `means` (of the
    target's classes, in its order) or, without them, from torch's default initialisation. Where old and new rows meet,
    the new ones are scaled to the mean length of the old, so that neither side wins by size alone.
    """
    old_row = {name: row for row, name in enumerate(source_classes)} if keep_rows else {}
    reused = [row for row, name in enumerate(target_classes) if name in old_row]
    fresh = [row for row, name in enumerate(target_classes) if name not in old_row]
    new = nn.Linear(head.in_features, len(target_classes)).to(head.weight)
    with torch.no_grad():
        rows = [old_row[target_classes[row]] for row in reused]
        new.weight[reused], new.bias[reused] = head.weight[rows], head.bias[rows]
        if means is not None and fresh:
            weight, bias = means.weight[fresh], means.bias[fresh]
            if reused:
                scale = head.weight.norm(dim=1).mean() / weight.norm(dim=1).mean().clamp_min(1e-12)
                weight, bias = weight * scale, bias * scale
            new.weight[fresh], new.bias[fresh] = weight.to(new.weight), bias.to(new.bias)
    return new, {target_classes[row]: target_classes[row] for row in reused}
