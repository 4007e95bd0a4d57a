"""Describes a registered data set: its classes, files, mirrors and licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HUB_DATA = "hub-data:"  # before OWNER/NAME[@REVISION] of a data set on the Hub, whose files are fetched first
SAMPLES = Path(__file__).parent / "samples"  # files that come with this package


@dataclass(frozen=True)
class Archive:
    """A file to download: its name under each mirror, and the MD5 of its bytes. A .gz holds one file, a .zip many."""

    name: str
    md5: str


@dataclass(frozen=True)
class DatasetSpec:
    """A registered data set, as known before any of its files is opened.

    `folder` and the file names follow torchvision: ROOT/MNIST/raw/train-images-idx3-ubyte. No folder: the files come
    with this package, or, where there are none, the data with a library. The counts are those published; other counts
    in the files are accepted.
    """

    name: str
    title: str
    about: str  # one line
    class_names: tuple[str, ...]  # in the order of the labels
    train_images: int
    test_images: int
    licence: str
    source: str  # the page that publishes it
    folder: str = ""
    train_files: tuple[str, ...] = ()  # images, labels
    test_files: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()
    mirrors: tuple[str, ...] = ()  # each ends with /
    channels: int = 1
    size: int = 28  # pixels, height and width
    first_label: int = 0  # the number the files give to the first class
    transposed: bool = False  # the files hold each image with rows and columns swapped

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the unpacked files, training part first."""
        return self.train_files + self.test_files

    def raw_folder(self, root: Path) -> Path:
        """The folder of the files."""
        return root / self.folder / "raw" if self.folder else SAMPLES

    def missing(self, root: Path) -> tuple[str, ...]:
        """The names of `files` that exist neither plain nor as .gz."""
        raw = self.raw_folder(root)
        return tuple(f for f in self.files if not (raw / f).is_file() and not (raw / f"{f}.gz").is_file())
