"""Checks that tensors which never trained equal the parent's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from finetune.checkpoint.format import read_weights
from finetune.checkpoint.tensor_hash import hash_tensor
from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier
from finetune.models.staged import StagedNetwork
from finetune.recipe.schema import AdaptRecipe, Phase
from finetune.run.input_spec import with_input_channels
from finetune.sources.resolve import SourceRef, open_source
from finetune.text import places_of
from finetune.train.frozen_check import frozen_tensors
from finetune.train.lora import adapter_places
from finetune.verification.checks import Check, CheckpointUnderTest
from finetune.verification.lineage import Parent


@dataclass(frozen=True)
class ParentWeights:
    """The weights a run started from, as its network takes them: tensors by name, classes by row of the head."""

    id: str
    tensors: Mapping[str, Tensor]
    classes: Sequence[str]


def frozen_check(subject: CheckpointUnderTest, parents: Sequence[Parent]) -> Check:
    """Whether the tensors that no phase trained are bit for bit the nearest parent's."""
    recipe, classifier = subject.recipe, subject.classifier
    if classifier is None:
        return Check.skipped("frozen", "the tensors fit no network")
    if recipe is None:
        return Check.skipped("frozen", "no recipe says what was frozen")
    if not isinstance(recipe, AdaptRecipe) or not parents:
        return Check.skipped("frozen", "there is no parent: the network started from random weights")
    network, nearest = classifier.network, parents[0]
    untrained, head = never_trained(network, recipe.phases), network.head_tensors()
    if not untrained:
        return Check.skipped("frozen", "every tensor may change in some phase")
    names = [name for name in untrained if name not in head]
    if not names:
        return Check.skipped("frozen", "only the head never trained, and it is a new one")
    parameters = {id(untrained[name]) for name in names}
    stages = [s for s in network.stages if any(id(p) in parameters for p in network.stage_parameters(s))]
    about = f"{len(names)} tensors{' of ' if stages else ''}{', '.join(stages)} never trained"
    if nearest.file is None:
        return Check.skipped("frozen", f"{about}, but {nearest.id} is not at hand")
    try:
        parent = _load_parent(nearest.id, nearest.file, subject)
    except FinetuneError as error:
        return Check.skipped("frozen", f"{nearest.id} cannot be opened: {error}")
    faults = [*_changed_tensors(network.state_dict(), parent, names)]
    message = f"{about}, and are bit for bit those of {nearest.id}"
    if recipe.head == "auto" and untrained.keys() >= set(head):
        known = set(classifier.class_names)
        kept = [name for name in parent.classes if name in known]
        faults += _changed_rows(classifier, parent, kept)
        message += f", and {len(kept)} rows of the head"
    return Check.of("frozen", faults, message, tuple(names))


def never_trained(network: StagedNetwork, phases: Sequence[Phase]) -> dict[str, Tensor]:
    """The checkpoint's tensors that no phase may change, by training or by adding a low-rank adapter to them."""
    tensors = dict(network.state_dict(keep_vars=True))
    for phase in phases:
        stages = phase.trained_stages(network.stages)
        frozen = frozen_tensors(network, stages, phase.norms, adapters=phase.lora is not None)
        places = adapter_places(network, stages) if phase.lora is not None else []
        adapted = {id(network.get_submodule(place).weight) for place in places}
        tensors = {name: t for name, t in tensors.items() if name in frozen and id(t) not in adapted}
    return tensors


def _load_parent(id: str, file: SourceRef, subject: CheckpointUnderTest) -> ParentWeights:
    """The parent's tensors, converted to as many colour channels as its child takes."""
    metadata = subject.metadata
    if file.path is not None and file.text.startswith("timm:"):
        from finetune.models.timm.weights import to_timm_state_dict

        weights = read_weights(file.path)
        return ParentWeights(id, to_timm_state_dict(metadata.model, metadata.arguments, weights.tensors, 1), ())
    bare = file.architecture is None
    source = open_source(file, metadata.model, metadata.arguments) if bare else open_source(file)
    found = with_input_channels(source.classifier, metadata.input.channels)
    return ParentWeights(id, found.network.state_dict(), found.class_names)


def _changed_tensors(ours: Mapping[str, Tensor], parent: ParentWeights, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name not in parent.tensors or hash_tensor(ours[name]) != hash_tensor(parent.tensors[name]):
            yield f"{name} was never to change, and is not that of {parent.id}"


def _changed_rows(classifier: Classifier, parent: ParentWeights, labels: Sequence[str]) -> Iterator[str]:
    tensors = classifier.network.state_dict()
    own, theirs = places_of(labels, classifier.class_names), places_of(labels, parent.classes)
    for name in classifier.network.head_tensors():
        for label, row, parent_row in zip(labels, own, theirs, strict=True):
            if hash_tensor(tensors[name][row]) != hash_tensor(parent.tensors[name][parent_row]):
                yield f"{name}: the row of {label} was never to change, and is not that of {parent.id}"
