"""Interpolated weights (WiSE-FT): mixes of source and fine-tuned network, and the choice of one of them.

Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from finetune.train.temperature import fit_temperature

WEIGHTS = tuple(step / 10 for step in range(11))  # of the fine-tuned network in a mix; the last is that network itself
TOLERANCE = 0.02  # nats of mean log loss: so near to the fine-tuned network's is as good
CONFIDENCE = 0.95  # of each one-sided test


@dataclass(frozen=True)
class Mix:
    """One mix, `weight` of it the fine-tuned network, and what it is chosen by.

    log_losses: of each validation image, at a temperature of the mix's own (float64, N). accuracy: on the same images.
    source_accuracy: on images of the source's task, None where there are none.
    """

    weight: float
    log_losses: Tensor
    accuracy: float
    source_accuracy: float | None = None


@torch.no_grad()
def mixed_state(
    source: Mapping[str, Tensor],
    adapted: Mapping[str, Tensor],
    weight: float,
    head: Collection[str],
    source_head: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mixes two networks' tensors: (1 - weight) · source + weight · adapted, exactly one of them at 0 and 1.

    Running statistics are mixed too; whole numbers are the adapted network's. So are the tensors of the `head`, as the
    source's is for other classes, unless `source_head` has the source's rows for the same classes.
    """
    start = {name: t for name, t in source.items() if name not in head} | dict(source_head or {})
    return {
        name: torch.lerp(start[name].to(own), own, weight) if name in start and own.is_floating_point() else own.clone()
        for name, own in adapted.items()
    }


def score_mix(weight: float, logits: Tensor, labels: Tensor, source_accuracy: float | None) -> Mix:
    """Scores a mix on validation images: logits (float, N×C) and labels (int64, N).

    Each mix gets its own temperature: label smoothing leaves the fine-tuned network unsure on purpose, and a mix that
    is merely surer of itself would look better.
    """
    given, labels = logits.cpu().double(), labels.cpu()
    losses = torch.nn.functional.cross_entropy(given / fit_temperature(given, labels), labels, reduction="none")
    return Mix(weight, losses, float((given.argmax(1) == labels).double().mean()), source_accuracy)


def nearest_equivalent(mixes: Sequence[Mix]) -> Mix:
    """Chooses the mix nearest to the source that is as good on validation images as the last, the fine-tuned network.

    As good: a mean log loss that differs by at most TOLERANCE (two one-sided paired tests), or that is lower even when
    as many tests as there are mixes are counted. Accuracy would not do: it ties over many mixes on a few images.
    """
    last = mixes[-1]
    return next(mix for mix in mixes if mix is last or _is_as_good(mix.log_losses - last.log_losses, len(mixes) - 1))


def _is_as_good(differences: Tensor, tests: int) -> bool:
    """Whether differences of log loss from the fine-tuned network's (float64, N) show that a mix is as good."""
    count = len(differences)
    if count < 2:
        return False
    mean, error = float(differences.mean()), float(differences.std()) / count**0.5
    either, any_of_all = (NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / number) for number in (1, tests))
    return bool(abs(mean) + either * error <= TOLERANCE or mean + any_of_all * error < 0)


def best_retaining(mixes: Sequence[Mix], least: float) -> Mix:
    """Chooses the most accurate mix on validation images whose accuracy on the source's images is at least `least`.

    Of equally accurate ones the nearest to the fine-tuned network; where none keeps so much, the one that keeps most.
    """
    known = [(mix, mix.source_accuracy) for mix in mixes if mix.source_accuracy is not None]
    if kept := [mix for mix, accuracy in known if accuracy >= least]:
        return max(kept, key=lambda mix: (mix.accuracy, mix.weight))
    return max(known, key=lambda pair: (pair[1], pair[0].weight))[0]
