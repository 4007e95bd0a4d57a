"""What no phase of a recipe was to change, held against the weights it started from: frozen, proved after the fact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from finetune.checkpoint import read_weights
from finetune.commands.ancestors import Parent
from finetune.commands.claims import Check, Subject
from finetune.commands.fitting import classifier_for
from finetune.commands.phase_values import trained_stages
from finetune.digest import tensor_digest
from finetune.errors import FinetuneError
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase import Phase
from finetune.recipe.schema import AdaptRecipe
from finetune.source import Located, open_source
from finetune.training.lora import adapter_places
from finetune.training.proof import frozen_tensors

NAME = "frozen"


@dataclass(frozen=True)
class Origin:
    """The weights a run started from, as its network took them over: tensors by name, and the names of their rows."""

    state: Mapping[str, Tensor]
    classes: Sequence[str]


def untouched_check(subject: Subject, parents: Sequence[Parent]) -> Check:
    """The tensors that no phase trained are bit for bit the nearest parent's."""
    recipe, classifier = subject.recipe, subject.classifier
    if classifier is None:
        return Check.skipped(NAME, "the tensors fit no network")
    if recipe is None:
        return Check.skipped(NAME, "no recipe says what was frozen")
    if not isinstance(recipe, AdaptRecipe) or not parents:
        return Check.skipped(NAME, "there is no parent: the network started from random weights")
    network, nearest = classifier.network, parents[0]
    still = never_trained(network, recipe.phases)
    if not still:
        return Check.skipped(NAME, "every tensor may change in some phase")
    head = network.head_tensors()
    same = [name for name in still if name not in head]
    if not same:
        return Check.skipped(NAME, "only the head never trained, and it is a new one")
    about = _about(network, still, same)
    if nearest.file is None:
        return Check.skipped(NAME, f"{about} never trained, but {nearest.id} is not at hand")
    try:
        origin = _origin(nearest.file, subject)
    except FinetuneError as error:
        return Check.skipped(NAME, f"{nearest.id} cannot be opened: {error}")
    faults = [*_moved(network.state_dict(), origin.state, same, nearest.id)]
    says = f"{about} never trained, and are bit for bit those of {nearest.id}"
    if recipe.head == "auto" and still.keys() >= set(head):
        rows = {name: i for i, name in enumerate(origin.classes) if name in classifier.class_names}
        faults += _moved_rows(network, classifier.class_names, origin, rows, nearest.id)
        says += f", and {len(rows)} rows of the head"
    if faults:
        return Check.of(NAME, faults, says)
    return Check(NAME, "ok", says, tuple(same))


def never_trained(network: StagedNetwork, phases: Sequence[Phase]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that no phase was to change, low-rank adapters added to their weights included."""
    still = dict(network.state_dict(keep_vars=True))
    for phase in phases:
        stages = trained_stages(network.stages, phase.train)
        frozen = frozen_tensors(network, stages, phase.norms, adapters=phase.lora is not None)
        places = adapter_places(network, stages) if phase.lora is not None else []
        merged = {id(network.get_submodule(place).weight) for place in places}
        still = {name: t for name, t in still.items() if name in frozen and id(t) not in merged}
    return still


def _about(network: StagedNetwork, still: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """As in '4 tensors of conv1, conv2'."""
    there = {id(still[name]) for name in names}
    stages = [s for s in network.stages if any(id(p) in there for p in network.stage_parameters(s))]
    return f"{len(names)} tensors of {', '.join(stages)}" if stages else f"{len(names)} tensors"


def _origin(file: Located, subject: Subject) -> Origin:
    """The parent's tensors, grey or colourful as its child is."""
    metadata = subject.metadata
    if file.path is not None and file.text.startswith("timm:"):
        from finetune.models.timm_weights import timm_state

        weights = read_weights(file.path)
        return Origin(timm_state(metadata.model, metadata.arguments, weights.tensors, 1), ())
    bare = file.architecture is None
    source = open_source(file, metadata.model, metadata.arguments) if bare else open_source(file)
    found = classifier_for(source.classifier, metadata.input.channels)
    return Origin(found.network.state_dict(), found.class_names)


def _moved(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: Sequence[str], parent: str
) -> Iterator[str]:
    for name in names:
        if name not in theirs or tensor_digest(ours[name]) != tensor_digest(theirs[name]):
            yield f"{name} was never to change, and is not that of {parent}"


def _moved_rows(
    network: StagedNetwork, classes: Sequence[str], origin: Origin, rows: Mapping[str, int], parent: str
) -> Iterator[str]:
    for name in network.head_tensors():
        ours, theirs = network.state_dict()[name], origin.state[name]
        for label, row in rows.items():
            if tensor_digest(ours[classes.index(label)]) != tensor_digest(theirs[row]):
                yield f"{name}: the row of {label} was never to change, and is not that of {parent}"
