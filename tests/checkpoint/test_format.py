"""The checkpoint file: round trips, the same bytes, atomic writing, and every kind of damage named."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoint_files import INPUT, OLD_INPUT, PLAIN, full, metadata, one_tensor, raw, refusal, with_metadata
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import SUPPORT
from torch import nn

import finetune.sources.resolve as source_module
import finetune.sources.save as saving_module
from finetune.checkpoint.format import (
    KEY,
    InputMetadata,
    Metadata,
    encode,
    load_tensors,
    read_checkpoint,
    read_metadata,
    write_checkpoint,
)
from finetune.checkpoint.tensor_hash import hash_named, hash_tensor
from finetune.errors import CheckpointError, OutputError
from finetune.io.atomic import write_atomic
from finetune.models.classifier import Classifier
from finetune.models.registry import MODELS, build_model
from finetune.models.spec import InputSpec

FEW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def by_the_rule(content):
    """The sha256 over the tensors of a file's bytes, after the words of docs/verify.md and not after the code."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    entries = {name: entry for name, entry in json.loads(content[8:end]).items() if name != "__metadata__"}
    lines = ""
    for name in sorted(entries):
        first, last = entries[name]["data_offsets"]
        sides = ",".join(map(str, entries[name]["shape"]))
        one = f"{entries[name]['dtype']} [{sides}]\n".encode() + content[end + first : end + last]
        lines += f"{json.dumps(name, ensure_ascii=False)} {hashlib.sha256(one).hexdigest()}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def sealed(path):
    """The metadata that a file written here is to have."""
    return metadata(tensors=by_the_rule(path.read_bytes()))


def tensors():
    torch.manual_seed(0)
    return {
        "weight": torch.randn(4, 3),
        "bias": torch.randn(4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(3).double(),
        "count": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "transposed": torch.randn(3, 5).T,
        "sliced": torch.randn(10, 4)[::2, 1:3],
        "expanded": torch.randn(1, 4).expand(3, 4),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(2)),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def test_a_checkpoint_comes_back_as_it_was(path):
    written = tensors()
    digest = write_checkpoint(path, written, metadata())
    found = read_checkpoint(path)
    assert found.tensors.keys() == written.keys()
    for name, tensor in written.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor), name
    assert found.metadata == sealed(path) == read_metadata(path)
    assert found.metadata.recipe == PLAIN["recipe"]
    assert found.path == path
    assert found.sha256 == digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_anyone_can_read_it_and_there_is_one_key_of_ours(path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    write_checkpoint(path, tensors(), metadata())
    assert load_file(path).keys() == tensors().keys()
    with safe_open(path, "pt") as file:
        assert file.metadata().keys() == {KEY, "format"}
        assert file.metadata()["format"] == "pt", "transformers 4 refuses texts without it"
        assert json.loads(file.metadata()[KEY]) == {"format": 1, **PLAIN, "tensors": by_the_rule(path.read_bytes())}


def test_same_content_same_bytes_whatever_the_order_it_was_put_in():
    backwards = {name: PLAIN[name] for name in reversed(PLAIN)}
    for name in ("input", "recipe"):
        backwards[name] = dict(reversed(PLAIN[name].items()))
    shuffled = dict(reversed(tensors().items()))
    assert encode(tensors(), metadata()) == encode(shuffled, Metadata.model_validate(backwards))
    assert encode(tensors(), metadata()) != encode(tensors(), metadata(classes=["a", "b", "c"]))
    memory = {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors().items()}
    assert encode(tensors(), metadata()) == encode(memory, metadata())


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(path):
    code = (
        "import sys, test_format as t; from pathlib import Path\n"
        "t.write_checkpoint(Path(sys.argv[1]), t.tensors(), t.metadata())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": f"{SUPPORT}:{Path(__file__).parent}"}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)
    assert path.read_bytes() == encode(tensors(), metadata())


def test_the_header_has_one_order_and_the_tensors_are_aligned(path):
    write_checkpoint(path, tensors(), metadata(classes=["ä", "日本"]))
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and next(iter(header)) == "__metadata__"
    assert list(header["__metadata__"]) == [KEY, "format"]
    assert read_metadata(path).classes == ["ä", "日本"]


def test_files_from_before_there_was_a_format_still_load(path):
    from safetensors.torch import save_file

    write_checkpoint(path, tensors(), metadata())
    before = read_checkpoint(path)
    text = before.metadata.model_dump_json()
    save_file(before.tensors, path, metadata={KEY: text})
    assert read_checkpoint(path).metadata == before.metadata


# --- the digest of the tensors ----------------------------------------------------------------------------------------


def test_the_digest_in_a_file_is_that_of_its_tensors_and_of_nothing_else(path):
    write_checkpoint(path, tensors(), metadata())
    found = read_checkpoint(path)
    digests = {name: hash_tensor(tensor) for name, tensor in tensors().items()}
    assert found.metadata.tensors == hash_named(digests) == by_the_rule(path.read_bytes())
    assert digests == {name: hash_tensor(tensor) for name, tensor in found.tensors.items()}
    assert len(set(digests.values())) == len(digests)
    write_checkpoint(path, dict(reversed(tensors().items())), metadata(classes=["a"], tensors="0" * 64))
    assert read_metadata(path).tensors == found.metadata.tensors, "what it was before, and what else is said, is naught"
    complex_ones = {"rotations": torch.randn(3, dtype=torch.complex64), "two": torch.randn(2, dtype=torch.complex128)}
    assert hash_tensor(complex_ones["rotations"]) != hash_tensor(torch.view_as_real(complex_ones["rotations"]))
    assert len({hash_tensor(tensor) for tensor in complex_ones.values()}) == 2


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "uint16", "complex64"]
)
def test_types_go_by_the_names_that_the_file_has(path, name):
    numbers = torch.ones(3).to(getattr(torch, name))
    path.write_bytes(safetensors.torch.save({"weight": numbers}))
    assert hash_named({"weight": hash_tensor(numbers)}) == by_the_rule(path.read_bytes())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(weight=t["weight"].T.contiguous().reshape(4, 3)),
        lambda t: t.update(weight=t["weight"].reshape(3, 4)),
        lambda t: t.update(weight=t["weight"].view(torch.int32)),
        lambda t: t["weight"].view(torch.int32)[3, 2].bitwise_xor_(1),
        lambda t: t.update(weights=t.pop("weight")),
        lambda t: t.update(bias=t["double"], double=t["bias"]),
        lambda t: t.pop("empty"),
        lambda t: t.update(nothing=torch.empty(0, 3)),
        lambda t: t.update(empty=torch.empty(3, 0)),
        lambda t: t.update(count=torch.tensor([7])),
        lambda t: t.update(mask=~t["mask"]),
    ],
)
def test_every_change_of_tensors_gives_another_digest(path, change):
    digests = []
    for changed in (False, True):
        given = {name: tensor.detach().clone() for name, tensor in tensors().items()}
        if changed:
            change(given)
        write_checkpoint(path, given, metadata())
        digests.append(read_metadata(path).tensors)
    assert digests[0] != digests[1]


@FEW
@given(data=st.data())
def test_a_changed_bit_of_the_tensors_is_refused(path, data):
    content = bytearray(encode({"weight": torch.ones(4, 3), "count": torch.tensor(7)}, metadata()))
    start = 8 + struct.unpack("<Q", content[:8])[0]
    content[data.draw(st.integers(start, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert read_metadata(path).tensors == by_the_rule(
        encode({"weight": torch.ones(4, 3), "count": torch.tensor(7)}, metadata())
    )
    with pytest.raises(CheckpointError, match=r"its tensors are not those it was written with|NaN or infinite"):
        read_checkpoint(path)
    assert read_checkpoint(path, refuse=False).metadata.tensors != by_the_rule(bytes(content))


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "A" * 64, "0" * 65, 5, ["0" * 64]])
def test_a_digest_that_is_none_is_refused(path, digest):
    said = refusal(path, with_metadata({**full(), "tensors": digest}, a=one_tensor()))
    assert "its metadata does not hold at tensors" in said


def older(path, **changes):
    """A file as it was written before there was a digest, or a frame of the input."""
    write_checkpoint(path, build_model("cnn", 3, {}).state_dict(), metadata(**changes))
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    said = json.loads(header["__metadata__"][KEY])
    del said["tensors"]
    header["__metadata__"][KEY] = json.dumps(said, sort_keys=True, ensure_ascii=False)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    return path


@pytest.mark.parametrize("given", [INPUT, OLD_INPUT])
def test_an_older_file_holds_and_keeps_its_bytes_when_it_is_saved_again(path, tmp_path, given):
    found = source_module.open_source(older(path, input=given))
    assert found.metadata.tensors is None
    digest = saving_module.save(found.classifier, tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == path.read_bytes()
    assert digest == found.sha256
    found.classifier.network.conv1.bias.data[0] += 1
    saving_module.save(found.classifier, tmp_path / "child.safetensors")
    assert read_metadata(tmp_path / "child.safetensors").tensors == by_the_rule(
        (tmp_path / "child.safetensors").read_bytes()
    )


def test_metadata_is_read_without_torch(path):
    write_checkpoint(path, tensors(), metadata())
    code = (
        "import sys; from pathlib import Path; from finetune.checkpoint.format import read_metadata\n"
        "assert read_metadata(Path(sys.argv[1])).model == 'cnn'\n"
        "sys.exit('torch' in sys.modules or 'safetensors.torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


@pytest.mark.parametrize("length", [128, 640, 896])
def test_a_header_whose_length_starts_like_a_pickle_is_no_pickle(path, length):
    """The format pads headers to 8 bytes, so that one in 32 has a length whose first byte is 0x80."""
    write_checkpoint(path, {"weight": torch.ones(1)}, metadata())
    header, data = path.read_bytes()[8:-4], path.read_bytes()[-4:]
    padded = header + b" " * (-(len(header) - length) % 256)
    path.write_bytes(struct.pack("<Q", len(padded)) + padded + data)
    assert path.read_bytes()[0] == 0x80
    assert read_metadata(path) == sealed(path) == read_checkpoint(path).metadata


# --- damage -----------------------------------------------------------------------------------------------------------


@FEW
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(path, data):
    content = encode({"weight": torch.ones(4, 3)}, metadata())
    kept = data.draw(st.one_of(st.integers(0, 16), st.integers(0, len(content) - 1)))
    for reader in (read_checkpoint, read_metadata):
        assert "cut short" in (said := refusal(path, content[:kept], reader)) or kept < 8, said


@FEW
@given(data=st.data())
def test_a_changed_byte_of_the_header_is_refused_or_harmless(path, data):
    content = bytearray(encode({"weight": torch.ones(4, 3)}, metadata()))
    header = struct.unpack("<Q", content[:8])[0]
    place = data.draw(st.one_of(st.integers(0, 7), st.integers(8, 7 + header)))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for reader in (read_metadata, read_checkpoint):
        try:
            reader(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")


@FEW
@given(content=st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(raw), st.text(max_size=80).map(str.encode)))
@example(content=b"")
@example(content=b"\0" * 8)
def test_random_bytes_are_refused(path, content):
    for reader in (read_metadata, read_checkpoint):
        refusal(path, content, reader)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FEW
@given(key=st.sampled_from(sorted(PLAIN)), value=JSON)
def test_metadata_of_any_type_is_refused_or_holds(path, key, value):
    path.write_bytes(with_metadata({**full(), key: value}, a=one_tensor()))
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        assert f"{path}: its metadata does not hold at " in str(error)
    else:
        encode(found.tensors, found.metadata)  # what was read can be written again


@FEW
@given(value=JSON)
@example(value=10**4300 - 1)
@example(value=True)
def test_offsets_of_any_type_are_refused_or_hold(path, value):
    sys.set_int_max_str_digits(4300)
    for entry in (one_tensor(data_offsets=value), one_tensor(data_offsets=[0, value]), value):
        path.write_bytes(with_metadata(full(), a=entry))
        try:
            assert read_checkpoint(path).metadata == metadata()
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"short", "not a safetensors file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "this is a web page, perhaps an error"),
        (b"\n <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "this is a web page, perhaps an error"),
        (gzip.compress(b"x" * 3000, mtime=0), "this is a gzip file; unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "this is a git-LFS pointer"),
        (pickle.dumps({"weight": [1.0] * 20}), "this is a pickle"),
        (pickle.dumps(1), "this is a pickle"),
        (raw(b"[" * 100_000), "its header is not the JSON it should be"),
        (raw(b'{"a":' * 100_000), "its header is not the JSON it should be"),
        (raw(b"[]"), "its header is not the JSON it should be"),
        (raw(b'"text"'), "its header is not the JSON it should be"),
        (raw(b"\xff\xfe{}"), "its header is not the JSON it should be"),
        (raw(b'{"a":{"data_offsets":[0,Infinity]}}'), "its header is not the JSON it should be"),
        (raw({"a": one_tensor()}, b"\0" * 4), "without finetune's metadata"),
        (raw({"__metadata__": {"format": "pt"}}), "without finetune's metadata"),
        (raw({"__metadata__": [KEY]}), "not the JSON it should be (__metadata__ is no mapping of texts)"),
        (with_metadata("{", a=one_tensor()), "its metadata does not hold at finetune"),
        (with_metadata("[" * 100_000, a=one_tensor()), "its metadata does not hold at finetune"),
        (raw({"__metadata__": {KEY: {}}}), "its metadata does not hold at finetune"),
        (raw({"__metadata__": {KEY: "\ud800"}}), "not the JSON it should be (a text with half a character in it"),
        (struct.pack("<Q", 2**63) + b"{}", "not a safetensors file: it starts with"),
        (struct.pack("<Q", 100_000_001) + b"{}", "not a safetensors file: it starts with"),
        (struct.pack("<Q", 3) + b"{}", "cut short: the header alone has 3 bytes, the file 10"),
        (struct.pack("<Q", 0), "its header is not the JSON it should be"),
        (with_metadata(full(), a=one_tensor()) + b"x", "has bytes too many"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_checkpoint_is_named(path, content, said):
    for reader in (read_metadata, read_checkpoint):
        assert said in refusal(path, content, reader)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save_is_named_and_not_opened(path, zipped):
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, buffer, _use_new_zipfile_serialization=zipped)
    assert "this is a pickle or a zip of one" in refusal(path, buffer.getvalue())


@pytest.mark.parametrize(
    "entry",
    [
        one_tensor(dtype="Q7"),
        one_tensor(shape=[2]),
        one_tensor(shape=[-1]),
        one_tensor(shape=[2**62, 2**62]),
        one_tensor(dtype="F4", shape=[8]),
        one_tensor(data_offsets=[4, 4]),
        one_tensor(data_offsets=[-4, 4]),
    ],
)
def test_tensors_that_contradict_the_header_are_refused(path, entry):
    assert "damaged safetensors file" in refusal(path, with_metadata(full(), a=entry))


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"format": 2}, "format"),
        ({"format": "1"}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"classes": []}, "classes"),
        ({"classes": "ab"}, "classes"),
        ({"classes": ["a", 1]}, "classes.1"),
        ({"classes": ["a", "a"]}, "finetune: value error, needs class names that differ"),
        ({"results": {"accuracy": float("nan")}}, "finetune"),
        ({"recipe": {"lr": [float("inf")]}}, "finetune"),
        ({"lineage": {}}, "lineage"),
        ({"versions": {"torch": 2}}, "versions.torch"),
        ({"input": {**INPUT, "channels": 2}}, "input.channels"),
        ({"input": {**INPUT, "channels": 3}}, "input: value error, needs one mean"),
        ({"input": {**INPUT, "surprise": 1}}, "input.surprise"),
        ({"input": {**INPUT, "size": 0}}, "input.size"),
        ({"input": {**INPUT, "size": 28.0}}, "input.size"),
        ({"input": {**INPUT, "mean": [float("nan")]}}, "finetune: the number NaN, which is not finite"),
        ({"input": {**INPUT, "std": [float("inf")]}}, "finetune: the number Infinity, which is not finite"),
        ({"input": {**INPUT, "std": [0.0]}}, "input: value error, needs one mean and one positive deviation"),
        ({"input": {**INPUT, "std": [1.0, 1.0]}}, "input: value error, needs one mean"),
        ({"input": {**INPUT, "interpolation": "magic"}}, "input.interpolation"),
    ],
)
def test_metadata_that_does_not_hold_says_where(path, changes, at):
    said = refusal(path, with_metadata({**full(), **changes}, a=one_tensor()), read_metadata)
    assert f"its metadata does not hold at {at}" in said


@pytest.mark.parametrize("key", list(PLAIN))
def test_metadata_without_a_key_is_refused(path, key):
    values = {name: value for name, value in full().items() if name != key}
    assert f"does not hold at {key}: field required" in refusal(path, with_metadata(values, a=one_tensor()))


def test_metadata_that_could_not_be_read_cannot_be_made():
    for changes in ({"results": {"x": float("nan")}}, {"classes": ["a", "a"]}, {"classes": ["\ud800"]}):
        with pytest.raises((ValidationError, ValueError)):
            encode({}, metadata(**changes))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), complex(0, float("nan"))])
def test_numbers_that_are_not_finite_are_named(path, number):
    bad = torch.tensor([1.0, number], dtype=torch.complex64 if isinstance(number, complex) else None)
    given = {"z.bad": bad, "a.bad": bad.clone(), "good": torch.ones(2)}
    content = safetensors.torch.save(given, {KEY: json.dumps(full())})
    assert "NaN or infinite numbers in a.bad, z.bad;" in refusal(path, content)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers in a\.bad, z\.bad;"):
        write_checkpoint(path, given, metadata())
    assert not path.exists()


def test_places_that_hold_no_file_are_named(tmp_path):
    write_checkpoint(tmp_path / "other.safetensors", {}, metadata())
    for reader in (read_metadata, read_checkpoint):
        with pytest.raises(CheckpointError, match=r"nothing\.safetensors: there is no such.* has other\.safetensors"):
            reader(tmp_path / "nothing.safetensors")
        with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
            reader(tmp_path)
        with pytest.raises(CheckpointError, match="Not a directory"):
            reader(tmp_path / "other.safetensors" / "x")


# --- tensors into a network -------------------------------------------------------------------------------------------


def test_tensors_fill_the_network():
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    load_tensors(network, other.state_dict(), "here")
    assert torch.equal(network.weight, other.weight) and torch.equal(network.bias, other.bias)
    assert network.weight is not other.weight


def test_tensors_that_do_not_fit_are_listed_on_both_sides_and_nothing_is_loaded():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: t.clone() for name, t in network.state_dict().items()}
    given = {name: torch.zeros_like(t) for name, t in network.state_dict().items()}
    del given["1.bias"]
    given |= {"extra": torch.zeros(()), "0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(2, dtype=torch.float64)}
    with pytest.raises(CheckpointError) as caught:
        load_tensors(network, given, "file.safetensors")
    assert str(caught.value).splitlines() == [
        "file.safetensors: the tensors do not fit the model, which has 7; the file has 7",
        "  0.bias: the model has float32 2, the file has float64 2",
        "  0.weight: the model has float32 2×3, the file has float32 3×2",
        "  1.bias: the model has float32 2, the file has no such tensor",
        "  extra: the model has no such tensor, the file has float32 (one number)",
    ]
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


# --- writing whole ----------------------------------------------------------------------------------------------------


def test_written_files_are_readable_by_others_and_leave_nothing_beside_them(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fault, call):
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")

    def fail(*_):
        raise fault

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError if isinstance(fault, OSError) else KeyboardInterrupt) as caught:
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]
    if isinstance(fault, OSError):
        assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device)")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from finetune.io.atomic import write_atomic\n"
        "from finetune.errors import OutputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(Path(sys.argv[1]), b'x' * 5000)\n"
        "except OutputError as error: sys.exit(0 if 'File too large' in str(error) else 3)\n"
        "sys.exit(4)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_place_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        OutputError,
        match=r"cannot be written \((Not a directory|File exists)\); name another place or put this one right",
    ):
        write_atomic(tmp_path / "file" / "x.safetensors", b"")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(tmp_path, b"")
    assert [p.name for p in tmp_path.parent.glob(f".{tmp_path.name}*")] == []


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(path):
    torch.manual_seed(0)
    network = build_model("cnn", 3, {})
    write_checkpoint(path, network.state_dict(), metadata())
    return path


def test_a_source_says_what_it_is(trained):
    opened = source_module.open_source(trained)
    assert (opened.dataset, opened.accuracy) == ("mnist", 0.9953)
    assert opened.lineage_of_child()[0] == {"id": "net.safetensors", "sha256": opened.sha256, "task": "mnist"}
    assert opened.classifier.class_names == ("null", "größer", "三") and not opened.classifier.training
    assert opened.classifier.input == MODELS["cnn"].input


def test_an_unchanged_classifier_is_saved_to_the_same_bytes(trained, tmp_path):
    saving_module.save(source_module.load(trained), tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == trained.read_bytes()


def weights(classifier):
    classifier.network.conv1.bias.data[0] += 1


def head(classifier):
    classifier.network.head = nn.Linear(128, 2)
    classifier.class_names = ("a", "b")


def names(classifier):
    classifier.class_names = ("a", "b", "c")


@pytest.mark.parametrize("change", [weights, head, names])
def test_a_changed_classifier_is_a_child_without_its_parents_results(trained, tmp_path, change):
    classifier = source_module.load(trained)
    parent = classifier.origin
    change(classifier)
    saving_module.save(classifier, tmp_path / "child.safetensors")
    child = source_module.open_source(tmp_path / "child.safetensors")
    assert child.metadata.lineage == [*parent.lineage_of_child()[:1], *PLAIN["lineage"]]
    assert (child.metadata.recipe, child.metadata.data, child.metadata.results) == ({}, {}, {})
    assert child.classifier.class_names == classifier.class_names
    assert torch.equal(child.classifier.network.conv1.bias, classifier.network.conv1.bias)


def test_saving_does_not_need_the_file_that_was_loaded(trained, tmp_path):
    for damage in (lambda: trained.write_bytes(b"gone"), trained.unlink):
        classifier = source_module.load(trained)
        content = trained.read_bytes()
        damage()
        saving_module.save(classifier, tmp_path / "copy.safetensors")
        assert source_module.read_source_metadata(tmp_path / "copy.safetensors").lineage[0]["id"] == "net.safetensors"
        trained.write_bytes(content)


def test_a_file_that_says_something_else_meanwhile_is_not_what_is_saved(trained, tmp_path):
    classifier = source_module.load(trained)
    write_checkpoint(trained, classifier.network.state_dict(), metadata(results={"test": {"accuracy": 1.0}}))
    saving_module.save(classifier, tmp_path / "copy.safetensors")
    assert source_module.read_source_metadata(tmp_path / "copy.safetensors").results == {}


def test_a_classifier_of_no_file_has_no_parents(tmp_path):
    classifier = Classifier(build_model("cnn", 2, {}), "cnn", {}, ["a", "b"], MODELS["cnn"].input)
    saving_module.save(classifier, tmp_path / "new.safetensors")
    assert source_module.read_source_metadata(tmp_path / "new.safetensors").lineage == []


def test_models_and_arguments_that_are_not_there_are_refused(path):
    write_checkpoint(path, {}, metadata(model="cnm"))
    with pytest.raises(CheckpointError, match=r"net\.safetensors: made with model 'cnm'"):
        source_module.read_source_metadata(path)
    write_checkpoint(path, {}, metadata(arguments={"width": 9}))
    with pytest.raises(CheckpointError, match=r"its metadata does not hold: model 'cnn': unknown argument 'width'"):
        source_module.load(path)
    write_checkpoint(path, build_model("cnn", 2, {}).state_dict(), metadata())
    with pytest.raises(CheckpointError, match=r"head\.bias: the model has float32 3, the file has float32 2"):
        source_module.load(path)


def test_input_metadata_is_per_channel():
    colour = InputMetadata(channels=3, size=8, mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0], interpolation="nearest")
    assert colour.channels == 3
    assert InputMetadata.model_validate(OLD_INPUT).model_dump() == INPUT, "files written before are read as they were"
    for wrong in ({"crop": 0.0}, {"crop": 1e-9}, {"crop": 1.5}, {"crop": float("nan")}, {"resize": "stretch"}):
        with pytest.raises(ValidationError):
            InputMetadata.model_validate({**INPUT, **wrong})


def test_how_a_picture_is_framed_comes_back_from_a_file(path):
    spec = InputSpec(1, 28, (0.5,), (0.25,), "bicubic", 0.875, "shorter_side")
    write_checkpoint(path, build_model("cnn", 3, {}).state_dict(), metadata(input=spec.as_dict()))
    found = source_module.load(path).input
    assert found == spec and found.working == 32
