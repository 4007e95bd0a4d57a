"""Checks that tensors which never trained equal the parent's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from finetune.checkpoint.format import read_weights
from finetune.checkpoint.tensor_hash import hash_tensor
from finetune.errors import FinetuneError
from finetune.models.staged import StagedNetwork
from finetune.recipe.phase_schema import Phase
from finetune.recipe.schema import AdaptRecipe
from finetune.run.input_spec import with_input_channels
from finetune.sources.resolve import SourceRef, open_source
from finetune.train.frozen_check import frozen_tensors
from finetune.train.lora import adapter_places
from finetune.verification.checks import Check, CheckpointUnderTest
from finetune.verification.lineage import Parent

FROZEN_CHECK = "frozen"


@dataclass(frozen=True)
class ParentWeights:
    """The weights a run started from, as its network took them over: tensors by name, and the names of their rows."""

    state: Mapping[str, Tensor]
    classes: Sequence[str]


def frozen_check(subject: CheckpointUnderTest, parents: Sequence[Parent]) -> Check:
    """The tensors that no phase trained are bit for bit the nearest parent's."""
    recipe, classifier = subject.recipe, subject.classifier
    if classifier is None:
        return Check.skipped(FROZEN_CHECK, "the tensors fit no network")
    if recipe is None:
        return Check.skipped(FROZEN_CHECK, "no recipe says what was frozen")
    if not isinstance(recipe, AdaptRecipe) or not parents:
        return Check.skipped(FROZEN_CHECK, "there is no parent: the network started from random weights")
    network, nearest = classifier.network, parents[0]
    still = never_trained(network, recipe.phases)
    if not still:
        return Check.skipped(FROZEN_CHECK, "every tensor may change in some phase")
    head = network.head_tensors()
    same = [name for name in still if name not in head]
    if not same:
        return Check.skipped(FROZEN_CHECK, "only the head never trained, and it is a new one")
    about = _describe_check(network, still, same)
    if nearest.file is None:
        return Check.skipped(FROZEN_CHECK, f"{about} never trained, but {nearest.id} is not at hand")
    try:
        origin = _load_parent(nearest.file, subject)
    except FinetuneError as error:
        return Check.skipped(FROZEN_CHECK, f"{nearest.id} cannot be opened: {error}")
    faults = [*_changed_tensors(network.state_dict(), origin.state, same, nearest.id)]
    says = f"{about} never trained, and are bit for bit those of {nearest.id}"
    if recipe.head == "auto" and still.keys() >= set(head):
        rows = {name: i for i, name in enumerate(origin.classes) if name in classifier.class_names}
        faults += _changed_rows(network, classifier.class_names, origin, rows, nearest.id)
        says += f", and {len(rows)} rows of the head"
    if faults:
        return Check.of(FROZEN_CHECK, faults, says)
    return Check(FROZEN_CHECK, "ok", says, tuple(same))


def never_trained(network: StagedNetwork, phases: Sequence[Phase]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that no phase was to change, low-rank adapters added to their weights included."""
    still = dict(network.state_dict(keep_vars=True))
    for phase in phases:
        stages = phase.trained_stages(network.stages)
        frozen = frozen_tensors(network, stages, phase.norms, adapters=phase.lora is not None)
        places = adapter_places(network, stages) if phase.lora is not None else []
        merged = {id(network.get_submodule(place).weight) for place in places}
        still = {name: t for name, t in still.items() if name in frozen and id(t) not in merged}
    return still


def _describe_check(network: StagedNetwork, still: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """As in '4 tensors of conv1, conv2'."""
    there = {id(still[name]) for name in names}
    stages = [s for s in network.stages if any(id(p) in there for p in network.stage_parameters(s))]
    return f"{len(names)} tensors of {', '.join(stages)}" if stages else f"{len(names)} tensors"


def _load_parent(file: SourceRef, subject: CheckpointUnderTest) -> ParentWeights:
    """The parent's tensors, grey or colourful as its child is."""
    metadata = subject.metadata
    if file.path is not None and file.text.startswith("timm:"):
        from finetune.models.timm.weights import to_timm_state_dict

        weights = read_weights(file.path)
        return ParentWeights(to_timm_state_dict(metadata.model, metadata.arguments, weights.tensors, 1), ())
    bare = file.architecture is None
    source = open_source(file, metadata.model, metadata.arguments) if bare else open_source(file)
    found = with_input_channels(source.classifier, metadata.input.channels)
    return ParentWeights(found.network.state_dict(), found.class_names)


def _changed_tensors(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: Sequence[str], parent: str
) -> Iterator[str]:
    for name in names:
        if name not in theirs or hash_tensor(ours[name]) != hash_tensor(theirs[name]):
            yield f"{name} was never to change, and is not that of {parent}"


def _changed_rows(
    network: StagedNetwork, classes: Sequence[str], origin: ParentWeights, rows: Mapping[str, int], parent: str
) -> Iterator[str]:
    for name in network.head_tensors():
        ours, theirs = network.state_dict()[name], origin.state[name]
        for label, row in rows.items():
            if hash_tensor(ours[classes.index(label)]) != hash_tensor(theirs[row]):
                yield f"{name}: the row of {label} was never to change, and is not that of {parent}"
