"""What the processes of a job agree on before a run: that it is the same one, and where an earlier attempt stood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from finetune.commands.differences import differences
from finetune.errors import SettingError
from finetune.reporting.console import Console
from finetune.training.group import Group
from finetune.training.runtime import Runtime

MOST_LISTED = 12  # differences in one message


def one_speaks(console: Console, group: Group) -> None:
    """What the leader shows, the others need not."""
    if not group.leader:
        console.hush()


def sharding_told(runtime: Runtime, console: Console) -> None:
    """A recipe that divides the state of training is good for one process too, but that has to hold all of it."""
    if runtime.sharding is not None and not runtime.divides:
        console.note("sharding: with one process there is nothing to divide; torchrun starts several (docs/scaling.md)")


def same_run(run: Mapping[str, Any], group: Group) -> None:
    """SettingError in a process that would train something else than the leader: other data, other versions."""
    if group.size == 1:
        return
    leaders = json.loads(group.share(_bytes(run) if group.leader else None))
    unlike = differences(leaders, run)
    if unlike:
        raise SettingError(
            "\n".join(
                [
                    "this process and the first one would not train the same; `there` is the first one:",
                    *(f"  {line}" for line in unlike[:MOST_LISTED]),
                    "all processes need the same command, the same data and the same versions",
                ]
            )
        )


def shared(values: object, tensors: Mapping[str, Tensor], group: Group) -> tuple[Any, dict[str, Tensor]]:
    """The leader's JSON values and tensors, in every process."""
    if group.size == 1:
        return values, dict(tensors)
    told = group.share(_bytes(values) if group.leader else None)
    state = group.share(save({name: t.contiguous() for name, t in tensors.items()}) if group.leader else None)
    return (values, dict(tensors)) if group.leader else (json.loads(told), load(state))


def _bytes(values: object) -> bytes:
    return json.dumps(values, allow_nan=False).encode()
