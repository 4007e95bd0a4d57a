"""The registered data sets: one row each. A new one in the idx format of MNIST is one row more.

Nothing here imports torch until a data set is opened.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data.spec import Archive, DatasetSpec
from finetune.errors import DataError
from finetune.text import name_hint

if TYPE_CHECKING:
    from finetune.data.image_dataset import DataSplits

DIGITS = tuple(string.digits)
LETTERS = tuple(string.ascii_lowercase)
BY_CLASS = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)
BY_MERGE = tuple(string.digits + string.ascii_uppercase + "abdefghnqrt")  # the other small letters join their capitals
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
MNIST_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
MNIST_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _emnist_row(
    split: str, about: str, class_names: tuple[str, ...], train: int, test: int, first: int = 0
) -> DatasetSpec:
    """A row for one of the six sets in EMNIST's archive, named by its split."""
    return DatasetSpec(
        name=f"emnist-{split}",
        title=f"EMNIST {split}",
        about=about,
        class_names=class_names,
        train_images=train,
        test_images=test,
        licence="none stated; cite Cohen et al. 2017, arXiv:1702.05373",
        source="https://www.nist.gov/itl/products-and-services/emnist-dataset",
        folder="EMNIST",
        train_files=(f"emnist-{split}-train-images-idx3-ubyte", f"emnist-{split}-train-labels-idx1-ubyte"),
        test_files=(f"emnist-{split}-test-images-idx3-ubyte", f"emnist-{split}-test-labels-idx1-ubyte"),
        archives=(Archive("gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e"),),
        mirrors=("https://biometrics.nist.gov/cs_links/EMNIST/",),
        first_label=first,
        transposed=True,
    )


DATASETS: dict[str, DatasetSpec] = {
    "mnist": DatasetSpec(
        name="mnist",
        title="MNIST",
        about="handwritten digits of 500 writers, the usual first benchmark",
        class_names=DIGITS,
        train_images=60_000,
        test_images=10_000,
        licence="CC BY-SA 3.0",
        source="http://yann.lecun.com/exdb/mnist/",
        folder="MNIST",
        train_files=MNIST_TRAIN,
        test_files=MNIST_TEST,
        archives=(
            Archive("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            Archive("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            Archive("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            Archive("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
    ),
    "kmnist": DatasetSpec(
        name="kmnist",
        title="Kuzushiji-MNIST",
        about="cursive hiragana from old Japanese books, one character a row of the syllabary",
        class_names=KANA,
        train_images=60_000,
        test_images=10_000,
        licence="CC BY-SA 4.0",
        source="http://codh.rois.ac.jp/kmnist/",
        folder="KMNIST",
        train_files=MNIST_TRAIN,
        test_files=MNIST_TEST,
        archives=(
            Archive("train-images-idx3-ubyte.gz", "bdb82020997e1d708af4cf47b453dcf7"),
            Archive("train-labels-idx1-ubyte.gz", "e144d726b3acfaa3e44228e80efcd344"),
            Archive("t10k-images-idx3-ubyte.gz", "5c965bf0a639b31b8f53240b1b52f4d7"),
            Archive("t10k-labels-idx1-ubyte.gz", "7320c461ea6c1c855c0b718fb2a4b134"),
        ),
        mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    ),
    "fashion-mnist": DatasetSpec(
        name="fashion-mnist",
        title="Fashion-MNIST",
        about="clothes and bags from a shop's catalogue, small and grey",
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        train_images=60_000,
        test_images=10_000,
        licence="MIT",
        source="https://github.com/zalandoresearch/fashion-mnist",
        folder="FashionMNIST",
        train_files=MNIST_TRAIN,
        test_files=MNIST_TEST,
        archives=(
            Archive("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            Archive("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            Archive("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            Archive("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
    ),
    "emnist-byclass": _emnist_row("byclass", "digits, capitals and small letters, by use", BY_CLASS, 697_932, 116_323),
    "emnist-bymerge": _emnist_row("bymerge", "byclass, look-alike letters joined", BY_MERGE, 697_932, 116_323),
    "emnist-balanced": _emnist_row(
        "balanced", "the classes of bymerge, equally many images of each", BY_MERGE, 112_800, 18_800
    ),
    "emnist-letters": _emnist_row(
        "letters", "letters, capital and small as one class", LETTERS, 124_800, 20_800, first=1
    ),
    "emnist-digits": _emnist_row("digits", "digits, four times as many as MNIST", DIGITS, 240_000, 40_000),
    "emnist-mnist": _emnist_row("mnist", "digits, as many as MNIST, drawn and prepared anew", DIGITS, 60_000, 10_000),
    "qmnist": DatasetSpec(
        name="qmnist",
        title="QMNIST",
        about="MNIST rebuilt from its source, with all 60,000 test digits",
        class_names=DIGITS,
        train_images=60_000,
        test_images=60_000,
        licence="BSD 3-Clause",
        source="https://github.com/facebookresearch/qmnist",
        folder="QMNIST",
        train_files=("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
        test_files=("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int"),
        archives=(
            Archive("qmnist-train-images-idx3-ubyte.gz", "ed72d4157d28c017586c42bc6afe6370"),
            Archive("qmnist-train-labels-idx2-int.gz", "0058f8dd561b90ffdd0f734c6a30e5e4"),
            Archive("qmnist-test-images-idx3-ubyte.gz", "1394631089c404de565df7b7aeaf9412"),
            Archive("qmnist-test-labels-idx2-int.gz", "5b5b05890a5e13444e108efe57b788aa"),
        ),
        mirrors=("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",),
    ),
    "kmnist-sample": DatasetSpec(
        name="kmnist-sample",
        title="Kuzushiji-MNIST, 2,000 images",
        about="200 of each class of KMNIST's test part, half to learn from; comes with finetune: no download",
        class_names=KANA,
        train_images=1_000,
        test_images=1_000,
        licence="CC BY-SA 4.0",
        source="http://codh.rois.ac.jp/kmnist/",
        train_files=("kmnist-sample-train-images-idx3-ubyte", "kmnist-sample-train-labels-idx1-ubyte"),
        test_files=("kmnist-sample-test-images-idx3-ubyte", "kmnist-sample-test-labels-idx1-ubyte"),
    ),
    "digits": DatasetSpec(
        name="digits",
        title="scikit-learn digits",
        about="1,797 digits of 13 writers that come with scikit-learn: no download",
        class_names=DIGITS,
        train_images=1_438,
        test_images=359,
        licence="CC BY 4.0",
        source="https://archive.ics.uci.edu/dataset/80",
    ),
}

ALIASES: dict[str, str] = {"fashion": "fashion-mnist"}


def find_dataset(name: str) -> DatasetSpec:
    """Finds a data set by its name or an alias. DataError with near names and the list where there is none."""
    row = DATASETS.get(ALIASES.get(name, name))
    if row is None:
        raise DataError(f"unknown data set {name!r}{name_hint(name, [*DATASETS, *ALIASES], 'data sets')}")
    return row


def is_present(name: str, root: Path) -> bool:
    """Whether every file of the data set is under `root`, by name, or it needs none."""
    return not find_dataset(name).missing(root)


def open_dataset(name: str, root: Path, *, download: bool = True) -> DataSplits:
    """Opens a data set: uint8 N×1×28×28, upright, labels from 0. Missing files are downloaded first, others only read.

    Raises DataError for an unknown name, damaged files, or missing ones where `download` is off; DownloadError where no
    mirror gives them; OutputError where `root` cannot be written.
    """
    row = find_dataset(name)
    if not row.files:
        from finetune.data.digits import read_digits

        return read_digits(row.class_names)
    missing = row.missing(root)
    if missing and not row.folder:
        raise DataError(
            f"{row.name}: {row.raw_folder(root)} lacks {', '.join(missing)}, which come with finetune; install it again"
        )
    if missing:
        if not download:
            raise DataError(
                f"{row.name}: {row.raw_folder(root)} lacks {', '.join(missing)} (plain or .gz); put them there, name "
                "another folder with --data-root, or allow the download"
            )
        from finetune.data.download import fetch

        fetch(row, root)
    from finetune.data.idx import read_splits

    return read_splits(row, root)
