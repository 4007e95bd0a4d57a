"""resnet18 on photographs in a fastai Learner: freeze and fit_one_cycle, or fine_tune with one epoch of all layers.

Normalisation layers are frozen with the rest (`train_bn=False`): training them, the default, sends gradients through
the whole frozen backbone and takes longer. The validation after every epoch is left out; the test is at the end.
float32 only: fastai's to_bf16 casts on CUDA devices and changes nothing on the CPU.
"""

from __future__ import annotations

import time
import warnings

from contract import BATCH, MEAN, STD, answer, options


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--thawed", type=int, default=0, help="epochs of all layers after the frozen ones")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch
    from backbone import FEATURES, resnet18
    from fastai.vision import all as fastai

    class TestAtTheEnd(fastai.Callback):
        def before_validate(self) -> None:
            if self.training_goes_on:
                raise fastai.CancelValidException

    fastai.set_seed(given.seed)
    started = time.perf_counter()
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock),
        get_items=fastai.get_image_files,
        splitter=fastai.GrandparentSplitter(train_name="train", valid_name="val"),
        get_y=fastai.parent_label,
        batch_tfms=fastai.Normalize.from_stats(MEAN, STD, cuda=False),
    )
    loaders = block.dataloaders(given.work / "photographs", bs=BATCH, num_workers=given.workers, device="cpu")
    network = torch.nn.Sequential(resnet18(given.work), torch.nn.Linear(FEATURES, 2))
    testing = TestAtTheEnd()
    testing.training_goes_on = True
    learner = fastai.Learner(
        loaders,
        network,
        fastai.CrossEntropyLossFlat(),
        splitter=lambda parts: [fastai.params(part) for part in parts],
        metrics=fastai.accuracy,
        train_bn=False,
        cbs=[testing],
    )
    with learner.no_bar(), learner.no_logging():
        if given.thawed:
            learner.fine_tune(given.thawed, freeze_epochs=given.epochs)
        else:
            learner.freeze()
            learner.fit_one_cycle(given.epochs)
        trained = time.perf_counter()
        testing.training_goes_on = False
        _, reached = learner.validate()
    answer(
        ("fastai", "torch", "timm"),
        work_seconds=time.perf_counter() - started,
        train_seconds=trained - started,
        accuracy=float(reached),
    )


if __name__ == "__main__":
    main()
