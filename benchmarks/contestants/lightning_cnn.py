"""The article's network as a LightningModule under a Trainer: images/s of the last epoch.

The images lie in memory, normalised, behind a DataLoader without workers or with two: which is faster was not to be
told on a busy machine, so both are contestants. The network is in channels_last order; bar, log, summary and
checkpoints are off.
"""

from __future__ import annotations

import time
import warnings

from contract import answer, options


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    import lightning
    import torch
    import torch.nn.functional as F
    from network import accuracy, article_network, mnist_tensors
    from torch.utils.data import DataLoader, TensorDataset

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = article_network().to(memory_format=torch.channels_last)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            images, labels = batch
            return F.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    class Clock(lightning.Callback):
        def on_train_epoch_start(self, *_: object) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self, *_: object) -> None:
            self.seconds = time.perf_counter() - self.started

    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    lightning.seed_everything(given.seed, verbose=False)
    images = TensorDataset(*mnist_tensors(given.data, train=True, limit=given.limit))
    loader = DataLoader(
        images, batch_size=128, shuffle=True, num_workers=given.workers, persistent_workers=given.workers > 0
    )
    clock, model = Clock(), Classifier()
    trainer = lightning.Trainer(
        max_epochs=given.epochs,
        accelerator="cpu",
        precision="bf16-mixed" if given.precision == "bfloat16" else "32-true",
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    reached = accuracy(model.network, *mnist_tensors(given.data, train=False))
    answer(("lightning", "torch"), images_per_second=len(images) / clock.seconds, accuracy=reached)


if __name__ == "__main__":
    main()
