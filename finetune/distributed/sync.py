"""Checks that all processes train the same run, and broadcasts the leader's state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from finetune.distributed.process_group import ProcessGroup
from finetune.errors import SettingError
from finetune.text import json_diff

MAX_LISTED = 12  # differences in one message


def check_same_run(run: Mapping[str, Any], group: ProcessGroup) -> None:
    """Raises SettingError in a process that would not train the same as the leader: other data, other versions."""
    if group.size == 1:
        return
    leaders = json.loads(group.broadcast_bytes(_bytes(run) if group.leader else None))
    unlike = json_diff(leaders, run)
    if unlike:
        lines = "".join(f"  {line}\n" for line in unlike[:MAX_LISTED])
        raise SettingError(
            f"this process and the first one would not train the same; `there` is the first one:\n{lines}"
            "all processes need the same command, the same data and the same versions"
        )


def broadcast_state(
    values: object, tensors: Mapping[str, Tensor], group: ProcessGroup
) -> tuple[Any, dict[str, Tensor]]:
    """Broadcasts the leader's JSON values and tensors to every process."""
    if group.size == 1:
        return values, dict(tensors)
    content = group.broadcast_bytes(_bytes(values) if group.leader else None)
    state = group.broadcast_bytes(save({name: t.contiguous() for name, t in tensors.items()}) if group.leader else None)
    return (values, dict(tensors)) if group.leader else (json.loads(content), load(state))


def _bytes(values: object) -> bytes:
    return json.dumps(values, allow_nan=False).encode()
