"""Splits a timm model into ordered stages and finds where it can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from finetune.errors import SettingError
from finetune.text import first_line

HEAD = "head"


@dataclass(frozen=True)
class StageLayout:
    """A network's stages, input to output, and who belongs where.

    `modules` has the largest submodules that lie in one stage whole, `parameters` those that a module spread over
    several stages owns itself; both by timm's dotted path, in the order of the network. `head` is the final linear
    layer's path. It holds for any network of the same architecture and arguments, also when layers within those
    modules are replaced.
    """

    stages: tuple[str, ...]
    modules: dict[str, str]
    parameters: dict[str, str]
    head: str

    def stage_of(self, path: str) -> str | None:
        """The stage of a submodule or parameter; None for a module that is spread over several."""
        if path in self.parameters:
            return self.parameters[path]
        while path:
            if path in self.modules:
                return self.modules[path]
            path = path.rpartition(".")[0]
        return None


def find_stages(body: nn.Module, classes: int) -> StageLayout:
    """Finds the layout of a timm network built for `classes` classes. SettingError, saying why, when it has none."""
    head = head_path(body, classes)
    groups = _groups(body, head)
    names = [*_stage_names(groups, head), HEAD]
    by_name = {name: stage for stage, group in zip(names, [*groups, []], strict=True) for name in group}
    stage_of = {id(p): by_name.get(name, HEAD) for name, p in body.named_parameters()}
    layout = StageLayout(tuple(names), {}, {}, head)
    _assign_modules(body, "", stage_of, layout, set())
    return layout


def head_path(body: nn.Module, classes: int) -> str:
    """Finds the final linear layer, the only one with `classes` outputs in `get_classifier()`. SettingError if none."""
    if not hasattr(body, "get_classifier"):
        raise SettingError("it has no classifier (timm's get_classifier)")
    try:
        classifier: Any = body.get_classifier()  # type: ignore[operator]
    except Exception as error:  # a family's own code; CoaT has no head with some of its arguments
        raise SettingError(f"it does not say its classifier ({first_line(error)})") from None
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.ModuleList):
        count = len(classifier) if isinstance(classifier, (tuple, nn.ModuleList)) else 0
        raise SettingError(f"it ends in {count or 'no'} classifiers side by side; one linear layer is needed")
    inside = list(classifier.modules())
    linear = [m for m in inside if isinstance(m, nn.Linear) and m.out_features == classes]
    if len(linear) != 1:
        what = f"{len(linear)} linear layers" if linear else f"a {type(inside[-1]).__name__}"
        raise SettingError(f"its classifier is {what}; one linear layer is needed")
    if linear[0].bias is None:
        raise SettingError("its last linear layer has no bias")
    return next(str(path) for path, module in body.named_modules() if module is linear[0])


def _groups(body: nn.Module, head: str) -> list[list[str]]:
    """Groups parameter names by stage, input to output, without the head's, by timm's coarse `group_matcher`."""
    if not hasattr(body, "group_matcher"):
        raise SettingError("timm gives it no parameter groups (group_matcher), so its depth is not known")
    try:
        found: dict[int, list[str]] = group_parameters(body, body.group_matcher(coarse=True))  # type: ignore[operator]
    except Exception as error:  # a family's own code; RDNet asserts
        raise SettingError(f"timm gives it no coarse parameter groups ({first_line(error)})") from None
    groups = [found[depth] for depth in sorted(found)]
    every = [name for group in groups for name in group]
    if sorted(every) != sorted(name for name, _ in body.named_parameters()):
        raise SettingError("timm's parameter groups do not hold each parameter once")
    last = len(groups) - 1
    kept = [[name for name in group if not _within(name, head)] for group in groups]
    if last > 0 and kept[last] and all(body.get_parameter(name).ndim <= 1 for name in kept[last]):
        kept[last - 1] += kept.pop()  # a stage of one normalisation would shift every rate of layer_decay
    kept = [group for group in kept if group]
    if not kept:
        raise SettingError("it has no layers before its head")
    return kept


def _within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


def _stage_names(groups: Sequence[Sequence[str]], head: str) -> Iterator[str]:
    """Names each group after the shortest path that most of its parameters, and no other group's, lie under.

    A first group with parameters outside that path is the `stem`.
    """
    taken = {HEAD}
    for depth, group in enumerate(groups):
        others = [name for other in groups if other is not group for name in other] + [f"{head}.weight"]
        path, rest = "", list(group)
        while not path or any(_within(name, path) for name in others):
            path, rest = _largest_part(rest, path)
        if depth == 0 and len(rest) < len(group):
            path = "stem"
        name, count = path if path != HEAD else "neck", 1
        while name in taken:
            count += 1
            name = f"{path}-{count}"
        taken.add(name)
        yield name


def _largest_part(names: Sequence[str], path: str) -> tuple[str, list[str]]:
    """The child path of `path` that most of the parameters lie under, and those; the earliest of equals."""
    parts: dict[str, list[str]] = {}
    for name in names:
        below = name.removeprefix(f"{path}.") if path else name
        parts.setdefault(_join(path, below.partition(".")[0]), []).append(name)
    return max(parts.items(), key=lambda item: len(item[1]))


def _assign_modules(
    module: nn.Module, path: str, stage_of: Mapping[int, str], layout: StageLayout, done: set[int]
) -> None:
    """Fills the layout's `modules` and `parameters` for a module that is spread over several stages.

    `stage_of` is by a parameter's id. What has no parameters, dropout for example, goes with the sibling before it,
    where its input comes from. It never joins the head, which is its linear layer and nothing else. What two modules
    share belongs where it is met first; `done` has the ids of what was assigned.
    """
    order = layout.stages
    previous = order[min(*(order.index(stage_of[id(p)]) for p in module.parameters()), len(order) - 2)]
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in done:
            layout.parameters[_join(path, name)] = stage_of[id(parameter)]
    for name, child in module.named_children():
        if id(child) in done:
            continue
        full = _join(path, name)
        under = {stage_of[id(p)] for p in child.parameters()}
        if len(under) > 1 or (under == {HEAD} and full != layout.head):
            _assign_modules(child, full, stage_of, layout, done)
            previous = max(under - {HEAD}, key=order.index, default=order[-2])
            continue
        layout.modules[full] = stage = under.pop() if under else previous
        previous = stage if stage != HEAD else order[-2]
        done |= {id(part) for part in (*child.modules(), *child.parameters())}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# What `forward_features` runs in order, "blocks.*" for each child of `blocks`; a transformer embeds its patches first.
# By the exact class: a class derived from one of these may run otherwise.
CHAINS: dict[type[nn.Module], tuple[str, ...]] = {
    ConvNeXt: ("stem", "stages.*", "norm_pre"),
    EfficientNet: ("conv_stem", "bn1", "blocks.*", "conv_head", "bn2"),
    MobileNetV3: ("conv_stem", "bn1", "blocks.*"),
    RegNet: ("stem", "s1", "s2", "s3", "s4", "final_conv"),
    ResNet: ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    VisionTransformer: ("blocks.*", "norm"),
}


@dataclass(frozen=True)
class Step:
    """A part of a network's `forward_features`: `run` takes the step before's output. `paths` are the parts it uses."""

    paths: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


def block_sequence(body: nn.Module) -> list[Step]:
    """The steps of `forward_features`, in order; none for a family that is not in the table."""
    steps = [_patch_embedding(body)] if type(body) is VisionTransformer else []
    for pattern in CHAINS.get(type(body), ()):
        path = pattern.removesuffix(".*")
        children = [f"{path}.{name}" for name, _ in body.get_submodule(path).named_children()]
        steps += [Step((part,), body.get_submodule(part)) for part in (children if path != pattern else [path])]
    return steps


def _patch_embedding(body: Any) -> Step:
    def embed(x: Tensor) -> Tensor:
        embedded: Tensor = body.norm_pre(body.patch_drop(body._pos_embed(body.patch_embed(x))))
        return embedded

    bare = tuple(name for name, _ in body.named_parameters(recurse=False))
    return Step(("patch_embed", *bare, "patch_drop", "norm_pre"), embed)


def cut_points(body: nn.Module, layout: StageLayout) -> dict[int, int]:
    """{stage index: number of the step it starts at} for every boundary between stages that falls between two steps."""
    steps = block_sequence(body)
    if not steps:
        return {}
    names = [name for name, _ in body.named_parameters()]
    parts = [[name for name in names if any(_within(name, path) for path in step.paths)] for step in steps]
    parts.append(sorted(set(names).difference(*parts)))  # forward_head
    indices = [{layout.stages.index(owner) for name in part if (owner := layout.stage_of(name))} for part in parts]
    spans = [(number, min(found), max(found)) for number, found in enumerate(indices) if found]
    starts = {}
    for stage in range(1, len(layout.stages) - 1):  # the cut before the head is at the head's input, not at a step
        before = [number for number, first, _ in spans if first < stage]
        after = [number for number, _, last in spans if last >= stage]
        if before and after and max(before) < min(after):
            starts[stage] = min(after)
    return starts
