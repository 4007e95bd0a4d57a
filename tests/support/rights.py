"""A folder that this process may not enter, whoever runs the tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def closed_folder(*copied: Path) -> Iterator[Path]:
    """A folder with `inside.png` in it that may not be entered while the block runs, in a folder that may.

    Beside it are copies of the files `copied`: whoever this process is meanwhile may read no others of the tests.
    """
    with tempfile.TemporaryDirectory(prefix="rights-") as name:
        Path(name).chmod(0o755)
        closed = Path(name) / "closed"
        closed.mkdir()
        (closed / "inside.png").touch()
        for path in copied:
            shutil.copy(path, name)
            (Path(name) / path.name).chmod(0o644)
        closed.chmod(0)
        root = os.geteuid() == 0  # who may enter any
        if root:
            os.seteuid(NOBODY)
        try:
            yield closed
        finally:
            if root:
                os.seteuid(0)
            closed.chmod(0o755)
