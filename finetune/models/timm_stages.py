"""How a timm network falls into stages: from timm's own coarse parameter groups, the final linear layer on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from torch import nn

from finetune.errors import SettingError

HEAD = "head"


@dataclass(frozen=True)
class Layout:
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


def layout_of(body: nn.Module, classes: int) -> Layout:
    """The layout of a timm network built for `classes` classes. SettingError, saying why, when it has none."""
    head = head_path(body, classes)
    groups = _groups(body, head)
    names = [*_stage_names(groups, head), HEAD]
    by_name = {name: stage for stage, group in zip(names, [*groups, []], strict=True) for name in group}
    stage_of = {id(p): by_name.get(name, HEAD) for name, p in body.named_parameters()}
    layout = Layout(tuple(names), {}, {}, head)
    _place(body, "", stage_of, layout, set())
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
        parts.setdefault(_joined(path, below.partition(".")[0]), []).append(name)
    return max(parts.items(), key=lambda item: len(item[1]))


def _place(module: nn.Module, path: str, stage_of: Mapping[int, str], layout: Layout, done: set[int]) -> None:
    """Fills the layout's `modules` and `parameters` for a module that is spread over several stages.

    `stage_of` is by a parameter's id. What has no parameters, dropout for example, goes with the sibling before it:
    that is where its input comes from. It never joins the head, so that the head is its linear layer and nothing else.
    What two modules share (`done` has the ids of what has its place) stays where it is met first.
    """
    order, before = layout.stages, ""
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in done:
            layout.parameters[_joined(path, name)] = stage_of[id(parameter)]
    for name, child in module.named_children():
        if id(child) in done:
            continue
        full = _joined(path, name)
        under = {stage_of[id(p)] for p in child.parameters()}
        if len(under) > 1 or (under == {HEAD} and full != layout.head):
            _place(child, full, stage_of, layout, done)
            before = max(under - {HEAD}, key=order.index, default=order[-2])
            continue
        stage = under.pop() if under else before or _first(module, stage_of, order)
        layout.modules[full] = stage
        before = stage if stage != HEAD else order[-2]
        done |= {id(part) for part in (*child.modules(), *child.parameters())}


def _first(module: nn.Module, stage_of: Mapping[int, str], order: Sequence[str]) -> str:
    """The first stage that a module has parameters of, but never the head."""
    beneath = {stage_of[id(p)] for p in module.parameters()}
    return order[min(*map(order.index, beneath), len(order) - 2)]


def _joined(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
