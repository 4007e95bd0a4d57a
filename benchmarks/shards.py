"""Peak memory and pictures a second of opening many small pictures, in Parquet and as a folder, beside `datasets`.

    python benchmarks/shards.py [--pictures 100000] [--rounds 1] [--readers READER ...] [--work FOLDER]
        [--datasets-path FOLDER]

Makes grey PNG files of 28×28 pixels in ten classes from one seed: FOLDER/parquet/data/train-0000N-of-00004.parquet,
1,000 rows a row group, with the features that `datasets` writes, and FOLDER/pictures/CLASS/NUMBER.png. Each row is a
process of its own, in turn, with one thread for its arrays; seconds are without imports, memory is the process's peak
with them. `finetune` opens the set: labels, hashes of all bytes, decoding, the file with the pixels, splits; the first
time, and again when that file is there. `datasets` (wherever it can be imported from, or from --datasets-path) loads
the set and gives each picture once, which is put into an array of pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import circumstances
from PIL import Image

SIDE, CLASSES, FILES, ROW_GROUP = 28, 10, 4, 1_000
READERS = ("finetune", "finetune, again", "datasets", "datasets, streaming")
FORMS = ("parquet", "pictures")


def picture(number: int, patterns: np.ndarray, random: np.random.Generator) -> bytes:
    """A coarse pattern of its class under speckles, as PNG."""
    speckles = random.integers(0, 100, (SIDE, SIDE)) * (random.random((SIDE, SIDE)) < 0.3)
    pixels = np.kron(patterns[number % CLASSES], np.ones((4, 4))) / 2 + speckles
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def make(folder: Path, count: int) -> None:
    """Writes the same pictures in both forms, unless they are there."""
    if folder.is_dir():
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    new, random = folder.with_name(f"{folder.name}.new"), np.random.default_rng(0)
    shutil.rmtree(new, ignore_errors=True)
    patterns = random.integers(0, 256, (CLASSES, SIDE // 4, SIDE // 4))
    names = [f"c{label}" for label in range(CLASSES)]
    label = {"names": names, "_type": "ClassLabel"}
    features = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata={"huggingface": features})
    (new / "parquet" / "data").mkdir(parents=True)
    for name in names:
        (new / "pictures" / name).mkdir(parents=True)
    for file in range(FILES):
        rows = []
        for number in range(file * count // FILES, (file + 1) * count // FILES):
            content, name = picture(number, patterns, random), f"{number:06}.png"
            rows.append({"image": {"bytes": content, "path": name}, "label": number % CLASSES})
            (new / "pictures" / names[number % CLASSES] / name).write_bytes(content)
        place = new / "parquet" / "data" / f"train-{file:05}-of-{FILES:05}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), place, row_group_size=ROW_GROUP)
    new.rename(folder)


def peak() -> int:
    """The most bytes of memory that this process has had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def read_with_finetune(place: Path, cache: Path) -> tuple[int, float]:
    """Opens the set as a command would; returns the number of pictures and the seconds."""
    from finetune.data.image_folder_dataset import open_image_folder
    from finetune.data.image_io import CropSpec

    began = time.perf_counter()
    found = open_image_folder(str(place), CropSpec(None, SIDE, 1.0, "squash", "bilinear"), cache=cache)
    return len(found.train) + len(found.test), time.perf_counter() - began


def read_with_datasets(place: Path, cache: Path, streaming: bool) -> tuple[int, float]:
    """Loads the set and decodes each picture once; returns their number and the seconds."""
    os.environ.update(HF_DATASETS_CACHE=str(cache), HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    import datasets

    began = time.perf_counter()
    if place.name == "parquet":
        source: dict[str, Any] = {"path": "parquet", "data_files": str(place / "data" / "*.parquet")}
    else:
        source = {"path": "imagefolder", "data_dir": str(place)}
    rows = datasets.load_dataset(**source, split="train", streaming=streaming)
    pixels: list[np.ndarray] = [np.asarray(row["image"].convert("L")) for row in rows]
    return len(np.stack(pixels)), time.perf_counter() - began


def measure(reader: str, place: Path, cache: Path) -> None:
    """One row, in a process of its own: prints pictures, seconds and peak bytes as JSON."""
    if reader.startswith("finetune"):
        count, seconds = read_with_finetune(place, cache)
    else:
        count, seconds = read_with_datasets(place, cache, reader.endswith("streaming"))
    print(json.dumps({"pictures": count, "seconds": seconds, "peak": peak()}))


def run(reader: str, place: Path, cache: Path, path: str | None) -> dict[str, Any] | None:
    """Measures one row in a new process; None where it cannot be run, such as without `datasets`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    own = path if path is not None and reader.startswith("datasets") else None
    places = [own, str(Path(__file__).parents[1]), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    command = [sys.executable, __file__, "--measure", reader, str(place), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(f"{reader}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=READERS)
    parser.add_argument("--work", type=Path, help="where the set is made and kept; by default removed afterwards")
    parser.add_argument("--datasets-path", help="a folder that `datasets` was installed into with pip --target")
    parser.add_argument("--measure", nargs=3, metavar=("READER", "PLACE", "CACHE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], Path(given.measure[1]), Path(given.measure[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        make(work / f"set-{given.pictures}", given.pictures)
        print("| pictures as | read with | pictures/s | peak memory |\n|---|---|---|---|")
        for form in FORMS * given.rounds:
            cache = Path(tempfile.mkdtemp(dir=temporary))  # of this round, so that the second reading finds the first's
            for reader in given.readers:
                own = cache / reader.partition(",")[0]
                found = run(reader, work / f"set-{given.pictures}" / form, own, given.datasets_path)
                if found is not None:
                    assert found["pictures"] == given.pictures
                    rate, memory = found["pictures"] / found["seconds"], found["peak"] / 1e6
                    print(f"| {form} | {reader} | {rate:,.0f} | {memory:,.0f} MB |", flush=True)
    about = circumstances(1)
    print(f"\n{about['command']}; {about['machine']}; load {os.getloadavg()[0]:.1f}; commit {about['commit']}")


if __name__ == "__main__":
    main()
