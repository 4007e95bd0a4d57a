"""finetune's loop on whole epochs against the same steps on one batch that lies ready: what part of its speed is kept.

The article's network in batches of 128, on 60,000 images of noise of MNIST's size (speed does not depend on what is on
them). Loop, bare steps, bare steps, loop, so that a machine that gets slower or faster meanwhile favours neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from contract import MNIST_MEAN, MNIST_STD, answer, options

BATCH = 128


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--augment", choices=("none", "shift", "affine"), default="none")
    given = parser.parse_args()
    from finetune.system import configure_process

    configure_process()
    import torch
    import torch.nn.functional as F

    from finetune.data.augment.affine import Augment
    from finetune.data.loader import Batches
    from finetune.data.normalize import Normalizer
    from finetune.models.registry import build_model
    from finetune.train import loop
    from finetune.train.device import choose_runtime
    from finetune.train.optim import build_optimizer, make_schedule, stage_groups

    changes = {"none": {}, "shift": {"shift": 1}, "affine": {"shift": 2, "rotate": 10, "scale": 0.1, "shear": 5}}
    runtime = choose_runtime("cpu", given.precision)
    torch.manual_seed(given.seed)
    network = build_model("cnn", 10, {})
    runtime.place(network)
    count = given.limit or 60_000
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8)
    batches = Batches(
        images,
        torch.randint(0, 10, (count,)),
        batch_size=BATCH,
        seed=given.seed,
        normalize=Normalizer((MNIST_MEAN,), (MNIST_STD,), runtime.device),
        augment=Augment(**changes[given.augment]) if changes[given.augment] else None,
        classes=10,
    )
    arguments = {"lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    steps = batches.steps_per_epoch
    phase = loop.PhaseConfig("all", network.stages, steps, "sgd", arguments, make_schedule("constant"))

    def looped() -> None:
        for _ in loop.Training(network, batches, phase, runtime):
            pass

    def bare() -> None:
        optimizer = build_optimizer(stage_groups(network, arguments["lr"], 1.0), "sgd", arguments)
        network.train()
        for _ in range(steps):
            with runtime.autocast():
                logits = network(fixed)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def timed(work: Callable[[], None]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    fixed, labels = next(iter(batches.epoch(0)))
    timed(looped)  # the first steps of all are slow
    first, second, third, fourth = (timed(work) for work in (looped, bare, bare, looped))
    speed, fixed_speed = 2 * count / (first + fourth), 2 * steps * BATCH / (second + third)
    answer(("torch",), images_per_second=speed, fixed_images_per_second=fixed_speed, share=speed / fixed_speed)


if __name__ == "__main__":
    main()
