"""Fits the best linear head on fixed features: logistic regression by L-BFGS."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from finetune.train.balance import LossBalance, balanced_cross_entropy

# Factors of half the squared weights, beside a mean loss on standardised features. The strongest comes first; each
# solution is the start for the next.
PENALTIES = tuple(10.0**k for k in range(1, -7, -1))
PATIENCE = 2  # penalties in a row that are no better before the weaker ones are left out
FOLDS = 5
MAX_LOGITS = 16_000_000  # images × classes at once: 128 MB in float64, and several times as much with gradients
Pair = tuple[Tensor, Tensor]


def fit_linear_head(
    features: Tensor, labels: Tensor, classes: int, validation: Pair | None, balance: LossBalance | None = None
) -> nn.Linear:
    """Multinomial logistic regression on `features` (float, N×F) and `labels` (int64, N), as a linear layer.

    It is fitted on standardised features. The L2 penalty is the one with the lowest cross-entropy on `validation`
    (features and labels), or over five folds of the training images when there are no validation images. `balance` is
    what the loss makes of uneven classes, that on held-out images too.
    """
    features = features.cpu().double()
    mean, std = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    train = ((features - mean) / std, labels.cpu())
    if validation is not None and len(validation[1]):
        held = ((validation[0].cpu().double() - mean) / std, validation[1].cpu())
        weight, bias = _best_on_validation(train, held, classes, balance)
    else:
        weight, bias = _best_over_folds(train, classes, balance)
    head = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(weight / std)
        head.bias.copy_(bias - (weight / std) @ mean)
    return head


def _best_on_validation(train: Pair, held: Pair, classes: int, balance: LossBalance | None) -> Pair:
    best, fitted, worse = float("inf"), None, 0
    for weight, bias, loss in _penalty_path(train, held, classes, balance):
        if loss < best:
            best, fitted, worse = loss, (weight, bias), 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    assert fitted is not None, "the loss on the held-out images is not a number"
    return fitted


def _best_over_folds(train: Pair, classes: int, balance: LossBalance | None) -> Pair:
    losses = [[loss for *_, loss in _penalty_path(rest, fold, classes, balance)] for rest, fold in _folds(*train)]
    penalty = PENALTIES[int(torch.tensor(losses).sum(0).argmin())] if losses else PENALTIES[1]
    return _fit(train, classes, penalty, None, balance)


def _penalty_path(
    train: Pair, held: Pair, classes: int, balance: LossBalance | None
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Weight and bias at each penalty's optimum, with the summed cross-entropy on `held`."""
    start = None
    for penalty in PENALTIES:
        start = _fit(train, classes, penalty, start, balance)
        weight, bias, loss = *start, 0.0
        for rows in row_blocks(len(held[1]), classes):
            logits = held[0][rows] @ weight.T + bias
            loss += float(balanced_cross_entropy(logits, held[1][rows], balance, reduction="sum"))
        yield weight, bias, loss


def stratified_folds(labels: Tensor) -> Tensor:
    """The fold of each image, 0 to 4: the images of a class (`labels`: int64, N) go round the five."""
    fold, order, counts = torch.empty_like(labels), labels.argsort(stable=True), torch.bincount(labels)
    fold[order] = (torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]) % FOLDS
    return fold


def row_blocks(count: int, classes: int) -> Iterator[slice]:
    """Slices of `count` rows, each of at most MAX_LOGITS logits (a row at least)."""
    size = max(1, MAX_LOGITS // classes)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def head_score(head: nn.Linear, features: Tensor, labels: Tensor, balance: LossBalance | None) -> tuple[float, Tensor]:
    """Mean loss of a head on features (float, N×F) with labels (int64, N), and the class it names: int64, N."""
    loss, named = 0.0, []
    with torch.no_grad():
        for rows in row_blocks(len(labels), head.out_features):
            logits = head(features[rows]).float().cpu()
            share = len(logits) / len(labels)
            loss += share * float(balanced_cross_entropy(logits, labels[rows], balance))
            named.append(logits.argmax(1))
    return loss, torch.cat(named)


def _folds(inputs: Tensor, labels: Tensor) -> Iterator[tuple[Pair, Pair]]:
    """Stratified splits into rest and fold, five in all; a fold that would be empty is left out."""
    fold = stratified_folds(labels)
    for k in range(FOLDS):
        if bool((fold == k).any()) and bool((fold != k).any()):
            yield (inputs[fold != k], labels[fold != k]), (inputs[fold == k], labels[fold == k])


def _fit(train: Pair, classes: int, penalty: float, start: Pair | None, balance: LossBalance | None = None) -> Pair:
    """Weight (C×F) and bias (C) at the optimum, by L-BFGS (Liu and Nocedal 1989) with a strong Wolfe search."""
    inputs, labels = train
    if start is None:
        start = (inputs.new_zeros(classes, inputs.shape[1]), inputs.new_zeros(classes))
    weight, bias = (t.clone().requires_grad_() for t in start)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        total = torch.zeros((), dtype=weight.dtype)
        for rows in row_blocks(len(labels), classes):
            share = (rows.stop - rows.start) / len(labels)
            loss = share * balanced_cross_entropy(inputs[rows] @ weight.T + bias, labels[rows], balance)
            loss.backward()
            total += loss.detach()
        loss = 0.5 * penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return total + loss.detach()

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    solver.state.clear()  # 200 times the head, which would stay until the collector finds the solver
    return weight.detach(), bias.detach()
