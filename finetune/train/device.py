"""Device, precision, seeding, and the versions a result depends on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.errors import SettingError, TrainingError
from finetune.models.onednn import use_onednn_layout
from finetune.system import versions


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes. `precision`: float32 or bfloat16 (in training steps; evaluation is in float32).

    `group`: the processes that train together; each has a device of its own, or all have the same CPU. With `sharding`
    fsdp each has a shard of the state of training, else all of it.
    """

    device: torch.device
    precision: str
    group: ProcessGroup = SINGLE_PROCESS
    sharding: str | None = None

    @property
    def is_sharded(self) -> bool:
        """Whether the state of training is sharded; with one process it never is."""
        return self.sharding is not None and self.group.size > 1

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Runs the passes of training in the block: in `precision`, and in the fastest memory layout."""
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
            use_onednn_layout(),
        ):
            yield

    def place(self, network: nn.Module) -> None:
        """Moves a network to the device, with convolutions in channels_last order, which is the faster one here."""
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def choose_runtime(
    device: str, precision: str, group: ProcessGroup = SINGLE_PROCESS, sharding: str | None = None
) -> Runtime:
    """Resolves `device` (auto, cpu, cuda[:N] or mps) and `precision` (auto: bfloat16 if fast; float32 or bfloat16).

    SettingError when the device is not there, or when bfloat16 is asked for where the processor lacks it.
    """
    chosen = _device(device) if group.size == 1 else _rank_device(device, group)
    fast = not group.any(not _fast_bfloat16(chosen))  # the same arithmetic in all processes
    if precision == "bfloat16" and not fast:
        raise SettingError(f"precision bfloat16: {chosen} has no fast bfloat16 arithmetic; use float32 or auto")
    return Runtime(chosen, ("bfloat16" if fast else "float32") if precision == "auto" else precision, group, sharding)


def _rank_device(name: str, group: ProcessGroup) -> torch.device:
    """The device of one of several processes: the GPU of its local rank, or the CPU."""
    if name not in ("auto", "cpu", "cuda"):
        raise SettingError(f"--device {name}: with several processes it is auto, cpu or cuda; each takes its own GPU")
    if group.backend != "nccl":
        return _device("cpu" if name == "auto" else name)
    there = torch.cuda.device_count()
    if group.local >= there:
        raise SettingError(
            f"process {group.local + 1} of this machine has no GPU, since there are {there}; start at most "
            f"--nproc-per-node {there}, or use --device cpu"
        )
    return torch.device("cuda", group.local)


def _device(name: str) -> torch.device:
    mps = ["mps"] if torch.backends.mps.is_available() else []
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there = ["cpu", *mps, *gpus]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else mps[0] if mps else "cpu")
    if name in there or (name == "cuda" and gpus):
        return torch.device(name)
    raise SettingError(f"--device {name}: not on this machine, which has {', '.join(there)}; auto chooses")


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def environment(runtime: Runtime) -> dict[str, Any]:
    """Everything that may change a result's last bits or its speed: versions, processor, threads, precision."""
    group = runtime.group
    gpu = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else None
    return {
        **versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": gpu or _processor(),
        "threads": torch.get_num_threads(),
        "precision": runtime.precision,
        **({"processes": group.size, "backend": group.backend} if group.size > 1 else {}),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. The CPU's allocator has no exception of its own; its message says so."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


@contextmanager
def translate_oom(phase: str, batch_size: int) -> Iterator[None]:
    """Turns running out of memory in the block into a TrainingError that says what to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory in phase {phase} with batches of {batch_size} images; try a smaller batch_size, for "
            f"example {max(1, batch_size // 2)} with a lower learning rate, fewer stages to train, smaller "
            "images, or fewer classes"
        ) from None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's random numbers and makes cuDNN deterministic while the block runs.

    The caller's random state (CPU and CUDA) and cuDNN settings are restored after it.
    """
    devices = list(range(torch.cuda.device_count()))
    same = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, benchmark=False)
    with torch.random.fork_rng(devices=devices), same:
        torch.manual_seed(seed)
        yield
