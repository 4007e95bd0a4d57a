"""A phase without steps: the head is computed, by solving for the best linear one on frozen features."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from finetune.commands.material import Material
from finetune.data.batches import Normaliser
from finetune.models.staged import StagedNetwork
from finetune.training.evaluation import features
from finetune.training.meter import Row
from finetune.training.runtime import Runtime
from finetune.training.solver import solve_head


def solved_head(network: StagedNetwork, material: Material, normalise: Normaliser, runtime: Runtime) -> Row:
    """Gives the network its best head for the images as they are, and returns what that head makes of them."""
    started = time.perf_counter()
    parts = {"train": material.train, "validation": material.validation}
    seen = {
        name: features(network, part.images.to(runtime.device), normalise, group=runtime.group)
        for name, part in parts.items()
        if len(part)
    }
    labels, held_labels = material.train.labels, material.validation.labels
    held = (seen["validation"], held_labels) if "validation" in seen else None
    network.set_head(solve_head(seen["train"], labels, len(material.class_names), held))
    runtime.place(network)
    with torch.no_grad():
        logits = network.head(seen["train"]).float().cpu()
        validated = network.head(seen["validation"]).argmax(1).cpu() if held else None
    right = float((logits.argmax(1) == labels).double().mean())
    validation = None if validated is None else float((validated == held_labels).double().mean())
    seconds = time.perf_counter() - started
    loss = float(F.cross_entropy(logits, labels))
    return Row(1, loss, right, validation, 0.0, len(labels) / seconds, seconds)
