"""Optimizers, parameter groups, learning-rate schedules and weight averaging."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from finetune.models.staged import StagedNetwork
from finetune.text import listed
from finetune.train.parallel import fill_tensor

Schedule = Callable[[float], float]
START_DIVISOR = 25.0  # a warm-up starts at lr / 25, as in torch's OneCycleLR; from 0, the first step would be wasted


def constant(done: float) -> float:
    """Always 1."""
    return 1.0


def cosine(done: float, *, warmup: float) -> float:
    """A linear rise from 1/25 over the `warmup` fraction, then half a cosine to 0 (Loshchilov and Hutter 2017)."""
    if done < warmup:
        return 1 / START_DIVISOR + (1 - 1 / START_DIVISOR) * done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def one_cycle(done: float, *, warmup: float, shape: str = "cosine") -> float:
    """From 1/25 up to 1 over the `warmup` fraction, then down to 0; both in half a cosine or linearly."""
    rising = done < warmup
    part = done / warmup if rising else (done - warmup) / (1 - warmup)
    if shape == "cosine":
        part = 0.5 * (1 - math.cos(math.pi * part))
    return 1 / START_DIVISOR + (1 - 1 / START_DIVISOR) * part if rising else 1 - part


def step_decay(done: float, *, at: Sequence[float], factor: float) -> float:
    """1, multiplied by `factor` at each fraction in `at`."""
    return factor ** sum(done >= border for border in at)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "step": step_decay,
}


def make_schedule(name: str, **settings: object) -> Schedule:
    """The schedule called `name` with its settings filled in."""
    return partial(SCHEDULES[name], **settings)


def _without_compiler(optimizer: type[Optimizer]) -> type[Optimizer]:
    """torch's optimizer without the wrappers that load torch's compiler at the first call, which takes a second."""
    own = ("add_param_group", "zero_grad", "step")
    bare = {name: inspect.unwrap(getattr(optimizer, name)) for name in own}
    return type(optimizer.__name__, (optimizer,), bare | {"step": torch.no_grad()(bare["step"])})


OPTIMIZERS = {"sgd": _without_compiler(SGD), "adamw": _without_compiler(AdamW)}


@dataclass(frozen=True)
class ParamGroup:
    """One stage's trainable parameters and its highest learning rate."""

    stage: str
    parameters: tuple[nn.Parameter, ...]
    lr: float


def stage_groups(network: StagedNetwork, lr: float, layer_decay: float) -> list[ParamGroup]:
    """A group per stage that trains; `lr` is multiplied by `layer_decay` for each stage away from the head."""
    groups = []
    for depth, stage in enumerate(reversed(network.stages)):
        parameters = tuple(p for p in network.stage_parameters(stage) if p.requires_grad)
        if parameters:
            groups.append(ParamGroup(stage, parameters, lr * layer_decay**depth))
    return groups[::-1]


def build_optimizer(
    groups: Sequence[ParamGroup], name: str, arguments: Mapping[str, Any], *, fused: bool = True
) -> Optimizer:
    """torch's optimizer `name` with torch's `arguments`, but `lr` from the groups.

    Biases and normalisation weights (one axis) are not decayed. With `fused` one kernel updates all parameters; torch
    has none for SGD on sharded parameters.
    """
    decay = arguments.get("weight_decay", 0.0)
    rest = {key: value for key, value in arguments.items() if key not in ("lr", "weight_decay")}
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}  # by learning rate and decay: one kernel call each
    for group in groups:
        for parameter in group.parameters:
            alike.setdefault((group.lr, decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    split = [
        {"params": parameters, "lr": lr, "top": lr, "weight_decay": own} for (lr, own), parameters in alike.items()
    ]
    how: dict[str, Any] = {"fused": True} if fused else {"foreach": True}
    return OPTIMIZERS[name](split, lr=groups[-1].lr, **how, **rest)  # type: ignore[call-arg]


def set_rate(optimizer: Optimizer, multiplier: float) -> None:
    """Sets every group's learning rate to its highest one times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = group["top"] * multiplier


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as INDEX/NAME of a parameter's tensors, for example 0/momentum_buffer."""
    return {
        f"{index}/{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def check_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """ValueError unless `load_optimizer` can restore these: all numbers of a parameter, or none."""
    parameters, defaults = _parameters(optimizer), optimizer.defaults
    momentum = {"momentum_buffer"} if defaults.get("momentum") else set()
    names = {"step", "exp_avg", "exp_avg_sq"} if "betas" in defaults else momentum
    found: dict[str, set[str]] = {} if tensors or not names else {"0": set()}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        found.setdefault(index, set()).add(name)
        like = parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None
        fits = value.numel() == 1 if name == "step" else like is not None and value.shape == like.shape
        if like is None or not fits or (name != "step" and value.dtype != like.dtype):
            raise ValueError(f"the optimizer's tensor {key} fits no parameter")
    if odd := sorted(index for index, own in found.items() if own != names):
        raise ValueError(f"the optimizer's tensors of parameter {listed(odd)} are not {listed(sorted(names))}")


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores `optimizer_tensors`, each in the memory layout of its parameter, which the fused kernels rely on."""
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            kept = torch.empty_like(parameter.detach(), dtype=value.dtype)
        else:  # the number of steps; the fused kernels need it on the parameter's device, the others on the CPU
            kept = torch.empty_like(value, device=parameter.device if optimizer.defaults.get("fused") else "cpu")
        fill_tensor(kept, value)
        optimizer.state[parameter][name] = kept


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class SourcePull:
    """L2-SP (Li, Grandvalet and Davoine, arXiv:1802.01483): a penalty on how far weights are from the source's.

    The penalty is strength / 2 times the sum of all squared differences; only its gradient is needed. sources: the
    source's value of each parameter, whole, also where the parameters are sharded.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], sources: Sequence[Tensor], strength: float) -> None:
        self.strength = strength
        self.parameters = list(parameters)
        self.sources = [p.detach().clone() for p in self.parameters]
        for own, value in zip(self.sources, sources, strict=True):
            fill_tensor(own, value)

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Adds the penalty's gradient to that of the loss, of every parameter that has one."""
        for parameter, source in zip(self.parameters, self.sources, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - source, alpha=self.strength)


class WeightAverage:
    """An exponential moving average of weights. Step k (from 1) keeps min(decay, (1+k)/(10+k)) of the average."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0
        self.swapped = False  # whether the network has the average just now, and `values` the weights
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - keep)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the weights; a second call exchanges them back."""
        self.swapped = not self.swapped
        for parameter, value in zip(self.parameters, self.values, strict=True):
            held: Tensor = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)
