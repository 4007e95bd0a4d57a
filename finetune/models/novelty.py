"""How unlike the images that a network was trained on a picture is, from the network's own features.

The distance to the nearest of some training images, by the cosine of channel means, behind the last two boundaries
before the head (Y. Sun, Y. Ming, X. Zhu and Y. Li, Out-of-distribution detection with deep nearest neighbors, ICML
2022, take the last one alone); each is standardised by held-out images, and the score is their mean.
docs/benchmarks.md has what else was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.checkpoint.confidence import Novelty, NoveltyLayer
from finetune.errors import CheckpointError
from finetune.models.staged import StagedNetwork

LAYERS = 2
CHUNK = 1_000  # images whose nearest neighbours are looked for at once


def novelty_cuts(network: StagedNetwork) -> tuple[int, ...]:
    """The last boundaries between stages, the head's input the last of them."""
    return tuple(cut for cut in network.cuts if 0 < cut < len(network.stages))[-LAYERS:]


def channel_means(x: Tensor) -> Tensor:
    """The mean of each channel over positions: N×F for N×F×H×W, N×T×F (tokens) or N×F."""
    return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def run_with_features(network: StagedNetwork, x: Tensor, cuts: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits (N×classes) of normalised images (N×C×H×W), and the channel means at each cut (N×F)."""
    found, start = [], 0
    for cut in cuts:
        x = network.run(x, start, cut)
        found.append(channel_means(x).float())
        start = cut
    return network.run(x, start), found


@dataclass(frozen=True)
class NoveltyScore:
    """The novelty score of a checkpoint, ready for use. references: of each layer, unit vectors (float, M×F)."""

    record: Novelty
    references: tuple[Tensor, ...]

    @classmethod
    def of(cls, record: Novelty) -> NoveltyScore:
        """Decodes what a checkpoint records."""
        return cls(record, tuple(map(decoded, record.layers)))

    @property
    def cuts(self) -> tuple[int, ...]:
        """The stages that the layers stand behind."""
        return tuple(layer.cut for layer in self.record.layers)

    def fits(self, network: StagedNetwork) -> bool:
        """Whether the network can be cut where the layers are."""
        inner = {cut for cut in network.cuts if 0 < cut < len(network.stages)}
        return set(self.cuts) <= inner and list(self.cuts) == sorted(set(self.cuts))

    def scores(self, features: Sequence[Tensor]) -> Tensor:
        """The score of each image from its channel means at the cuts (float, N×F each): float, N, on the CPU."""
        widths = [own.shape[1] for own in features]
        if widths != [layer.width for layer in self.record.layers]:
            raise CheckpointError(
                f"confidence.novelty: expected reference vectors of {widths} numbers, found "
                f"{[layer.width for layer in self.record.layers]}: they are of another network"
            )
        parts = [
            (nearest_distance(own, reference) - layer.mean) / layer.std
            for own, reference, layer in zip(features, self.references, self.record.layers, strict=True)
        ]
        return torch.stack(parts).mean(0)


def decoded(layer: NoveltyLayer) -> Tensor:
    """A layer's reference vectors: float, M×F, of length 1."""
    numbers = torch.frombuffer(bytearray(layer.content()), dtype=torch.int8).float() * layer.scale
    return torch.nn.functional.normalize(numbers.reshape(layer.count, layer.width))


def nearest_distance(features: Tensor, references: Tensor) -> Tensor:
    """The distance of each vector (float, N×F), scaled to length 1, to the nearest of `references` (M×F): N, CPU."""
    unit = torch.nn.functional.normalize(features.cpu().float())
    parts = [(2 - 2 * (part @ references.T).amax(1)).clamp_min(0).sqrt() for part in torch.split(unit, CHUNK)]
    return torch.cat(parts) if parts else unit.new_zeros(0)
