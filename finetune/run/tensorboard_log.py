"""`--log tensorboard`: an event file in the run's folder, for `tensorboard --logdir runs`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from finetune.io.atomic import raises_output_error
from finetune.run.loggers import Picture

FOLDER = "tensorboard"  # in a run folder


class TensorboardLog:
    """Scalars of every row; at the end the accuracies, the verdict as text and the confusion matrix as an image."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / FOLDER
        with raises_output_error(self.folder):
            if self.folder.exists():
                shutil.rmtree(self.folder)
            # A page that is open shows what it has read of the older file until it is told to drop it.
            self.writer = SummaryWriter(self.folder, purge_step=0)

    def row(self, step: int, values: Mapping[str, float]) -> None:
        with raises_output_error(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def outcome(self, step: int, values: Mapping[str, float], verdict: str, confusion: Picture | None) -> None:
        with raises_output_error(self.folder):
            self.writer.add_text("verdict", verdict, step)
            if confusion is not None:
                self.writer.add_image("confusion", confusion, step, dataformats="HWC")
        self.row(step, values)

    def close(self) -> None:
        self.writer.close()
