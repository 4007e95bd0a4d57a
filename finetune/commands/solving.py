"""A phase without steps: the head is computed, by solving for the best linear one on frozen features."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from finetune.commands.setting import Setting
from finetune.models.staged import StagedNetwork
from finetune.training.activations import TRAIN, VALIDATION
from finetune.training.meter import Row
from finetune.training.solver import solve_head


def solved_head(network: StagedNetwork, setting: Setting) -> Row:
    """Gives the network its best head for the images as they are, and returns what that head makes of them."""
    started = time.perf_counter()
    material, cache = setting.material, setting.cache
    seen = cache.outputs(network, TRAIN, -1).float()
    labels, held_labels = material.train.labels, material.validation.labels
    held = (cache.outputs(network, VALIDATION, -1), held_labels) if len(held_labels) else None
    network.set_head(solve_head(seen, labels, len(material.class_names), held))
    setting.runtime.place(network)
    with torch.no_grad():
        logits = network.head(seen).float().cpu()
        validated = network.head(held[0]).argmax(1).cpu() if held else None
    right = float((logits.argmax(1) == labels).double().mean())
    validation = None if validated is None else float((validated == held_labels).double().mean())
    seconds = time.perf_counter() - started
    loss = float(F.cross_entropy(logits, labels))
    return Row(1, loss, right, validation, 0.0, len(labels) / seconds, seconds)
