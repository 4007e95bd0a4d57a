"""What training is shown: a few training images, and how each epoch changes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.augment import Augment
from finetune.data.batches import Batches, Normaliser
from finetune.data.images import ImageSet

ROWS = 8
VERSIONS = 8


def augment_grid(
    train: ImageSet,
    normalise: Normaliser,
    augment: Augment | None,
    seed: int,
    *,
    rows: int = ROWS,
    versions: int = VERSIONS,
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Some images of `train`, uint8, N×V×H×W×C, and their classes, as `grid_picture` takes them.

    The first version of an image is the evaluation view, the others are what a run with this seed trains on in its
    first epochs, made by the same code, mixing included. The images are of different classes while there are classes
    left. `train` is all that the run trains on: the place of an image decides what chance does to it.
    """
    chosen = _spread(train, rows)
    device = normalise.scale.device
    labels = train.labels.to(device)
    batches = Batches(
        train.images,
        labels,
        batch_size=1,
        seed=seed,
        normalise=normalise,
        augment=augment,
        classes=len(train.class_names),
    )
    found = []
    for index in chosen:
        seen = [normalise(train.images[torch.tensor([index])].to(device))]
        seen += [batches.at(epoch, index)[0] for epoch in range(versions - 1)]
        found.append(normalise.restored(torch.cat(seen)).permute(0, 2, 3, 1).cpu().numpy())
    return np.stack(found), [train.class_names[int(train.labels[index])] for index in chosen]


def _spread(train: ImageSet, rows: int) -> list[int]:
    """Images in turn of each class: the first ones of all, then the second ones."""
    places: list[list[int]] = [[] for _ in train.class_names]
    for index, label in enumerate(train.labels.tolist()):
        if len(places[label]) < rows:
            places[label].append(index)
    turns = [own[turn] for turn in range(rows) for own in places if turn < len(own)]
    return turns[:rows]
