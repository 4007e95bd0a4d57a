"""What a network still knows of its source's task: the images to ask it about, and its accuracy on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError

from finetune.data.image_dataset import DataSplits, ImageSet
from finetune.data.registry import is_present, open_dataset
from finetune.data.split import hold_out
from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.errors import DataError
from finetune.models.classifier import Classifier
from finetune.models.staged import StagedNetwork
from finetune.recipe.schema import DataSettings
from finetune.report.report import Retention
from finetune.run.context import TrainContext
from finetune.run.data import choose_run_data
from finetune.sources.resolve import Source
from finetune.text import places_of
from finetune.train.activation_cache import ActivationCache, ActivationKey, CachePart
from finetune.train.inference import top_class

MAX_IMAGES = 2_000  # of the source, by which a mix is chosen: each mix runs them all
PART = "source's"


@dataclass(frozen=True)
class SourceTask:
    """The task that a source was trained for.

    classifier: of the untouched source. classes: of the target, in the order of a fine-tuned head. frozen: how many
    stages every fine-tuned network shares with the source. root: the folder of the data sets.
    """

    source: Source
    classifier: Classifier
    classes: tuple[str, ...]
    context: TrainContext
    frozen: int
    root: Path

    def test_images(self) -> ImageSet | None:
        """The source's own test images; None unless its data set is at hand and they are the same."""
        splits = self._splits()
        return splits.test if splits is not None else None

    def held_out_images(self) -> tuple[ImageSet, str] | None:
        """At most MAX_IMAGES of the source's images that are no test images, and which part of its data they are.

        "validation" where its training held images out and they are found again, else "train", which it has learnt
        from. None where its data set is not at hand, in any process.
        """
        splits = self._splits()
        if self.context.runtime.group.any(splits is None) or splits is None:
            return None
        validation = self._validation(splits)
        images, part = (splits.train, "train") if validation is None else (validation, "validation")
        if len(images) > MAX_IMAGES:
            images = hold_out(images, MAX_IMAGES / len(images), salt="source")[1]
        return images, part

    def missing(self) -> str:
        """Why there are no images of the source's task."""
        if self.source.dataset is None:
            return "the source does not say what it was trained on"
        return f"{self.source.dataset}, which the source was trained on, is not in {self.root}, or not as it was"

    @contextmanager
    def asked(self, images: ImageSet, group: ProcessGroup) -> Iterator[AskedSource]:
        """Opens these images of the source for networks to be asked about."""
        runtime, kept = replace(self.context.runtime, group=group), self.context.cache
        parts = {PART: CachePart(images.images)}
        with ActivationCache(parts, self.context.normalize, runtime, kept.room, kept.folder, kept.warn) as cache:
            cache.keep_in_memory(self.classifier.network, ActivationKey(PART, self.frozen))
            yield AskedSource(self, images, cache)

    def _splits(self) -> DataSplits | None:
        """The source's data set with the classes that it knows, where it is at hand and has the same test images."""
        name, names = self.source.dataset, self.classifier.class_names
        try:
            if name is None or not is_present(name, self.root):
                return None
            found = open_dataset(name, self.root, download=False)
            splits = DataSplits(found.train.with_classes(names), found.test.with_classes(names))
        except DataError:
            return None
        own = self.source.metadata.data.get("test") if self.source.metadata is not None else None
        same = not isinstance(own, dict) or own.get("fingerprint") in (None, splits.test.fingerprint())
        return splits if same else None  # a folder may be called like a data set

    def _validation(self, splits: DataSplits) -> ImageSet | None:
        """The images that the source's training held out, found again by its recipe; None where there are none."""
        metadata = self.source.metadata
        own = metadata.data.get("validation") if metadata is not None else None
        if metadata is None or not isinstance(own, dict) or not own.get("images"):
            return None
        try:
            settings = DataSettings.model_validate(metadata.recipe.get("data"))
            seed = metadata.recipe.get("seed", 0)
            found = choose_run_data(str(self.source.dataset), splits, settings, seed).validation
        except (ValidationError, DataError):  # a recipe of another version
            return None
        return found if found.fingerprint() == own.get("fingerprint") else None


@dataclass(frozen=True)
class AskedSource:
    """Images of the source's task that are open, and how networks answer them."""

    task: SourceTask
    images: ImageSet
    cache: ActivationCache

    def before(self) -> float:
        """The untouched source's accuracy."""
        return self._right(self.cache.outputs(self.task.classifier.network, PART, reduce=top_class))

    def accuracy(self, adapted: StagedNetwork) -> float:
        """The accuracy of a network with the head of the target.

        Where that head knows every class of the source, it answers (its other classes are not offered); else the
        source's head is put on its features, which shows whether they still serve the old task.
        """
        names, classes = self.task.classifier.class_names, self.task.classes
        if set(names) <= set(classes):
            offered = places_of(names, classes)
            return self._right(self.cache.outputs(adapted, PART, reduce=lambda logits, _: logits[:, offered].argmax(1)))
        with torch.no_grad():
            return self._right(self.task.classifier.network.head(self.cache.outputs(adapted, PART, -1)).argmax(1))

    def _right(self, predicted: torch.Tensor) -> float:
        return float((predicted.cpu() == self.images.labels).double().mean())


def measure_retention(
    task: SourceTask, adapted: StagedNetwork, interpolated: StagedNetwork | None = None
) -> Retention | None:
    """Accuracy on the source's own test images before and after; None unless its data set is at hand."""
    test, group = task.test_images(), task.context.runtime.group
    if group.any(test is None):  # on some machine: then who has it looks alone
        group = SINGLE_PROCESS
    if test is None:
        return None
    assert task.source.dataset is not None
    with task.asked(test, group) as asked:
        mixed = None if interpolated is None else asked.accuracy(interpolated)
        return Retention(task.source.dataset, asked.before(), asked.accuracy(adapted), mixed)
