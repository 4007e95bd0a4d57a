"""Makes what the races with photographs need: a folder of small JPEG files, and one file of weights for all.

    python benchmarks/photographs.py FOLDER [--data ROOT] [--train 2000] [--test 500]

The pictures are crops of the photographs of ants and bees in ROOT/hymenoptera, test crops from its validation part;
where that is not, of the two photographs that scikit-learn brings. The weights are a resnet18's, random, from one seed:
no race with them is about accuracy. The same bytes each time, with the same versions of Pillow and torch.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

from PIL import Image

SIZE = 64  # pixels a side
SMALLEST = 0.3  # of a photograph's shorter side, in a crop
QUALITY = 90


def sources(root: Path, part: str) -> dict[str, list[Path]]:
    """The photographs to cut from, by class."""
    folder = root / "hymenoptera" / part
    if folder.is_dir():
        return {kind.name: sorted(kind.glob("*.jpg")) for kind in sorted(folder.iterdir()) if kind.is_dir()}
    import sklearn.datasets

    images = Path(sklearn.datasets.__file__).parent / "images"
    return {name: [images / f"{name}.jpg"] for name in ("china", "flower")}


def crops(root: Path, part: str, count: int, folder: Path) -> None:
    """Writes `count` crops of a part into folder/CLASS/NUMBER.jpg, as many of each class."""
    by_class = sources(root, part)
    for number, (name, files) in enumerate(by_class.items()):
        (folder / name).mkdir(parents=True)
        chance = random.Random(f"{part} {name}")
        share = count // len(by_class) + (number < count % len(by_class))
        for place in range(share):
            with Image.open(files[place % len(files)]) as photograph:
                crop(photograph, chance).save(folder / name / f"{place:04}.jpg", quality=QUALITY)


def crop(photograph: Image.Image, chance: random.Random) -> Image.Image:
    """A square somewhere in the photograph, SIZE×SIZE."""
    width, height = photograph.size
    side = round(min(width, height) * chance.uniform(SMALLEST, 1))
    left, top = chance.randint(0, width - side), chance.randint(0, height - side)
    square = photograph.convert("RGB").crop((left, top, left + side, top + side))
    return square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def weights(file: Path) -> None:
    """A resnet18 without a classifier, as timm makes it from seed 0."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("resnet18", pretrained=False, num_classes=0).state_dict(), file)


def prepare(folder: Path, root: Path, train: int, test: int) -> None:
    """FOLDER/photographs/{train,val}/CLASS/*.jpg and FOLDER/resnet18.safetensors, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, new = folder / "photographs", folder / "photographs.new"
    if not pictures.is_dir():
        shutil.rmtree(new, ignore_errors=True)
        crops(root, "train", train, new / "train")
        crops(root, "val", test, new / "val")
        new.rename(pictures)
    if not (folder / "resnet18.safetensors").is_file():
        weights(folder / "resnet18.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=500)
    given = parser.parse_args()
    prepare(given.folder, given.data, given.train, given.test)


if __name__ == "__main__":
    main()
