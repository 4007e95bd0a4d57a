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
    """The layout of a timm network built for `classes` classes. SettingError, saying why, when it has none."""
    head = head_path(body, classes)
    groups = _groups(body, head)
    names = [*_stage_names(groups, head), HEAD]
    by_name = {name: stage for stage, group in zip(names, [*groups, []], strict=True) for name in group}
    stage_of = {id(p): by_name.get(name, HEAD) for name, p in body.named_parameters()}
    layout = StageLayout(tuple(names), {}, {}, head)
    _module_position(body, "", stage_of, layout, set())
    return layout


def head_path(body: nn.Module, classes: int) -> str:
    """Where the final linear layer is: the only one with `classes` outputs in what timm calls the classifier."""
    if not hasattr(body, "get_classifier"):
        raise SettingError("it has no classifier (timm's get_classifier)")
    try:
        classifier: Any = body.get_classifier()  # type: ignore[operator]
    except Exception as error:  # a family's own code; CoaT has no head with some of its arguments
        raise SettingError(f"it does not say its classifier ({_first_line(error)})") from None
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
    """Parameter names by stage, input to output, without the head's."""
    if not hasattr(body, "group_matcher"):
        raise SettingError("timm gives it no parameter groups (group_matcher), so its depth is not known")
    try:
        found: dict[int, list[str]] = group_parameters(body, body.group_matcher(coarse=True))  # type: ignore[operator]
    except Exception as error:  # a family's own code; RDNet asserts
        raise SettingError(f"timm gives it no coarse parameter groups ({_first_line(error)})") from None
    groups = [found[depth] for depth in sorted(found)]
    every = [name for group in groups for name in group]
    if sorted(every) != sorted(name for name, _ in body.named_parameters()):
        raise SettingError("timm's parameter groups do not hold each parameter once")
    last = len(groups) - 1
    kept = [[name for name in group if not _within(name, head)] for group in groups]
    if last > 0 and kept[last] and _only_norms(body, kept[last]):
        kept[last - 1] += kept.pop()  # a stage of one normalisation would shift every rate of layer_decay
    kept = [group for group in kept if group]
    if not kept:
        raise SettingError("it has no layers before its head")
    return kept


def _only_norms(body: nn.Module, names: Sequence[str]) -> bool:
    return all(body.get_parameter(name).ndim <= 1 for name in names)


def _within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _stage_names(groups: Sequence[Sequence[str]], head: str) -> Iterator[str]:
    """A name for each group: the shortest path that most of its parameters lie under and no other group's do.

    A first group that no such path holds is the `stem`.
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
    """One step below `path`: the path that most of the parameters lie under, and those; the earliest of equals."""
    parts: dict[str, list[str]] = {}
    for name in names:
        below = name.removeprefix(f"{path}.") if path else name
        parts.setdefault(_merge_stages(path, below.partition(".")[0]), []).append(name)
    return max(parts.items(), key=lambda item: len(item[1]))


def _module_position(
    module: nn.Module, path: str, stage_of: Mapping[int, str], layout: StageLayout, done: set[int]
) -> None:
    """Fills the layout's `modules` and `parameters` for a module that is spread over several stages.

    `stage_of` is by a parameter's id. What has no parameters, dropout for example, goes with the sibling before it:
    that is where its input comes from. It never joins the head, so that the head is its linear layer and nothing else.
    What two modules share (`done` has the ids of what has its place) stays where it is met first.
    """
    order, before = layout.stages, ""
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in done:
            layout.parameters[_merge_stages(path, name)] = stage_of[id(parameter)]
    for name, child in module.named_children():
        if id(child) in done:
            continue
        full = _merge_stages(path, name)
        under = {stage_of[id(p)] for p in child.parameters()}
        if len(under) > 1 or (under == {HEAD} and full != layout.head):
            _module_position(child, full, stage_of, layout, done)
            before = max(under - {HEAD}, key=order.index, default=order[-2])
            continue
        stage = under.pop() if under else before or _leading(module, stage_of, order)
        layout.modules[full] = stage
        before = stage if stage != HEAD else order[-2]
        done |= {id(part) for part in (*child.modules(), *child.parameters())}


def _leading(module: nn.Module, stage_of: Mapping[int, str], order: Sequence[str]) -> str:
    """The first stage that a module has parameters of, but never the head."""
    beneath = {stage_of[id(p)] for p in module.parameters()}
    return order[min(*map(order.index, beneath), len(order) - 2)]


def _merge_stages(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


@dataclass(frozen=True)
class Step:
    """A part of a network's `forward_features`: `run` takes what the step before gave. `paths` is what it uses."""

    paths: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


def _modules(body: nn.Module, *paths: str) -> list[Step]:
    return [Step((path,), body.get_submodule(path)) for path in paths]


def _children(body: nn.Module, path: str) -> list[Step]:
    return _modules(body, *(f"{path}.{name}" for name, _ in body.get_submodule(path).named_children()))


def _resnet(body: nn.Module) -> list[Step]:
    return _modules(body, "conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")


def _efficientnet(body: nn.Module) -> list[Step]:
    return [*_modules(body, "conv_stem", "bn1"), *_children(body, "blocks"), *_modules(body, "conv_head", "bn2")]


def _mobilenetv3(body: nn.Module) -> list[Step]:
    return [*_modules(body, "conv_stem", "bn1"), *_children(body, "blocks")]


def _convnext(body: nn.Module) -> list[Step]:
    return [*_modules(body, "stem"), *_children(body, "stages"), *_modules(body, "norm_pre")]


def _regnet(body: nn.Module) -> list[Step]:
    return _modules(body, "stem", "s1", "s2", "s3", "s4", "final_conv")


def _vision_transformer(body: Any) -> list[Step]:
    def embed(x: Tensor) -> Tensor:
        embedded: Tensor = body.norm_pre(body.patch_drop(body._pos_embed(body.patch_embed(x))))
        return embedded

    bare = tuple(name for name, _ in body.named_parameters(recurse=False))
    first = Step(("patch_embed", *bare, "patch_drop", "norm_pre"), embed)
    return [first, *_children(body, "blocks"), *_modules(body, "norm")]


# The exact class: a class derived from one of these may run otherwise.
CHAINS: dict[type[nn.Module], Callable[[nn.Module], list[Step]]] = {
    ConvNeXt: _convnext,
    EfficientNet: _efficientnet,
    MobileNetV3: _mobilenetv3,
    RegNet: _regnet,
    ResNet: _resnet,
    VisionTransformer: _vision_transformer,
}


def block_sequence(body: nn.Module) -> list[Step]:
    """The steps of `forward_features`, in order; none for a family that is not in the table."""
    make = CHAINS.get(type(body))
    return make(body) if make else []


def cut_points(body: nn.Module, layout: StageLayout) -> dict[int, int]:
    """{stage index: number of the step it starts at} for every boundary between stages that falls between two steps."""
    steps = block_sequence(body)
    if not steps:
        return {}
    spans = [_step_range(body, step.paths, layout) for step in steps]
    used = [path for step in steps for path in step.paths]
    rest = [name for name, _ in body.named_parameters() if not any(f"{name}.".startswith(f"{p}.") for p in used)]
    spans.append(_step_range(body, rest, layout))  # forward_head
    known = [(number, span) for number, span in enumerate(spans) if span]
    places = {}
    for stage in range(1, len(layout.stages) - 1):  # the cut before the head is what the head is given, not a step
        before = [number for number, span in known if span[0] < stage]
        after = [number for number, span in known if span[1] >= stage]
        if before and after and max(before) < min(after):
            places[stage] = min(after)
    return places


def _step_range(body: nn.Module, paths: Sequence[str], layout: StageLayout) -> tuple[int, int] | None:
    """The first and last stage among the parameters under `paths`; None when there are none."""
    names = [name for name, _ in body.named_parameters() if any(f"{name}.".startswith(f"{path}.") for path in paths)]
    stages = [layout.stages.index(stage) for name in names if (stage := layout.stage_of(name))]
    return (min(stages), max(stages)) if stages else None
