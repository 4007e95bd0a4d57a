"""resnet18 on photographs under Lightning's Trainer with BackboneFinetuning: frozen epochs, then epochs of all layers.

Normalisation layers are frozen with the rest (`train_bn=False`): training them, the default, sends gradients through
the whole frozen backbone and takes longer.
"""

from __future__ import annotations

import time
import warnings

from contract import BATCH, answer, options


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--thawed", type=int, default=0, help="epochs of all layers after the frozen ones")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import lightning
    import torch
    import torch.nn.functional as F
    from backbone import FEATURES, photographs, resnet18
    from lightning.pytorch.callbacks import BackboneFinetuning
    from torch.utils.data import DataLoader

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = resnet18(given.work), torch.nn.Linear(FEATURES, 2)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            images, labels = batch
            return F.cross_entropy(self.head(self.backbone(images)), labels)

        def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
            images, labels = batch
            right = (self.head(self.backbone(images)).argmax(1) == labels).float().mean()
            self.log("accuracy", right, batch_size=len(labels))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)

    lightning.seed_everything(given.seed, verbose=False)
    started = time.perf_counter()
    workers = {"num_workers": given.workers, "persistent_workers": given.workers > 0}
    train = DataLoader(photographs(given.work, "train"), batch_size=BATCH, shuffle=True, **workers)
    held = DataLoader(photographs(given.work, "val"), batch_size=250, **workers)
    thawing = BackboneFinetuning(
        unfreeze_backbone_at_epoch=given.epochs, backbone_initial_lr=1e-4, should_align=False, train_bn=False
    )
    model = Classifier()
    trainer = lightning.Trainer(
        max_epochs=given.epochs + given.thawed,
        accelerator="cpu",
        precision="bf16-mixed" if given.precision == "bfloat16" else "32-true",
        callbacks=[thawing],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train)
    trained = time.perf_counter()
    (reached,) = trainer.validate(model, held, verbose=False)
    answer(
        ("lightning", "torch", "timm"),
        work_seconds=time.perf_counter() - started,
        train_seconds=trained - started,
        accuracy=reached["accuracy"],
    )


if __name__ == "__main__":
    main()
