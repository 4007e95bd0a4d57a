"""The article's script as written, run as a person runs it; its last line of accuracy is the figure.

With --limit only so many images train, which is for trying out.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

from contract import answer, options

ARTICLE = Path(__file__).resolve().parents[1] / "article.py"


class Both(io.StringIO):
    """Keeps what is printed and shows it."""

    def write(self, text: str) -> int:
        sys.stderr.write(text)
        return super().write(text)


def shorten(limit: int) -> None:
    """Has torchvision's MNIST give its first `limit` training images."""
    from torch.utils.data import Subset
    from torchvision import datasets

    whole = datasets.MNIST

    def part(root: str, train: bool, **arguments: object) -> object:
        images = whole(root, train=train, **arguments)
        return Subset(images, range(limit)) if train else images

    datasets.MNIST = part


def main() -> None:
    given = options(__doc__).parse_args()
    if given.limit:
        shorten(given.limit)
    sys.argv = [str(ARTICLE), str(given.data), str(given.seed)]
    with contextlib.redirect_stdout(Both()) as printed:
        runpy.run_path(str(ARTICLE), run_name="__main__")
    right, tested = re.findall(r"Accuracy: \[(\d+)/(\d+)\]", printed.getvalue())[-1]
    answer(("torch", "torchvision"), accuracy=int(right) / int(tested))


if __name__ == "__main__":
    main()
