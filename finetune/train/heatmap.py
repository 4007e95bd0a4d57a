"""Where in a picture an answer comes from: Grad-CAM of the last feature map, by captum (the extra `heatmaps`)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.data.normalize import Normalizer
from finetune.errors import SettingError
from finetune.models.staged import StagedNetwork, eval_mode
from finetune.text import install_hint

DARK = 0.45  # of the picture below its heatmap
MIN_SIDE = 4  # cells of a feature map, each way
MAX_CORRELATION = 0.5  # with the maps of an untrained network, above which maps say nothing of the weights


@dataclass(frozen=True)
class Heatmaps:
    """Heatmaps of N pictures, how they were made, and how much weights matter for them.

    maps: float32, N×H×W, 0 to 1 in each. correlation: Spearman's, the mean over pictures, with the maps of the same
    network with random weights (Adebayo and others, Sanity checks for saliency maps, 2018).
    """

    maps: Tensor
    method: str
    correlation: float

    @property
    def depend_on_weights(self) -> bool:
        """Whether an untrained network's maps differ."""
        return self.correlation < MAX_CORRELATION


class _CutNetwork(nn.Module):
    """A network whose activation at one of its cuts is the output of `cut`, so that captum can hook it.

    Images are N×C×H×W; `cut` gives N×C×height×width, also where the network has channels last or tokens.
    """

    def __init__(self, network: StagedNetwork, place: int) -> None:
        super().__init__()
        self.network, self.place, self.cut = network, place, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found = self.network.run(x, stop=self.place)
        seen: Tensor = self.cut(feature_map(found))
        return self.network.run(_as_before(seen, found), start=self.place)


def feature_map(activation: Tensor) -> Tensor | None:
    """An activation as N×C×H×W: it is that, has channels last, or is square tokens after some without a place.

    None for what has no places, or fewer than MIN_SIDE each way.
    """
    if activation.ndim == 4:
        _, *sides = activation.shape
        found = activation.permute(0, 3, 1, 2) if sides[0] == sides[1] != sides[2] else activation
    elif activation.ndim == 3:
        side = int((activation.shape[1]) ** 0.5)
        tokens = activation[:, activation.shape[1] - side * side :]
        found = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
    else:
        return None
    return found if min(found.shape[2:]) >= MIN_SIDE else None


def _as_before(seen: Tensor, found: Tensor) -> Tensor:
    """A feature map in the layout of the activation that it was made of."""
    if found.ndim == 3:
        tokens = seen.flatten(2).transpose(1, 2)
        return torch.cat([found[:, : found.shape[1] - tokens.shape[1]], tokens], 1)
    return seen if seen.shape == found.shape else seen.permute(0, 2, 3, 1)


def heatmaps(
    network: StagedNetwork, untrained: StagedNetwork, images: Tensor, normalize: Normalizer, classes: Sequence[int]
) -> Heatmaps:
    """What in each image its class hangs on: Grad-CAM, or the gradient's size where no feature map can be cut.

    images: uint8, N×C×H×W. classes: N indices, usually of the answers. untrained: the same architecture with random
    weights. SettingError without captum.
    """
    if find_spec("captum") is None:
        raise SettingError(f"heatmaps need captum: {install_hint('heatmaps')}")
    inputs = normalize(images)
    place = _last_feature_map(network, inputs[:1])
    targets = torch.tensor(list(classes))
    maps, others = (_maps(own, place, inputs, targets) for own in (network, untrained))
    flat, plain = (_ranks(own.flatten(1)) for own in (maps, others))
    correlation = float(
        np.mean([np.corrcoef(a, b)[0, 1] if a.std() and b.std() else 0 for a, b in zip(flat, plain, strict=True)])
    )
    method = "the gradient's size" if place is None else f"Grad-CAM after {network.stages[place - 1]}"
    return Heatmaps(maps, method, correlation)


def heated(image: Tensor, heat: Tensor) -> Tensor:
    """An image (uint8, C×H×W), dark, with its heatmap (H×W, 0 to 1) over it: uint8, 3×H×W."""
    from matplotlib import colormaps

    grey = image.float().mean(0)
    colours = torch.from_numpy(colormaps["inferno"](heat.numpy())[..., :3]).permute(2, 0, 1) * 255
    return (DARK * grey + (1 - DARK) * colours).round().clamp(0, 255).byte()


def _last_feature_map(network: StagedNetwork, image: Tensor) -> int | None:
    """The last cut whose activation is a feature map; None where there is none but the image."""
    with torch.no_grad(), eval_mode(network):
        for place in sorted(network.cuts, reverse=True):
            if 0 < place < len(network.stages) and feature_map(network.run(image, stop=place)) is not None:
                return place
    return None


def _maps(network: StagedNetwork, place: int | None, inputs: Tensor, targets: Tensor) -> Tensor:
    """float32, N×H×W, 0 to 1 in each."""
    from captum.attr import LayerGradCam, Saliency

    with eval_mode(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum tells what it does with gradients
        if place is None:
            found = Saliency(network).attribute(inputs, target=targets).amax(1, keepdim=True)
        else:
            whole = _CutNetwork(network, place)
            found = LayerGradCam(whole, whole.cut).attribute(inputs, target=targets, relu_attributions=True)
    found = F.interpolate(found.detach().float(), inputs.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    highest = found.amax((1, 2), keepdim=True)
    return found / highest.clamp_min(1e-12)


def _ranks(rows: Tensor) -> npt.NDArray[np.float64]:
    """The place of each value in its row, equal ones sharing the middle of theirs: of a shape with `rows`, N×M."""
    ordered = np.sort(rows.numpy(), axis=1)
    pairs = list(zip(ordered, rows.numpy(), strict=True))
    return np.stack([np.searchsorted(own, row) + np.searchsorted(own, row, "right") for own, row in pairs]) / 2
