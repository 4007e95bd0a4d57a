"""Runs `finetune ...` many times, each in a fresh process of its own, without paying for Python's imports each time.

All but huggingface_hub is imported once; every command is then a fork that sets its own environment before it imports
the client, which reads HF_ENDPOINT and the like at import. Reads one JSON request a line, answers with the exit code.
Pauses before another try take a part of their time, one in `haste`. The modules named as arguments are
imported once, too, such as those that load torch, where commands need it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

# Slow to import, and without a setting that is read then.
import filelock  # noqa: F401
import fsspec  # noqa: F401
import tqdm.auto  # noqa: F401
import yaml  # noqa: F401

import finetune.commands.inspect
import finetune.commands.pull
import finetune.commands.push  # noqa: F401
from finetune.cli.main import main


def child(asked: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    for number, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
    if asked.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"],) * 2)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(seconds / asked["haste"])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as in a process of its own, where nothing was read yet
    sys.argv = ["finetune", *asked["words"]]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    Path(asked["imported"]).write_text(" ".join({name.partition(".")[0] for name in sys.modules}))
    os._exit(code)


for name in sys.argv[1:]:
    importlib.import_module(name)
with contextlib.suppress(ImportError):
    import httpx2  # noqa: F401
with contextlib.suppress(ImportError):
    import httpx  # noqa: F401

assert "huggingface_hub" not in sys.modules, "what reads settings at import must not be there yet"
assert sys.argv[1:] or "torch" not in sys.modules
for line in sys.stdin:
    number = os.fork()
    if number == 0:
        try:
            child(json.loads(line))
        finally:
            import traceback

            traceback.print_exc()
            os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
