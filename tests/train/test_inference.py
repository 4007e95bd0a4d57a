"""What a network says of many images, a batch at a time, is what putting all batches together would give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.train.inference import batched_apply, eval_batch_size


@pytest.mark.parametrize("count", [1, 4, 7, 8, 9])
@pytest.mark.parametrize("kind", ["logits", "rows", "columns"])
def test_the_parts_come_together_in_order_and_layout(count: int, kind: str) -> None:
    layout = torch.channels_last if kind == "columns" else torch.contiguous_format
    rows = torch.arange(count * 24).float().reshape(count, 2, 3, 4)
    seen: list[int] = []

    def run(some: torch.Tensor) -> torch.Tensor:
        seen.append(len(some))
        return some.flatten(1) if kind == "logits" else some.to(torch.bfloat16).contiguous(memory_format=layout)

    found = batched_apply(run, nn.Identity(), rows, 4)
    wanted = torch.cat([run(part) for part in rows.split(4)])
    assert seen[: len(seen) // 2] == [len(part) for part in rows.split(4)]
    assert torch.equal(found, wanted) and found.dtype == wanted.dtype and found.stride() == wanted.stride()


def test_no_part_is_kept_until_the_last_one_is_there() -> None:
    kept: list[int] = []
    alive = 0

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def run(some: torch.Tensor) -> torch.Tensor:
        nonlocal alive
        kept.append(alive)
        alive += 1
        return some.clone().as_subclass(Counted)

    batched_apply(run, nn.Identity(), torch.zeros(20, 3), 4)
    assert max(kept) <= 1 and len(kept) == 5


@pytest.mark.parametrize(
    ("side", "device", "images"),
    [(28, "cpu", 250), (64, "cpu", 128), (224, "cpu", 16), (28, "cuda", 500), (224, "cuda", 79), (1024, "cuda", 8)],
)
def test_larger_images_go_through_a_network_in_smaller_batches(side, device, images):
    assert eval_batch_size(side * side, torch.device(device)) == images
