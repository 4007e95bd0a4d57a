"""Rows in a file without a name are what rows in memory are, and what can go wrong with a file is said in words."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_disk import no_file_above, small_disk
from tiny import ROOT

from finetune.data.loader import Batches
from finetune.errors import TrainingError
from finetune.train import activation_cache
from finetune.train.activation_cache import DiskTensor

COUNT = 40


def rows(shape, dtype=torch.float32, layout=torch.contiguous_format):
    values = torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(0)) * 50
    return values.to(dtype).contiguous(memory_format=layout)


def filled(folder, held, step=7):
    kept = DiskTensor(folder, len(held), held[:1])
    for start in range(0, len(held), step):
        kept.write(start, held[start : start + step])
    return kept


CASES = [
    ((5,), torch.float32, torch.contiguous_format),
    ((3, 4, 5), torch.float32, torch.contiguous_format),
    ((3, 4, 5), torch.float32, torch.channels_last),
    ((3, 4, 5), torch.bfloat16, torch.channels_last),
    ((4, 6), torch.bfloat16, torch.contiguous_format),
    ((2, 1, 1), torch.int64, torch.contiguous_format),
]


@pytest.mark.parametrize(("shape", "dtype", "layout"), CASES)
def test_indexing_gives_what_a_tensor_gives_and_lies_in_memory_as_it_does(tmp_path, shape, dtype, layout):
    held = rows(shape, dtype, layout)
    kept = filled(tmp_path, held)
    assert kept.shape == held.shape and len(kept) == COUNT
    for index in (slice(None), slice(3, 9), slice(38, 99), slice(9, 3), torch.tensor([5, 0, 39, 5]), torch.arange(0)):
        found = kept[index]
        assert torch.equal(found, held[index]) and found.dtype == dtype and found.shape == held[index].shape
        assert not len(found) or found.stride() == held[index].stride()
    kept[0:2].zero_()
    assert torch.equal(kept[:], held), "what is read is a copy"


def test_batches_from_it_are_those_from_memory(tmp_path):
    held, labels = rows((3, 4, 5)), torch.arange(COUNT)
    for views in (None, 2):
        inputs = held if views is None else torch.cat([held, -held])
        options = {"batch_size": 16, "seed": 3, "views": views}
        for epoch in (0, 1, 2):
            lazy = Batches(filled(tmp_path, inputs), labels, **options).epoch(epoch)
            resident = Batches(inputs, labels, **options).epoch(epoch)
            for (a, x), (b, y) in zip(lazy, resident, strict=True):
                assert torch.equal(a, b) and torch.equal(x, y)
                assert torch.equal(a, held[x] * (-1 if views and epoch % 2 else 1))


def test_several_threads_may_read(tmp_path):
    held = rows((100,))
    kept = filled(tmp_path, held)
    places = [torch.randint(COUNT, (30,), generator=torch.Generator().manual_seed(k)) for k in range(50)]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, held[b]) for a, b in zip(pool.map(kept.__getitem__, places), places, strict=True))


@pytest.mark.slow
def test_it_has_no_name_so_nothing_is_left_when_its_process_is_killed(tmp_path):
    kept = filled(tmp_path / "new" / "folder", rows((5,)))
    assert list(tmp_path.rglob("*")) == [tmp_path / "new", tmp_path / "new" / "folder"] and len(kept[:]) == COUNT
    program = f"""
import os, signal, torch
from pathlib import Path
from finetune.train.activation_cache import DiskTensor
kept = DiskTensor(Path({str(tmp_path / "dead")!r}), 1000, torch.zeros(1, 1000))
kept.write(0, torch.ones(500, 1000))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL and list((tmp_path / "dead").iterdir()) == []


def test_the_room_is_taken_at_once_so_a_full_disk_is_found_before_any_work(tmp_path):
    with small_disk(tmp_path / "disk", 2**20) as disk:
        with pytest.raises(OSError, match="No space left on device"):
            DiskTensor(disk, 300, torch.zeros(1, 1000))
        assert os.statvfs(disk).f_bavail == os.statvfs(disk).f_blocks, "what was taken is given back"
        kept = DiskTensor(disk, 250, torch.zeros(1, 1000))
        assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize < 2**20 - 1_000_000
        kept.close()
        assert os.statvfs(disk).f_bavail == os.statvfs(disk).f_blocks


def test_where_no_room_can_be_taken_ahead_the_write_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(activation_cache, "_reserve", lambda descriptor, size: None)
    kept = DiskTensor(tmp_path, COUNT, torch.zeros(1, 1000))
    with no_file_above(100_000):
        kept.write(0, torch.zeros(25, 1000))
        with pytest.raises(OSError, match="File too large"):
            kept.write(25, torch.zeros(15, 1000))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        DiskTensor(tmp_path / "file", 3, torch.zeros(1, 3))
    with pytest.raises(OSError, match="Not a directory"):
        DiskTensor(tmp_path / "file" / "below", 3, torch.zeros(1, 3))


@pytest.mark.parametrize("read_by", ["hand", "batches"])
def test_a_file_shortened_under_the_run_is_an_error_and_no_signal(tmp_path, read_by):
    kept = filled(tmp_path, rows((5,)))
    os.truncate(f"/proc/self/fd/{kept.descriptor}", 300)
    with pytest.raises(TrainingError, match=r"cannot be read back \(it is shorter than it was\); run the same again"):
        if read_by == "hand":
            kept[torch.tensor([20])]
        else:
            list(Batches(kept, torch.arange(COUNT), batch_size=16, seed=0).epoch(0))
    assert torch.equal(kept[:15], rows((5,))[:15])


def test_what_is_read_does_not_stay_in_memory(tmp_path):
    """160 MB go through; a mapped file would count as resident as far as it was touched."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    one = torch.zeros(1, 40_000)
    kept = DiskTensor(tmp_path, 1000, one)
    for start in range(0, 1000, 20):
        kept.write(start, one.expand(20, -1).contiguous())
    batches = Batches(kept, torch.zeros(1000, dtype=torch.int64), batch_size=20, seed=0)
    before = resident()
    assert sum(len(labels) for _, labels in batches.epoch(0)) == 1000
    assert resident() - before < 80e6  # what waits to be trained on, and what malloc keeps of it
