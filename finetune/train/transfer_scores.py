"""Scores of frozen features that guess how well a network will do on a task once it is fine-tuned, in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.data.image_dataset import ImageSet
from finetune.errors import TrainingError
from finetune.train.linear_probe import FOLDS, PATIENCE, PENALTIES, stratified_folds

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
MAX_IMAGES, MIN_PER_CLASS = 2_000, 10  # that are scored: more would tell sources apart little better
NEIGHBOURS = 5
GRADIENT, MAX_STEPS = 1e-4, 200  # where the solver of the probe stops
CHUNK = 1_000  # images whose neighbours are looked for at once
RATIOS = 10.0 ** torch.arange(-10, 5, 0.25, dtype=torch.float64)  # of noise to the largest variance of the features
REFINEMENTS = 4  # of the best ratio, each five times finer


@dataclass(frozen=True)
class TransferScores:
    """How well features serve a task, each higher for better; from labelled images to learn from alone.

    knn, probe: share of images whose class the nearest neighbours, or a linear head, of the other four folds name; None
    where no class has two images. logme: mean log evidence of a label.
    """

    knn: float | None
    probe: float | None
    logme: float


def sample_to_score(train: ImageSet) -> ImageSet:
    """The training images; of more than MAX_IMAGES as many of each class as make up that number, at least ten."""
    if len(train) <= MAX_IMAGES:
        return train
    each = max(MIN_PER_CLASS, MAX_IMAGES // len(train.class_names))
    classes = [(train.labels == c).nonzero().squeeze(1) for c in range(len(train.class_names))]
    spread = [own[torch.arange(min(each, len(own))) * len(own) // min(each, max(1, len(own)))] for own in classes]
    return train.subset(torch.cat(spread).sort().values)


def transfer_scores(features: Tensor, labels: Tensor, classes: int) -> TransferScores:
    """The scores of `features` (float, N×F) of images with `labels` (int64, N). TrainingError unless all are finite."""
    features, labels = features.cpu().double(), labels.cpu()
    if not bool(features.isfinite().all()):
        raise TrainingError("its features of the training images are not finite numbers")
    return TransferScores(
        knn=knn_accuracy(features, labels, classes),
        probe=probe_accuracy(features, labels, classes),
        logme=log_evidence(features, labels, classes),
    )


def knn_accuracy(features: Tensor, labels: Tensor, classes: int) -> float | None:
    """How often the five nearest images of other folds, by the cosine of their features, vote for the true class.

    Of classes with as many votes the one with the nearer images wins. None where no class has two images.
    """
    fold, right = stratified_folds(labels), 0
    if not bool((fold > 0).any()):
        return None
    unit = torch.nn.functional.normalize(features - features.mean(0))
    for start in range(0, len(unit), CHUNK):
        part = slice(start, start + CHUNK)
        cosines = (unit[part] @ unit.T).masked_fill(fold[part, None] == fold[None], -math.inf)
        near, which = cosines.topk(min(NEIGHBOURS, len(unit)))
        votes = torch.where(near > -math.inf, 1 + near / 100, 0.0)  # so that nearness decides between equals alone
        counts = torch.zeros(len(near), classes, dtype=votes.dtype).scatter_add(1, labels[which], votes)
        right += int((counts.argmax(1) == labels[part]).sum())
    return right / len(labels)


def probe_accuracy(features: Tensor, labels: Tensor, classes: int) -> float | None:
    """The share of images that `probe_rights` names rightly; None where no class has two images."""
    right = probe_rights(features, labels, classes)
    return None if right is None else int(right.sum()) / len(labels)


def probe_rights(features: Tensor, labels: Tensor, classes: int) -> Tensor | None:
    """Whether the linear heads of five stratified folds name each image right that they did not learn from: bool, N.

    features: float64, N×F; labels: int64, N. Each head is a logistic regression as in `fit_linear_head`, with the
    penalty of the lowest cross-entropy over the folds together, down to PATIENCE penalties that are no better. None
    where no class has two images.
    """
    fold = stratified_folds(labels).numpy()
    if not fold.any():
        return None
    inputs, truth, rows = _coordinates(features).numpy(), labels.numpy(), np.arange(len(labels))
    heads = np.zeros((FOLDS, inputs.shape[1] + 1, classes))
    best, right, worse = math.inf, np.zeros(len(labels), dtype=bool), 0
    for penalty in PENALTIES:
        heads = _fit_folds(inputs, truth, fold, penalty, heads)
        logits = np.einsum("nf,nfc->nc", inputs, heads[fold, :-1]) + heads[fold, -1]
        loss = float((np.logaddexp.reduce(logits, axis=1) - logits[rows, truth]).sum())
        better = loss < best
        best, right = (loss, logits.argmax(1) == truth) if better else (best, right)
        worse = 0 if better else worse + 1
        if worse == PATIENCE:
            break
    return torch.from_numpy(right)


def _coordinates(features: Tensor) -> Tensor:
    """Standardised features; of fewer images than features only the coordinates in the space that the images span.

    The best head under an L2 penalty lies in that space, so that nothing changes but the time it takes.
    """
    inputs = (features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-6)
    if len(inputs) >= inputs.shape[1]:
        return inputs
    values, vectors = torch.linalg.eigh(inputs @ inputs.T)
    coordinates: Tensor = vectors * values.clamp_min(0).sqrt()
    return coordinates


def _fit_folds(inputs: Floats, labels: Integers, fold: Integers, penalty: float, start: Floats) -> Floats:
    """For each fold the head (weights and, last, biases: FOLDS×(F+1)×C) that is best on the images of the others.

    The folds are solved together, from `start`: the products are then large enough to be quick.
    """
    from scipy.optimize import minimize

    classes, (count, width) = start.shape[2], inputs.shape
    others = (fold != np.arange(FOLDS)[:, None]).astype(float)  # FOLDS×N
    shares = others / others.sum(axis=1, keepdims=True)
    truth = np.eye(classes)[labels]

    def loss(flat: Floats) -> tuple[float, Floats]:
        heads = flat.reshape(start.shape)
        weights = heads[:, :-1]
        logits = (inputs @ weights.transpose(1, 0, 2).reshape(width, -1)).reshape(count, FOLDS, classes)
        logits += heads[:, -1]
        logits -= logits.max(axis=2, keepdims=True)
        powers = np.exp(logits)
        sums = powers.sum(axis=2)
        log_shares = np.log(sums) - np.take_along_axis(logits, labels[:, None, None], axis=2)[:, :, 0]
        slopes = (powers / sums[:, :, None] - truth[:, None]) * shares.T[:, :, None]
        found = np.empty_like(heads)
        found[:, :-1] = (inputs.T @ slopes.reshape(count, -1)).reshape(width, FOLDS, classes).transpose(1, 0, 2)
        found[:, :-1] += penalty * weights
        found[:, -1] = slopes.sum(axis=0)
        return float((log_shares * shares.T).sum() + 0.5 * penalty * np.square(weights).sum()), found.ravel()

    options = {"maxiter": MAX_STEPS, "gtol": GRADIENT, "ftol": 1e-12}
    solved: Floats = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options).x
    return solved.reshape(start.shape)


def log_evidence(features: Tensor, labels: Tensor, classes: int) -> float:
    """LogME: the log evidence of the labels given the features, a label and class, under a linear Gaussian model.

    Each class is a target y of ones and zeros (N), y = F w + noise, with w ~ N(0, 1/α) and noise ~ N(0, 1/β). Its
    evidence N(y; 0, FFᵀ/α + I/β) is maximised over α and β: α has a closed form for a given ratio α/β, which is
    searched on a grid and refined, where the paper's iteration may run away with fewer images than features.

    Source: K. You, Y. Liu, J. Wang and M. Long, LogME: practical assessment of pre-trained models for transfer
    learning, ICML 2021.
    """
    targets = torch.nn.functional.one_hot(labels, classes).double()  # N×C
    count, wide = len(features), features.shape[1] > len(features)
    values, vectors = torch.linalg.eigh(features @ features.T if wide else features.T @ features)
    values = values.clamp_min(0)
    scale = values[-1].clamp_min(1e-300)
    if wide:
        shares = (vectors.T @ targets).square()  # R×C: of each target along each direction
    else:
        along = (vectors.T @ (features.T @ targets)).square()
        shares = torch.where(values[:, None] > 1e-12 * scale, along / values.clamp_min(1e-300)[:, None], 0.0)
    rest = (targets.square().sum(0) - shares.sum(0)).clamp_min(0)  # C: of each target outside all directions

    def evidence(ratio: Tensor) -> Tensor:  # G×C, for ratios that are the classes' own (G×C) or the same for all (G×1)
        spread = values / scale + ratio[..., None]  # G×C×R or G×1×R
        own = torch.einsum("gcr,rc->gc", 1 / spread, shares) if ratio.shape[1] > 1 else (1 / spread[:, 0]) @ shares
        misfit = own + rest / ratio
        others = (count - len(values)) * ratio.log()
        errors = count * (math.log(2 * math.pi) + 1 + (misfit / count).log())
        logs: Tensor = -0.5 * (errors + spread.log().sum(-1) + others)
        return logs

    best = RATIOS[evidence(RATIOS[:, None]).argmax(0)]  # C
    for finer in range(REFINEMENTS):
        steps = 10.0 ** (torch.linspace(-5, 5, 11, dtype=torch.float64) * 0.05 / 5**finer)
        grid = best * steps[:, None]
        best = grid.gather(0, evidence(grid).argmax(0)[None])[0]
    return float(evidence(best[None]).mean()) / count
