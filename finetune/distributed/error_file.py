"""The file in which torchrun looks for the reason why one of its processes failed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from finetune.io.sanitize import printable_lines

_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def tell_torchrun(message: str, seconds: float | None = None) -> None:
    """Writes why this process ends to where torchrun looks for it; nothing without torchrun, or the second time.

    torchrun ends with a traceback and a summary of its own, whose last lines are then the message of the process that
    failed first. seconds: when that was, since the epoch; None is now.
    """
    place = os.environ.get(_VARIABLE)
    if not place or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    moment = str(int(time.time() if seconds is None else seconds))
    content = {"message": {"message": printable_lines(message), "extraInfo": {"timestamp": moment}}}
    # A new file only: the first message is the reason, and nothing that somebody has there is written over.
    with contextlib.suppress(OSError, ValueError), Path(place).open("x", encoding="utf-8") as file:
        json.dump(content, file)
