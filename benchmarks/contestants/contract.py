"""What every contestant's script takes and gives, whatever environment it runs in: the same options, one line of JSON.

    python SCRIPT --data ROOT --work FOLDER --seed N --threads N [--limit N] [--epochs N] [--precision P] [own options]

The last line of standard output is an object of figures: numbers by name, `versions` beside them. This file needs the
standard library only.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

SIZE = 64  # pixels, the side of the photographs
BATCH = 64  # photographs in a step
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data sets in torchvision's layout")
    parser.add_argument(
        "--work", type=Path, required=True, help="what was prepared: photographs/, resnet18.safetensors"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="so many training images only")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="float32")
    return parser


def answer(packages: tuple[str, ...], **figures: float) -> None:
    """Prints the line that the runner reads."""
    print(json.dumps({**figures, "versions": {name: version(name) for name in packages}}), flush=True)
