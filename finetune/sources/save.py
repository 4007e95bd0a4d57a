"""Saves a classifier as a checkpoint, and makes the metadata of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finetune.checkpoint.confidence import Confidence
from finetune.checkpoint.format import InputMetadata, Metadata, check_saveable, encode, read_checkpoint
from finetune.errors import CheckpointError, SettingError
from finetune.io.outputs import check_output, replace_file
from finetune.io.safe_open import sha256_of
from finetune.sources.resolve import Source
from finetune.system import versions

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier

SUFFIX = ".safetensors"


def save(classifier: Classifier, path: str | Path) -> str:
    """Writes a classifier as a checkpoint, and returns the new file's sha256. Another file of that name is moved aside.

    Recipe, data and results of the file it was loaded from are kept only while weights, classes and input are the same.
    CheckpointError, and nothing is written, when the file could not be loaded again; SettingError for a name that does
    not end in .safetensors; OutputError.
    """
    if not hasattr(classifier, "class_names"):
        raise SettingError(f"classifier: expected a finetune.Classifier, found {type(classifier).__name__}")
    named = check_output(path, "save", [SUFFIX])
    state, origin = classifier.network.state_dict(), classifier.origin
    rows, names = classifier.network.head.out_features, len(classifier.class_names)
    if rows != names:
        raise CheckpointError(f"{path}: not written: the head has {rows} rows, and there are {names} class names")
    if not isinstance(origin, Source) or not names:
        content = encode(state, make_metadata(classifier))
    else:
        unchanged = _unchanged(classifier, origin)
        content = unchanged or encode(state, make_metadata(classifier, lineage=origin.lineage_of_child()))
    replace_file(named, content)
    return sha256_of(content)


def make_metadata(
    classifier: Classifier,
    *,
    recipe: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    lineage: list[dict[str, Any]] | None = None,
    confidence: Confidence | None = None,
) -> Metadata:
    """The metadata of a classifier as it is now. CheckpointError when it cannot be written to a file."""
    try:
        metadata = Metadata(
            model=classifier.model,
            arguments=classifier.arguments,
            classes=list(classifier.class_names),
            input=InputMetadata.model_validate(classifier.input.as_dict()),
            recipe=recipe or {},
            data=data or {},
            results=results or {},
            lineage=lineage or [],
            versions=versions(classifier.model),
            confidence=confidence,
        )
        check_saveable(metadata)
    except ValidationError as error:
        raise CheckpointError(f"this classifier cannot be saved: {error.errors()[0]['msg'].lower()}") from None
    except ValueError as error:
        raise CheckpointError(f"this classifier cannot be saved: {error}") from None
    return metadata


def _unchanged(classifier: Classifier, origin: Source) -> bytes | None:
    """The bytes of the file that it came from, if that is still there and is of the same weights, classes and input."""
    now, then, path = make_metadata(classifier), origin.metadata, origin.path or origin.cached
    if then is None or path is None:
        return None
    if (now.model, now.arguments, now.classes, now.input) != (then.model, then.arguments, then.classes, then.input):
        return None
    try:
        loaded, content = read_checkpoint(path), path.read_bytes()
    except (CheckpointError, OSError):
        return None
    if not loaded.sha256 == origin.sha256 == sha256_of(content):
        return None
    then_state, state = loaded.tensors, classifier.network.state_dict()
    if then_state.keys() != state.keys():
        return None
    same = all(t.dtype == state[name].dtype and t.equal(state[name].cpu()) for name, t in then_state.items())
    return content if same else None
