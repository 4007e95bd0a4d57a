"""How far test pictures flatter that are further frames of scenes learnt from, and what groups do about it.

    python benchmarks/tracks.py [--rounds 8]

Draws four classes of 40 scenes, each seen 12 times with small shifts and noise, as a camera's burst or a patient's
slices are. Adapts checkpoints/mnist.safetensors to them twice, once as the folder is and once with the scenes as groups
(data.group), and evaluates both networks on 400 scenes that nobody has seen: their accuracy is the truth. Scenes have
other names in each round, as their names decide which of them are tested.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import finetune

SOURCE = "checkpoints/mnist.safetensors"
CLASSES, FRAMES = 4, 12
PATTERN = r"(.+)_\d+"


def draw(folder: Path, scenes: range, rng: np.random.Generator) -> None:
    """FOLDER/CLASS/SCENE_FRAME.png: a bright bar, whose width is the class, on a ground that is the scene's own."""
    for label in range(CLASSES):
        home = folder / f"width {label}"
        home.mkdir(parents=True)
        for scene in scenes:
            ground = rng.normal(120, 30, (36, 36))
            top, left = rng.integers(6, 20, 2)
            ground[top : top + 8, left : left + 3 + 2 * label] += 60
            for frame in range(FRAMES):
                y, x = rng.integers(2, 7, 2)
                seen = ground[y : y + 28, x : x + 28] + rng.normal(0, 8, (28, 28))
                Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8)).save(home / f"{scene:05d}_{frame:02d}.png")


def measure(home: Path, seed: int) -> None:
    """Prints what both ways claim, and the truth."""
    rng = np.random.default_rng(seed)
    draw(home / "scenes", range(100 * seed, 100 * seed + 40), rng)
    draw(home / "unseen" / "test", range(100), rng)
    for name, settings in (("as a folder", {}), ("with groups", {"data.group": PATTERN})):
        out = home / f"{name}.safetensors"
        report = finetune.adapt(SOURCE, str(home / "scenes"), compare=False, settings=settings, out=out)
        truth, found = finetune.evaluate(out, str(home / "unseen")).result, report.results["after"]
        assert found is not None
        low, high = (100 * end for end in found.ci95)
        print(
            f"round {seed}, {name}: claims {100 * found.accuracy:.1f} % ({low:.1f} to {high:.1f}) of {found.total} "
            f"test pictures; unseen scenes {100 * truth.accuracy:.1f} %",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    for seed in range(parser.parse_args().rounds):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), seed)


if __name__ == "__main__":
    main()
