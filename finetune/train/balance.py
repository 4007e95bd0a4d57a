"""Losses for classes that are uneven in number: weights, and logits adjusted by the classes' shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLER, LOSS, LOGIT_ADJUSTMENT = "sampler", "loss", "logit_adjustment"
TAU = 1.0  # of the log share that is added to a logit; 1 is consistent for the balanced error


@dataclass(frozen=True)
class LossBalance:
    """What a loss makes of uneven classes; tensors are float, C. At most one of the two is given.

    weights: of an image by its class. log_priors: added to the logits in training, and left out when predicting.
    """

    weights: Tensor | None = None
    log_priors: Tensor | None = None

    def placed(self, device: torch.device) -> LossBalance:
        """The same in float32 on a device."""
        return LossBalance(*(t if t is None else t.to(device, torch.float32) for t in (self.weights, self.log_priors)))


def loss_balance(method: str | None, labels: Tensor, classes: int, *, sampled: bool) -> LossBalance | None:
    """The balance of a loss on training images with these labels (int64, N); None where it counts all images alike.

    method: `loss` weights the images inversely to the number of their class, so that the mean weight of an image is 1.
    `logit_adjustment` adds the log of each class's share to its logit (Menon et al., arXiv:2007.07314, with τ = 1).
    `sampler` changes which images are drawn, and so not the loss where `sampled`; where nothing is drawn, as in a head
    that is solved on all images at once, it weights as `loss` does, which is what the draws come to on average.
    """
    if method is None or (method == SAMPLER and sampled):
        return None
    counts = torch.bincount(labels.cpu(), minlength=classes).double()
    if method == LOGIT_ADJUSTMENT:
        return LossBalance(log_priors=TAU * (counts.clamp_min(1) / counts.sum()).log())
    present = int((counts > 0).sum())
    return LossBalance(weights=torch.where(counts > 0, counts.sum() / (present * counts.clamp_min(1)), 0.0))


def balanced_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    balance: LossBalance | None,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of `logits` (float, N×C), its mean or sum over the images.

    labels: classes (int64, N), or of mixed images the classes' shares (float, N×C). A mixed image weighs what its
    classes weigh in these shares; smoothing the labels changes no weight. Where logits are adjusted, smoothing spreads
    over the classes by their shares, which is evenly once the adjustment is left out; spread evenly before, it would
    raise the plain logits of rare classes above those of the right one.
    """
    if balance is not None and balance.log_priors is not None:
        log_priors = balance.log_priors.to(logits)
        logits = logits + log_priors
        if label_smoothing:
            shares = labels if labels.dim() == 2 else F.one_hot(labels, logits.shape[1])
            labels = (1 - label_smoothing) * shares.to(logits) + label_smoothing * log_priors.softmax(0)
            label_smoothing = 0.0
    if balance is None or balance.weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)
    weights = balance.weights.to(logits)
    each = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    weighted = each * (weights[labels] if labels.dim() == 1 else labels.to(logits) @ weights)
    return weighted.mean() if reduction == "mean" else weighted.sum()


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The mean over classes of the share of their images that is named rightly; both int64, N."""
    truth = labels.cpu()
    counts = torch.bincount(truth)
    right = torch.bincount(truth[predicted.cpu() == truth], minlength=len(counts))
    return float((right[counts > 0].double() / counts[counts > 0]).mean())
