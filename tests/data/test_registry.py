"""The catalogue and the files of every data set in it: small ones in the real format, and real ones where they are."""

from __future__ import annotations

import ast
import gzip
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import kmnist_sample
import numpy as np
import pytest
import torch
import torchvision
from idx_files import idx, make_files, put
from measure import alone

from finetune.data import registry
from finetune.data.digits import enlarge
from finetune.data.registry import DATASETS, find_dataset, is_present, open_dataset
from finetune.data.spec import SAMPLES
from finetune.errors import DataError

DOWNLOADED = [name for name, row in DATASETS.items() if row.folder]
REAL = os.environ.get("FINETUNE_DATA_ROOT", "")


def everything_under(root: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def test_the_catalogue_needs_no_torch() -> None:
    code = (
        "import sys, pathlib; from finetune.data.registry import *; find_dataset('fashion');"
        "is_present('mnist', pathlib.Path('nowhere'));"
        "sys.exit(', '.join({'torch', 'torchvision', 'sklearn', 'numpy', 'rich'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(registry.__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr


def test_every_row_is_keyed_once_by_its_name() -> None:
    tree = ast.parse(Path(registry.__file__).read_text())
    literals = [
        [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    ]
    assert literals == [list(DATASETS), list(registry.ALIASES)]
    assert all(key == row.name for key, row in DATASETS.items())
    assert not set(registry.ALIASES) & set(DATASETS) and set(registry.ALIASES.values()) <= set(DATASETS)
    assert list(DATASETS) == [
        *("mnist", "kmnist", "fashion-mnist", "emnist-byclass", "emnist-bymerge", "emnist-balanced"),
        *("emnist-letters", "emnist-digits", "emnist-mnist", "qmnist", "kmnist-sample", "digits"),
    ]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_files_sums_and_classes_are_torchvisions(name: str, tmp_path: Path) -> None:
    row, sets = DATASETS[name], torchvision.datasets
    assert all(mirror.endswith("/") for mirror in row.mirrors)
    split = name.partition("-")[2]
    if row.folder == "EMNIST":
        classes = [c for c in sets.EMNIST.classes_split_dict[split] if c != "N/A"]
        published = {(sets.EMNIST.url, sets.EMNIST.md5)}
    else:
        of_torchvision = getattr(sets, row.folder)
        classes = [c.partition(" - ")[0] for c in of_torchvision.classes]
        published = (
            {r for part in ("train", "test") for r in sets.QMNIST.resources[part]}
            if name == "qmnist"
            else {(m + file, md5) for m in of_torchvision.mirrors for file, md5 in of_torchvision.resources}
        )
    assert list(row.class_names) == classes
    assert published <= {(m + a.name, a.md5) for m in row.mirrors for a in row.archives}
    # torchvision itself finds what lies where the row says, and reads the same labels from it.
    put(tmp_path, name, make_files(name))
    options = {"split": split} if row.folder == "EMNIST" else {}
    theirs = getattr(sets, row.folder)(tmp_path, train=False, **options)
    ours = open_dataset(name, tmp_path, download=False).test
    assert [int(theirs[i][1]) - row.first_label for i in range(70)] == ours.labels.tolist()


def test_emnist_classes_are_in_the_order_of_its_mapping_files() -> None:
    """The character codes of emnist-*-mapping.txt: digits, capitals, small letters."""
    assert [ord(c) for c in registry.BY_CLASS] == [*range(48, 58), *range(65, 91), *range(97, 123)]
    small = [97, 98, 100, 101, 102, 103, 104, 110, 113, 114, 116]
    assert [ord(c) for c in registry.BY_MERGE] == [*range(48, 58), *range(65, 91), *small]
    assert [len(DATASETS[f"emnist-{s}"].class_names) for s in ("byclass", "bymerge", "balanced", "letters")] == [
        62,
        47,
        47,
        26,
    ]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", DOWNLOADED)
def test_every_data_set_is_read_from_its_own_format(name: str, packed: bool, tmp_path: Path) -> None:
    files, row = make_files(name), DATASETS[name]
    assert not is_present(name, tmp_path)
    raw = put(tmp_path, name, files, packed)
    assert is_present(name, tmp_path)
    before = everything_under(tmp_path)
    raw.chmod(0o555)
    try:
        splits = open_dataset(name, tmp_path, download=False)
    finally:
        raw.chmod(0o755)
    assert everything_under(tmp_path) == before, "reading writes nothing"
    for part, image_file, title in (
        (splits.train, row.train_files[0], "train"),
        (splits.test, row.test_files[0], "test"),
    ):
        stored = torch.tensor(list(files[image_file][16:]), dtype=torch.uint8).view(-1, 28, 28)
        assert torch.equal(part.images[:, 0], stored.transpose(1, 2) if row.folder == "EMNIST" else stored)
        assert part.images.is_contiguous()
        assert torch.equal(part.labels, torch.arange(len(part)) % len(row.class_names))
        assert part.class_names == row.class_names
        assert part.origin == f"{name} {title}"


def test_emnist_is_turned_upright(tmp_path: Path) -> None:
    """A stroke along the top row, which EMNIST's files hold as a stroke down the first column."""
    files = make_files("emnist-letters")
    stored = np.zeros((130, 28, 28), dtype=np.uint8)
    stored[:, :, 0] = 255
    files["emnist-letters-train-images-idx3-ubyte"] = idx(stored)
    put(tmp_path, "emnist-letters", files)
    image = open_dataset("emnist-letters", tmp_path, download=False).train.images[0, 0]
    assert image[0].tolist() == [255] * 28 and image[1:].sum() == 0


def test_one_part_plain_and_one_packed(tmp_path: Path) -> None:
    files = make_files("mnist")
    put(tmp_path, "mnist", {f: files[f] for f in DATASETS["mnist"].train_files})
    put(tmp_path, "mnist", {f: files[f] for f in DATASETS["mnist"].test_files}, packed=True)
    assert len(open_dataset("mnist", tmp_path, download=False).test) == 70


def test_unknown_names_are_answered_with_near_ones_and_the_list(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"did you mean 'mnist'.*\? Data sets are mnist, kmnist, fashion-mnist, emnist-byclass"
    ):
        open_dataset("mnits", tmp_path)
    with pytest.raises(DataError, match="unknown data set ''"):
        is_present("", tmp_path)
    assert find_dataset("fashion") is DATASETS["fashion-mnist"]


def test_missing_files_are_named_with_their_folder(tmp_path: Path) -> None:
    raw = put(tmp_path, "kmnist", make_files("kmnist"))
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=rf"{raw} lacks t10k-labels-idx1-ubyte \(plain or .gz\).*--data-root"):
        open_dataset("kmnist", tmp_path, download=False)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", ["mnist", "emnist-letters", "qmnist"])
def test_a_file_cut_at_any_length_is_called_damaged(name: str, packed: bool, tmp_path: Path) -> None:
    files = make_files(name, (3, 2))
    raw = put(tmp_path, name, files, packed)
    for file in files:
        path = raw / (f"{file}.gz" if packed else file)
        whole = path.read_bytes()
        lengths = {
            *range(0, min(24, len(whole)), 2 if packed else 1),
            len(whole) - 1,
            *random.Random(0).sample(range(len(whole)), 4),
        }
        for length in sorted(lengths):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError) as caught:
                open_dataset(name, tmp_path, download=False)
            assert str(caught.value).startswith(f"{path}: damaged: expected ") and "delete this file" in str(
                caught.value
            )
        for tail in (b"\0", b"more"):
            path.write_bytes(gzip.compress(files[file] + tail) if packed else whole + tail)
            with pytest.raises(DataError, match="damaged"):
                open_dataset(name, tmp_path, download=False)
        path.write_bytes(whole)
    open_dataset(name, tmp_path, download=False)


def test_flipped_bytes_are_read_or_called_damaged(tmp_path: Path) -> None:
    files, rng = make_files("qmnist", (3, 2)), random.Random(1)
    for packed in (False, True):
        raw = put(tmp_path, "qmnist", files, packed)
        for _ in range(60):
            path = rng.choice(sorted(raw.iterdir()))
            whole = path.read_bytes()
            place = rng.randrange(min(len(whole), 60))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
            try:
                open_dataset("qmnist", tmp_path, download=False)
            except DataError as fault:
                assert path.name in str(fault)
            path.write_bytes(whole)
        for path in raw.iterdir():
            path.unlink()


LIES = {
    "a wrong magic": (
        0,
        b"\x00\x00\x0d\x03" + struct.pack(">III", 3, 28, 28) + bytes(2352),
        "00 00 08 03.*00 00 0d 03",
    ),
    "petabytes": (
        0,
        b"\x00\x00\x08\x03" + struct.pack(">III", *[2**32 - 1] * 3) + bytes(2352),
        "at most 2,000,000 images or labels, found 4,294,967,295",
    ),
    "gigabytes": (0, b"\x00\x00\x08\x03" + struct.pack(">III", 2_000_000, 28, 28) + bytes(2352), "found 2,368 bytes"),
    "no images": (0, b"\x00\x00\x08\x03" + struct.pack(">III", 0, 28, 28), "at least one value"),
    "another size": (0, idx(np.zeros((3, 32, 28), np.uint8)), "28×28 pixels, found 32×28"),
    "labels for images": (0, idx(np.zeros(3, np.uint8)), "expected"),
    "too few labels": (1, idx(np.zeros(2, np.uint8)), "3 labels, one for each image of train-images.*found 2"),
    "a label too high": (1, idx(np.array([0, 10, 9], np.uint8)), "labels from 0 to 9, found 0 to 10"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_found_out(lie: str, packed: bool, tmp_path: Path) -> None:
    which, content, found = LIES[lie]
    files = make_files("mnist", (3, 3))
    files[DATASETS["mnist"].train_files[which]] = content
    put(tmp_path, "mnist", files, packed)
    if packed and lie == "gigabytes":
        found = "compressed bytes"
    with pytest.raises(DataError, match=f"{DATASETS['mnist'].train_files[which]}.*{found}"):
        open_dataset("mnist", tmp_path, download=False)


BOMB = """
import sys, time
from pathlib import Path
import torch
from measure import peak
from finetune.data.registry import open_dataset
from finetune.errors import DataError
before, start = peak(), time.process_time()
try:
    open_dataset("mnist", Path(sys.argv[1]), download=False)
except DataError as error:
    said = str(error)
assert peak() - before < 40 * 2**20, peak() - before
print(said)
"""


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2**24, 28, 28), "expected at most 2,000,000 images or labels, found 16,777,216"),
        pytest.param((100_000, 280, 280), "expected images of 28×28 pixels, found 280×280", marks=pytest.mark.slow),
        pytest.param(
            (2_000_000, 28, 28),
            "expected 1,568,000,016 bytes inside, as its header says, found 194,",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.slow
def test_a_small_file_that_would_become_a_large_one_takes_little_memory(tmp_path, shape, said):
    files = make_files("mnist", (3, 3))
    raw = put(tmp_path, "mnist", files, packed=True)
    bomb = zlib.compressobj(9, wbits=31)
    packed = bomb.compress(b"\x00\x00\x08\x03" + struct.pack(">III", *shape)) + bomb.compress(bytes(200_000_000))
    (raw / "train-images-idx3-ubyte.gz").write_bytes(packed + bomb.flush())
    assert said in alone(BOMB, tmp_path)


def test_the_labels_of_qmnist_have_eight_columns(tmp_path: Path) -> None:
    files = make_files("qmnist", (3, 3))
    files["qmnist-train-labels-idx2-int"] = idx(np.zeros((3, 7), np.int32))
    put(tmp_path, "qmnist", files)
    with pytest.raises(DataError, match=r"train-labels.*expected 8 numbers a label, found 7"):
        open_dataset("qmnist", tmp_path, download=False)


def test_what_is_no_regular_file_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    raw = put(tmp_path, "mnist", make_files("mnist", (3, 3)))
    (raw / "t10k-images-idx3-ubyte").unlink()
    os.mkfifo(raw / "t10k-images-idx3-ubyte")
    assert not is_present("mnist", tmp_path)
    with pytest.raises(DataError, match="lacks t10k-images-idx3-ubyte"):
        open_dataset("mnist", tmp_path, download=False)


@pytest.mark.slow
def test_reading_small_images_needs_no_torchvision(tmp_path: Path) -> None:
    put(tmp_path, "mnist", make_files("mnist", (3, 3)))
    code = (
        "import sys; from pathlib import Path; from finetune.data.registry import open_dataset\n"
        "open_dataset('mnist', Path(sys.argv[1]), download=False); assert 'torchvision' not in sys.modules"
    )
    alone(code, tmp_path)


def test_letters_start_at_one(tmp_path: Path) -> None:
    files = make_files("emnist-letters", (3, 3))
    files["emnist-letters-test-labels-idx1-ubyte"] = idx(np.array([0, 1, 26], np.uint8))
    put(tmp_path, "emnist-letters", files)
    with pytest.raises(DataError, match=r"test-labels.*labels from 1 to 26, found 0 to 26"):
        open_dataset("emnist-letters", tmp_path, download=False)


def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    raw = put(tmp_path, "mnist", make_files("mnist"))
    path = raw / "train-images-idx3-ubyte"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read any file")
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        open_dataset("mnist", tmp_path, download=False)


def test_digits_come_without_files_and_are_always_the_same(tmp_path: Path) -> None:
    assert is_present("digits", tmp_path / "nowhere")
    splits, again = (open_dataset("digits", tmp_path / "nowhere", download=False) for _ in range(2))
    row = DATASETS["digits"]
    assert (len(splits.train), len(splits.test)) == (row.train_images, row.test_images)
    assert splits.train.images.shape[1:] == (1, 28, 28)
    assert splits.train.images[:, :, :4].sum() == splits.train.images[..., -4:].sum() == 0, "an empty border"
    assert splits.train.images.max() == 255 and splits.train.images.min() == 0
    assert all(33 <= count <= 39 for count in splits.test.counts().values())
    assert splits.test.origin == "digits test" and splits.train.class_names == tuple("0123456789")
    assert not set(map(bytes, splits.train.images.numpy())) & set(map(bytes, splits.test.images.numpy()))
    prints = (splits.train.fingerprint(), splits.test.fingerprint())
    assert prints == (again.train.fingerprint(), again.test.fingerprint())
    assert prints == (
        "0474ec7d43a77288d490fc5ec3cc6fbfef6d49e9f2f8d7f7b0584e463b88105b",
        "544d7adaa4491c77530576d70ed1cfeaa768bc3e834179d89c95aa5af7fb35e7",
    ), "pinned: published accuracies are of these images"
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_sample_needs_no_files(tmp_path: Path) -> None:
    assert is_present("kmnist-sample", tmp_path)
    splits = open_dataset("kmnist-sample", tmp_path, download=False)
    assert set(splits.train.counts().values()) == set(splits.test.counts().values()) == {100}
    assert len({bytes(image) for part in (splits.train, splits.test) for image in part.images.numpy()}) == 2_000
    assert splits.train.class_names == DATASETS["kmnist"].class_names and splits.test.origin == "kmnist-sample test"
    assert (splits.train.fingerprint(), splits.test.fingerprint()) == (
        "01be1db350cf9517fe18d3c11a7bd4ace72eeaf4cc08c38e798e72560fe82459",
        "181cd71a7bac3085af1bc2fc0f0741a16e83431a51df1a965a5e80e09abccc59",
    ), "pinned: published accuracies are of these images"
    notice = next(SAMPLES.glob("*.LICENSE.txt")).read_text()
    assert "CODH" in notice and DATASETS["kmnist-sample"].licence in notice and list(tmp_path.iterdir()) == []


def test_a_broken_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.spec.SAMPLES", tmp_path)
    monkeypatch.setattr("finetune.data.idx.SAMPLES", tmp_path)
    with pytest.raises(DataError, match=r"kmnist-sample: .* lacks .*, which come with finetune; install it again"):
        open_dataset("kmnist-sample", tmp_path)
    for file in SAMPLES.glob("*.gz"):
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"damaged.*it comes with finetune: install that again"):
        open_dataset("kmnist-sample", tmp_path)


def test_the_sample_does_not_depend_on_the_order_of_the_images() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (2_300, 28, 28), np.uint8), np.arange(2_300) % 10
    once = kmnist_sample.sample(images, labels)
    order = rng.permutation(np.tile(np.arange(2_300), 2))
    again = kmnist_sample.sample(images[order], labels[order])
    assert all(np.array_equal(a, b) for part in once for a, b in zip(once[part], again[part], strict=True))


def test_enlarging_is_bicubic() -> None:
    """Against Pillow's BICUBIC, which works on bytes: within its rounding, on the whole bundled set's range."""
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 17, (50, 8, 8))
    flat = enlarge(np.full((1, 8, 8), 11))
    assert (flat == round(11 * 255 / 16)).all()
    for small, large in zip(images, enlarge(images), strict=True):
        floats = Image.fromarray((small * 255 / 16).astype(np.float32)).resize((20, 20), Image.Resampling.BICUBIC)
        middle = np.clip(np.asarray(floats), 0, 255)[4:-4, 4:-4]
        assert np.abs(large[4:-4, 4:-4] - middle).max() <= 0.51


def real(name: str) -> Path:
    root = Path(REAL)
    if not REAL or not is_present(name, root):
        pytest.skip(f"FINETUNE_DATA_ROOT is unset or lacks {name}")
    return root


def test_real_mnist() -> None:
    splits = open_dataset("mnist", real("mnist"), download=False)
    assert splits.train.images.shape == (60_000, 1, 28, 28) and splits.test.images.shape == (10_000, 1, 28, 28)
    assert splits.train.labels[:5].tolist() == [5, 0, 4, 1, 9] and splits.test.labels[:3].tolist() == [7, 2, 1]
    pixels = splits.train.images.numpy() / np.float32(255)
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == (0.1307, 0.3081)
    assert splits.train.counts()["1"] == 6742
    assert splits.train.fingerprint() == "902c5ab1e34a115784a973dc370e506103c23e8a4f295094b50a0cc289a72256"


def test_real_fashion_mnist() -> None:
    splits = open_dataset("fashion", real("fashion-mnist"), download=False)
    assert len(splits.train) == 60_000 and set(splits.test.counts().values()) == {1_000}
    assert splits.train.class_names[int(splits.train.labels[0])] == "Ankle boot"


def test_real_kmnist() -> None:
    splits = open_dataset("kmnist", real("kmnist"), download=False)
    assert len(set(splits.train.counts().values())) == 1 and splits.train.images.shape[1:] == (1, 28, 28)


def test_the_bundled_sample_is_of_real_kmnist() -> None:
    parts = kmnist_sample.sample(*kmnist_sample.read_folder(DATASETS["kmnist"].raw_folder(real("kmnist"))))
    splits = open_dataset("kmnist-sample", Path("nowhere"))
    for part, (images, labels) in parts.items():
        found = getattr(splits, part)
        if not np.array_equal(images, found.images.numpy()[:, 0]):
            pytest.skip("the files there are not of KMNIST's test part alone")
        assert np.array_equal(labels, found.labels.numpy())


def test_real_images_are_hashed_and_split_fast() -> None:
    import time

    from finetune.data.split import hold_out, image_hashes

    train = open_dataset("mnist", real("mnist"), download=False).train
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert len(np.unique(image_hashes(train.images, "validation"))) == 60_000
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2  # far less on a machine with nothing else to do
    rest, held = hold_out(train, 5_000)
    assert (len(rest), len(held)) == (55_000, 5_000)
