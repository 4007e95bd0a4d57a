"""`finetune calibrate`: fits temperature, promise and novelty score of a finished checkpoint on held-out images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.checkpoint.confidence import Confidence, NoveltyLayer
from finetune.checkpoint.format import encode
from finetune.data.image_dataset import ImageSet, join
from finetune.data.openers import check_images_name, short_name
from finetune.data.split import image_hashes
from finetune.errors import DataError, SettingError
from finetune.io.outputs import check_output, replace_file
from finetune.io.safe_open import sha256_of
from finetune.paths import data_root as resolve_data_root
from finetune.recipe.schema import DataSettings
from finetune.report.confidence import ConfidenceSummary, confidence_lines
from finetune.report.console import Console
from finetune.run.confidence import MIN_IMAGES, check_max_error, fit_confidence, observe_held_out, reference_layers
from finetune.run.data import RunData, open_run_data
from finetune.run.finalize import confidence_summary
from finetune.run.measured import LearntFrom
from finetune.sources.resolve import Source, locate, open_source
from finetune.sources.save import SUFFIX, make_metadata
from finetune.text import listed, places_of
from finetune.train.device import choose_runtime

SALT = "learnt from"


@dataclass(frozen=True)
class Calibration:
    """What was fitted, on how many `images` of the data, and the checkpoint that records it, `out`.

    known_new: whether the checkpoint has learnt from none of them; of other data sets than its own that cannot be told.
    """

    checkpoint: str
    data: str
    images: int
    out: str
    confidence: ConfidenceSummary
    known_new: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "confidence": self.confidence.to_dict()}

    def lines(self) -> list[str]:
        """What the command shows."""
        which = "that it has not learnt from"
        if not self.known_new:
            which = "; whether some of them, or their twins, are among those it has learnt from cannot be told"
        return [f"{self.data}: {self.images:,} images {which}".replace(" ;", ";"), *confidence_lines(self.confidence)]


def calibrate(
    checkpoint: str | Path,
    data: str,
    *,
    max_error: float | None = None,
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Calibration:
    """Fits a checkpoint's confidence on images that it has not learnt from, and writes it with that on record.

    checkpoint, device: as in `evaluate`. data: a data set's name, a folder or a table; its test images are left alone.
    Of the data that the checkpoint was trained on, those images to learn from that it did not get. max_error: share of
    answers that may be wrong, to be promised. out: the checkpoint to write, by default NAME-calibrated.safetensors
    beside the first; its weights are the same.

    DataError where no or too few images are left, or their classes are not the checkpoint's; SettingError;
    CheckpointError; OutputError.
    """
    console = console or Console(quiet=True, results=False)
    check_max_error(max_error)
    check_images_name(data)
    source = open_source(locate(checkpoint, note=console.note, bars=not console.quiet))
    classifier = source.classifier
    if not classifier.class_names:
        raise SettingError(f"{checkpoint}: these weights have no head, so they name no class; adapt makes one")
    path = check_output(out or _default_out(source), "--out", [SUFFIX], inputs=(checkpoint, data))
    runtime = choose_runtime(device, "float32")
    images, learnt = _held_out(source, data, resolve_data_root(data_root), console)
    if len(images) < MIN_IMAGES:
        raise DataError(
            f"{data}: expected at least {MIN_IMAGES} images to calibrate on, found {len(images)} that the checkpoint "
            "has not learnt from; fewer make probabilities worse"
        )
    runtime.place(classifier.network)
    normalize = classifier.input.normalizer(runtime.device)
    old = classifier.confidence.novelty if classifier.confidence is not None else None
    layers: list[NoveltyLayer] = [] if old is None else old.layers
    if learnt is not None:
        layers = reference_layers(classifier.network, learnt, normalize)
    held = observe_held_out(classifier.network, images, layers, normalize)
    found, notes = fit_confidence(held, layers, "data", max_error)
    assert found is not None, "there are enough images"
    if learnt is None:  # other images say nothing of how new ones of the training's kind score
        found = found.model_copy(update={"novelty": old})
    _write(path, source, found, console)
    summary = confidence_summary(found, notes, images, None)
    return Calibration(str(checkpoint), short_name(data), len(images), str(path), summary, learnt is not None)


def _default_out(source: Source) -> Path:
    folder = source.path.parent if source.path is not None else Path("checkpoints")
    return folder / f"{source.name}-calibrated{SUFFIX}"


def _held_out(source: Source, data: str, root: Path, console: Console) -> tuple[ImageSet, ImageSet | None]:
    """Images that the source has not learnt from, by its own classes; and those it has, where this is its own data."""
    classifier, learnt = source.classifier, LearntFrom.of(source.metadata)
    own = source.dataset == short_name(data)
    settings = {**(learnt.recipe.get("data", {}) if own else learnt.reading(data)), "name": data, "augment": None}
    seed = learnt.recipe.get("seed", 0) if own else 0
    found = open_run_data(DataSettings.model_validate(settings), root, seed, classifier.input, console)
    if not own:
        parts = [found.train, found.validation]
        return _by_classes(join([part for part in parts if len(part)], found.train.origin), source, data), None
    if found.train.fingerprint() != learnt.fingerprints.get("train"):
        raise DataError(
            f"{data}: the checkpoint was trained on other images of a data set of this name, so that which of these it "
            "has learnt from cannot be told; name images that it has never seen with --data"
        )
    return _by_classes(_without(_to_learn_from(found), found.train, data), source, data), found.train


def _to_learn_from(found: RunData) -> ImageSet:
    """All images but the test set's."""
    assert found.splits is not None
    parts = [part for part in (found.splits.train, found.splits.validation) if part is not None and len(part)]
    return join(parts, found.splits.train.origin)


def _without(every: ImageSet, learnt: ImageSet, data: str) -> ImageSet:
    """The images whose pixels none of those learnt from has. DataError where none is left."""
    known = image_hashes(learnt.images, SALT)
    left = np.flatnonzero(~np.isin(image_hashes(every.images, SALT), known))
    if not len(left):
        raise DataError(
            f"{data}: the checkpoint has learnt from all {len(every):,} images to learn from, and its test images stay "
            "closed; hold some out when it is trained (data.validation), or name others with --data"
        )
    return every.subset(left)


def _by_classes(images: ImageSet, source: Source, data: str) -> ImageSet:
    """The images of the source's classes, with its class names. DataError for images of fewer than two classes."""
    names, counts = source.classifier.class_names, images.counts()
    shared = [name for name in names if counts.get(name)]
    if len(shared) < 2:
        raise DataError(
            f"{data}: expected images of at least two of the checkpoint's classes, {listed(names)}; found "
            f"{listed(shared) if shared else 'none'}: the probability of the only class there is says nothing"
        )
    kept = images.with_classes(shared)
    places = np.array(places_of(shared, names))
    return replace(kept, labels=kept.labels.new_tensor(places[kept.labels.numpy()]), class_names=names)


def _write(path: Path, source: Source, confidence: Confidence, console: Console) -> None:
    """Writes the same weights with this record of their confidence. OutputError, CheckpointError."""
    metadata = source.metadata
    if metadata is None:
        metadata = make_metadata(source.classifier, lineage=source.lineage_of_child())
    state = {name: tensor.cpu() for name, tensor in source.classifier.network.state_dict().items()}
    content = encode(state, metadata.model_copy(update={"confidence": confidence}))
    replace_file(path, content, console.note)
    console.say(f"wrote {path} (sha256 {sha256_of(content)[:12]})")
