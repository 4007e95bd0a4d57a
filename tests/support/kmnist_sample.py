"""Makes the bundled data set kmnist-sample from KMNIST's test part.

`python tests/support/kmnist_sample.py FOLDER` reads every pair of idx files in FOLDER, plain or .gz, and writes
finetune/data/samples/. FOLDER holds t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte of KMNIST, or any parts of them.

Of each class the 200 images of smallest hash are taken, equal images once; of those the 100 of smallest hash with
another salt are the test part. Each file is in the order of the images' hashes, so nothing depends on the order or the
parts in which the images come.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np

from finetune.data.spec import SAMPLES
from finetune.data.split import array_hashes

NAME, CLASSES, A_CLASS = "kmnist-sample", 10, 200


def read_idx(path: Path) -> np.ndarray:
    """The values of an idx file of bytes, plain or .gz."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    sizes = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(sizes)


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images (uint8 N×28×28) and labels of a folder."""
    files = sorted(folder.glob("*-images-idx3-ubyte*"))
    labels = [file.with_name(file.name.replace("images-idx3", "labels-idx1")) for file in files]
    return np.concatenate([*map(read_idx, files)]), np.concatenate([*map(read_idx, labels)])


def sample(images: np.ndarray, labels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the two parts, train and test, each in the order of its images' hashes."""
    hashes = array_hashes(images[:, None], NAME)
    once = np.unique(hashes, return_index=True)[1]  # in the order of the hashes
    chosen = np.sort([row for label in range(CLASSES) for row in once[labels[once] == label][:A_CLASS]])
    chosen = chosen[np.argsort(hashes[chosen])]
    keys, test = array_hashes(images[chosen][:, None], f"{NAME} test"), np.zeros(len(chosen), bool)
    for label in range(CLASSES):
        own = np.flatnonzero(labels[chosen] == label)
        test[own[np.argsort(keys[own])[: A_CLASS // 2]]] = True
    return {
        "train": (images[chosen[~test]], labels[chosen[~test]]),
        "test": (images[chosen[test]], labels[chosen[test]]),
    }


def main() -> None:
    for part, values in sample(*read_folder(Path(sys.argv[1]))).items():
        for kind, array in zip(("images-idx3", "labels-idx1"), values, strict=True):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(head + np.ascontiguousarray(array).tobytes(), 9, mtime=0)
            (SAMPLES / f"{NAME}-{part}-{kind}-ubyte.gz").write_bytes(content)


if __name__ == "__main__":
    main()
