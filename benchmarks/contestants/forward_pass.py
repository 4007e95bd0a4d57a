"""One pass of resnet18 over the photographs without gradients: the least that training a head on frozen stages takes.

In float32 and in the precision that finetune chooses here, in batches of 64 and of 250; the quicker size counts.
"""

from __future__ import annotations

import statistics
import time

from contract import answer, options

PASSES = 3


def main() -> None:
    given = options(__doc__).parse_args()
    from finetune.system import configure_process

    configure_process()
    import torch
    from backbone import in_memory, resnet18

    from finetune.train.device import choose_runtime

    images, _ = in_memory(given.work, "train")
    network = resnet18(given.work).eval()

    @torch.inference_mode()
    def seconds(precision: str, size: int) -> float:
        with choose_runtime("cpu", precision).autocast():
            network(images[:size])
            found = []
            for _ in range(PASSES):
                started = time.perf_counter()
                for part in images.split(size):
                    network(part)
                found.append(time.perf_counter() - started)
        return statistics.median(found)

    quickest = {precision: min(seconds(precision, size) for size in (64, 250)) for precision in ("auto", "float32")}
    answer(("torch", "timm"), pass_seconds=quickest["auto"], pass_float32_seconds=quickest["float32"])


if __name__ == "__main__":
    main()
