"""The virtual environments of the contestants: made when first needed, with every version pinned.

`ours` is the Python that runs the benchmarks. The others are made from requirements/NAME.txt under benchmarks/.envs. An
environment `on` another one finds that one's packages after its own, so that torch, 5 GB of it, lies on the disk once.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".envs"
OURS = "ours"


@dataclass(frozen=True)
class Environment:
    """Requirements of one virtual environment; `on` names the one whose packages it sees too."""

    requirements: Path
    on: str | None = None


ENVIRONMENTS: dict[str, Environment] = {
    "torch": Environment(HERE / "requirements/torch.txt"),
    "lightning": Environment(HERE / "requirements/lightning.txt", on="torch"),
    "fastai": Environment(HERE / "requirements/fastai.txt", on="torch"),
    "keras": Environment(HERE / "requirements/keras.txt"),
}


def python_of(name: str) -> Path:
    """The interpreter of an environment; `prepare` makes it."""
    return Path(sys.executable) if name == OURS else FOLDER / name / "bin/python"


def prepare(name: str) -> None:
    """Makes the environment unless it is there with these very requirements. CalledProcessError when pip fails."""
    if name == OURS:
        return
    environment = ENVIRONMENTS[name]
    if environment.on is not None:
        prepare(environment.on)
    ready, wanted = FOLDER / name / "ready", _fingerprint(environment)
    if ready.is_file() and ready.read_text() == wanted:
        return
    print(f"making the environment {name} from {environment.requirements.name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER / name)], check=True)
    if environment.on is not None:
        (_packages(name) / "shared.pth").write_text(f"{_packages(environment.on)}\n")
    pip = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(environment.requirements)], check=True, env=_plain())
    ready.write_text(wanted)


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _packages(name: str) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return FOLDER / name / "lib" / version / "site-packages"


def _fingerprint(environment: Environment) -> str:
    """What an environment is made of: the Python, its own pins and those of what it stands on."""
    below = _fingerprint(ENVIRONMENTS[environment.on]) if environment.on is not None else sys.version
    return hashlib.sha256(below.encode() + environment.requirements.read_bytes()).hexdigest()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ENVIRONMENTS:
        prepare(wanted)
