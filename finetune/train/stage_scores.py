"""Which stages of a network a new task asks to train: a probe at each boundary, and each stage's relative gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from finetune.data.image_dataset import Images
from finetune.data.normalize import Normalizer
from finetune.errors import TrainingError
from finetune.models.staged import StagedNetwork, eval_mode
from finetune.train.freeze import set_trainable
from finetune.train.inference import empty_rows, eval_batch_size

SIDES, MAX_WIDTH = (4, 2, 1), 1024  # of a pooled map: the largest side with which it is no wider than that
BATCH = 64  # images whose gradients are averaged before their length is taken: noise makes those of fewer longer
MAX_BATCHES = 8  # more would move the mean little: it is compared with halves of others
ENOUGH = 0.98  # right at the head's input: then at most 2 points are left for other stages to win
SHARE = 0.5  # of the largest relative gradient, from which on a stage trains


@torch.no_grad()
def boundary_features(network: StagedNetwork, images: Images, normalize: Normalizer) -> dict[int, Tensor]:
    """Pooled outputs (float, N×F, on the CPU) at every cut between two stages, by the cut, from one pass over `images`.

    images: uint8, N×C×H×W. Keys are those of `network.cuts` that are neither at the input nor behind the head.
    """
    size = eval_batch_size(normalize.pixels(images), normalize.scale.device)
    found: dict[int, Tensor] = {}
    with eval_mode(network):
        for start in range(0, len(images), size):
            x, rows = normalize(images[start : start + size]), slice(start, start + size)
            for before, cut in pairwise(cut for cut in network.cuts if cut < len(network.stages)):
                x = network.run(x, before, cut)
                pooled = pool(x).float().cpu()
                whole = found.setdefault(cut, empty_rows(len(images), pooled))
                whole[rows] = pooled
    return found


def pool(x: Tensor) -> Tensor:
    """A stage's outputs as features, B×F: maps averaged to at most 4×4 places, tokens (B×T×D) over all of them.

    Maps are B×C×H×W or, as some networks have them, B×H×W×C; they are taken to be square.
    """
    if x.ndim == 3:
        return x.mean(1)
    if x.ndim != 4:
        return x.flatten(1)
    if x.shape[2] != x.shape[3] and x.shape[1] == x.shape[2]:
        x = x.permute(0, 3, 1, 2)
    side = next((side for side in SIDES if x.shape[1] * side**2 <= MAX_WIDTH), SIDES[-1])
    return adaptive_avg_pool2d(x, min(side, *x.shape[2:])).flatten(1)


def relative_gradients(
    network: StagedNetwork, images: Images, labels: Tensor, normalize: Normalizer
) -> dict[str, float]:
    """For each stage the length of the cross-entropy's gradient over the length of the weights, in evaluation mode.

    The mean over batches of about BATCH images, at most MAX_BATCHES of them, drawn the same way each time. images:
    uint8, N×C×H×W; labels: int64, N. The weights stay as they are; their gradients do not. TrainingError where one is
    no finite number.

    Source: Y. Lee and others, Surgical fine-tuning improves adaptation to distribution shifts, ICLR 2023 (Auto-RGN).
    """
    set_trainable(network, network.stages)
    batches = list(_batches(len(labels)))
    chunk = eval_batch_size(normalize.pixels(images), normalize.scale.device)
    sums = dict.fromkeys(network.stages, 0.0)
    with eval_mode(network), torch.enable_grad():
        for batch in batches:
            network.zero_grad()
            for part in torch.split(batch, chunk):
                logits = network(normalize(images[part]))
                loss = cross_entropy(logits, labels[part].to(logits.device), reduction="sum") / len(batch)
                loss.backward()  # type: ignore[no-untyped-call]
            for stage in network.stages:
                sums[stage] += _relative_length(network, stage)
    network.zero_grad()
    if lost := [stage for stage, total in sums.items() if not math.isfinite(total)]:
        raise TrainingError(f"where: the gradients of {', '.join(lost)} on the training images are not finite numbers")
    return {stage: total / len(batches) for stage, total in sums.items()}


def _batches(images: int) -> Iterator[Tensor]:
    """Indices (int64) of batches of nearly equal size; images that lie together, as those of a class do, are spread."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))[: BATCH * MAX_BATCHES]
    yield from order.tensor_split(max(1, round(len(order) / BATCH)))


def _relative_length(network: StagedNetwork, stage: str) -> float:
    parameters = list(network.stage_parameters(stage))
    if not parameters:
        return 0.0
    gradient = sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None)
    weights = sum(float(p.detach().double().square().sum()) for p in parameters)
    return math.sqrt(gradient / max(weights, 1e-24))


@dataclass(frozen=True)
class StageChoice:
    """Whether a stage is to train, and why, in words."""

    trains: bool
    why: str


def choose_stages(gradients: Mapping[str, float], probe: float | None, head_rows: Sequence[int]) -> list[StageChoice]:
    """Which stages to train, in the order of `gradients`, whose last one is the head.

    probe: the accuracy of a linear probe on the head's input, out of fold; None where there is none. head_rows: how
    many rows of the head the source brought, of how many. Where the probe is right in ENOUGH, the head alone trains.
    Else, where the source brought the whole head, the stages whose relative gradient is at least SHARE of the largest:
    what Lee and others looked at. Where classes are new all stages do: the gradients then say how the new head pulls.
    """
    backbone, (kept, rows) = len(gradients) - 1, head_rows
    if probe is not None and probe >= ENOUGH:
        left = f"a probe on its input is right in {100 * probe:.2f} %: {100 * (1 - probe):.2f} points are left to win"
        return [*[StageChoice(False, "the head alone is enough")] * backbone, StageChoice(True, left)]
    if kept < rows:
        new = "all of its rows are new" if not kept else f"{rows - kept} of its {rows} rows are new"
        return [
            *[StageChoice(True, "classes are new, and a head alone is not enough")] * backbone,
            StageChoice(True, new),
        ]
    largest = max(gradients, key=gradients.__getitem__)
    found = []
    for stage in gradients:
        share = gradients[stage] / gradients[largest] if gradients[largest] else 1.0
        if not gradients[largest]:
            found.append(StageChoice(True, "no stage has a gradient to go by"))
        elif stage == largest:
            found.append(StageChoice(True, "its gradient is the largest"))
        else:
            size = f"{math.floor(100 * share) / 100:.2f} of"
            limit = "" if share >= SHARE else f", below {SHARE:g}"
            found.append(StageChoice(share >= SHARE, f"its gradient is {size} {largest}'s{limit}"))
    return found
