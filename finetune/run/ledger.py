"""The ledger of test sets: which runs have opened the same test images before, and what that does to p-values."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

from finetune.io.atomic import append_line, make_folder
from finetune.io.safe_open import read_regular
from finetune.report.report import TestSetUse

LEDGER = "test-sets.jsonl"  # in the folder of all run folders
MAX_LEDGER_BYTES = 100_000_000
MAX_NAMED = 20  # runs in one report


def digest_of(values: object) -> str:
    """A short hash of JSON values, by which the ledger tells runs and choices apart."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def record_opening(folder: Path, fingerprint: str, *, command: str, name: str, run: str, choice: str) -> TestSetUse:
    """Notes in `folder`/test-sets.jsonl that a run opens test images; returns how often they were opened before.

    fingerprint: of the test images. run: tells this run from all others; the same run opens them once, however often it
    is resumed. choice: a hash of what a person could choose by the result, such as the recipe without its seed: earlier
    runs of the same command with another choice look like tuning. OutputError.
    """
    entries = [entry for entry in read_ledger(folder / LEDGER) if entry["test"] == fingerprint]
    own = next((place for place, entry in enumerate(entries) if entry["run"] == run), None)
    if own is None:
        entry = {"test": fingerprint, "command": command, "name": name, "run": run, "choice": choice}
        make_folder(folder)
        line = json.dumps({**entry, "at": time.strftime("%Y-%m-%d %H:%M:%S")})
        append_line(folder / LEDGER, f"{line}\n".encode())
    earlier = entries[:own]
    others = {entry["choice"] for entry in earlier if entry["command"] == command} - {choice}
    return TestSetUse(
        fingerprint=fingerprint,
        opened_before=len(earlier),
        by=[f"{entry['command']} {entry['name']}" for entry in earlier[-MAX_NAMED:]],
        other_choices=len(others),
    )


def read_ledger(path: Path) -> list[dict[str, str]]:
    """The entries of a ledger, oldest first; lines that are none are passed over."""
    try:
        lines = read_regular(path, MAX_LEDGER_BYTES).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return []
    return [entry for line in lines if (entry := _entry(line)) is not None]


def _entry(line: str) -> dict[str, str] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    keys = ("test", "command", "name", "run", "choice")
    whole = isinstance(values, Mapping) and all(isinstance(values.get(key), str) for key in keys)
    return {key: values[key] for key in keys} if whole else None
