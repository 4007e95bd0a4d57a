"""Files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from finetune.errors import OutputError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that its name never shows half of it: to a temporary one beside it, synced, then renamed."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); make room or name another place") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)  # there only when something failed, Ctrl-C included
