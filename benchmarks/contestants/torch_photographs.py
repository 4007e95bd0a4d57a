"""resnet18 on photographs in a plain torch + timm loop, written with care: frozen epochs, then epochs of all layers.

The photographs are decoded once and lie in memory. While the backbone is frozen it runs in evaluation mode without a
graph. That its output could be kept from one epoch to the next is what finetune does; a plain loop does not.
"""

from __future__ import annotations

import time

from contract import BATCH, answer, options


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--thawed", type=int, default=0, help="epochs of all layers after the frozen ones")
    given = parser.parse_args()
    import torch
    import torch.nn.functional as F
    from backbone import FEATURES, in_memory, resnet18

    torch.manual_seed(given.seed)
    started = time.perf_counter()
    images, labels = in_memory(given.work, "train")
    held, held_labels = in_memory(given.work, "val")
    opened = time.perf_counter()
    backbone, head = resnet18(given.work), torch.nn.Linear(FEATURES, 2)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bfloat16")

    def epoch(optimizer: torch.optim.Optimizer, *, frozen: bool) -> None:
        backbone.train(not frozen)
        for rows in torch.randperm(len(images)).split(BATCH):
            with cast:
                with torch.set_grad_enabled(not frozen):
                    features = backbone(images[rows])
                logits = head(features)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels[rows]).backward()
            optimizer.step()

    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(given.epochs):
        epoch(optimizer, frozen=True)
    if given.thawed:
        optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-4)
    for _ in range(given.thawed):
        epoch(optimizer, frozen=False)
    trained = time.perf_counter()
    backbone.eval()
    with torch.no_grad(), cast:
        found = torch.cat([head(backbone(part)).argmax(1) for part in held.split(250)])
    answer(
        ("torch", "timm"),
        work_seconds=time.perf_counter() - started,
        data_seconds=opened - started,
        train_seconds=trained - opened,
        accuracy=float((found == held_labels).double().mean()),
    )


if __name__ == "__main__":
    main()
