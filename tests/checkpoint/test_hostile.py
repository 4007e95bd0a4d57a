"""Checkpoints of strangers: every lie of a header, a network or a place is named in one line, and costs little."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from checkpoint_files import full, metadata, one_tensor, raw, refusal, with_metadata
from measure import alone
from tiny import refused, worked

from finetune.checkpoint.format import KEY, read_checkpoint, read_metadata, read_weights, write_checkpoint
from finetune.checkpoint.safetensors_io import (
    BYTES,
    MAX_AXES,
    MAX_HEADER,
    MAX_TENSORS,
    check_finite,
    read_header,
)
from finetune.checkpoint.tensor_hash import TORCH_NAMES
from finetune.errors import CheckpointError, SettingError
from finetune.models.registry import build_model, find_model
from finetune.sources.resolve import open_source, read_source_metadata


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def said_of(path, content, *readers):
    """The one refusal that every reader gives, in one line that can be printed."""
    said = {refusal(path, content, reader) for reader in readers or (read_metadata, read_checkpoint, read_weights)}
    assert len(said) == 1, said
    (message,) = said
    assert message.isprintable(), message
    return message.removeprefix(f"{path}: ")


def entries(*items, texts=None, data=4):
    """A file from (name, entry) pairs, which may repeat a name, and so many bytes of data."""
    given = {"__metadata__": {KEY: json.dumps(full())} if texts is None else texts}
    parts = [f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in (*given.items(), *items)]
    return raw(("{" + ",".join(parts) + "}").encode(), b"\0" * data)


# --- headers ----------------------------------------------------------------------------------------------------------

OK = one_tensor()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (entries(("a", OK), ("a", OK)), 'the key "a" is there twice'),
        (raw(b'{"__metadata__":{},"__metadata__":{"finetune":"{}"}}'), 'the key "__metadata__" is there twice'),
        (raw(b'{"__metadata__":{"finetune":"1","finetune":"2"}}'), 'the key "finetune" is there twice'),
        (raw(b'{"a":{"dtype":"F32","dtype":"F64","shape":[],"data_offsets":[0,4]}}'), 'the key "dtype" is there twice'),
        (entries(("a", {**OK, "more": 1})), 'tensor "a": expected dtype, shape and data_offsets alone'),
        (entries(("a", {"dtype": "F32", "shape": [1]})), 'tensor "a": expected dtype, shape and data_offsets alone'),
        (entries(("a", [])), 'tensor "a": expected dtype'),
        (entries(("a", one_tensor(dtype="F4"))), "expected one of the types BOOL, U8,"),
        (entries(("a", one_tensor(dtype="f32"))), 'found "f32"'),
        (entries(("a", one_tensor(dtype=32))), "found no text"),
        (entries(("a", one_tensor(dtype=["F32"]))), "found no text"),
        (entries(("a", one_tensor(shape=[-1]))), "expected a shape of at most 16 whole numbers from 0"),
        (entries(("a", one_tensor(shape=[True]))), "expected a shape"),
        (entries(("a", one_tensor(shape=[1.0]))), "expected a shape"),
        (entries(("a", one_tensor(shape=["1"]))), "expected a shape"),
        (entries(("a", one_tensor(shape=[[1]]))), "expected a shape"),
        (entries(("a", one_tensor(shape=None))), "expected a shape"),
        (entries(("a", one_tensor(shape=[1] * (MAX_AXES + 1)))), "expected a shape"),
        (entries(("a", one_tensor(shape=[2**62, 2**62]))), "a shape of more numbers than can be counted"),
        (entries(("a", one_tensor(shape=[2**61]))), "a shape of more numbers than can be counted"),
        (entries(("a", one_tensor(shape=[2**40, 2**40, 0], data_offsets=[0, 0])), data=0), "than can be counted"),
        (entries(("a", one_tensor(shape=[2**64]))), "does not fit 64 bits"),
        (
            entries(("a", one_tensor(shape=[2**60]))),
            "F32 1152921504606846976: expected 4,611,686,018,427,387,904 bytes",
        ),
        (entries(("a", one_tensor(data_offsets=[0]))), "expected data_offsets of two whole numbers"),
        (entries(("a", one_tensor(data_offsets=[-4, 0]))), "expected data_offsets of two whole numbers"),
        (entries(("a", one_tensor(data_offsets=[False, 4]))), "expected data_offsets of two whole numbers"),
        (entries(("a", one_tensor(data_offsets=[0, 4.0]))), "expected data_offsets of two whole numbers"),
        (entries(("a", one_tensor(data_offsets=[4, 0]))), "is F32 1: expected 4 bytes, found -4"),
        (entries(("a", one_tensor(shape=[])), ("b", one_tensor(shape=[2]))), '"b" is F32 2: expected 8 bytes, found 4'),
        (entries(("a", OK), ("b", OK)), 'tensor "b" overlaps tensor "a": expected it at byte 4, found 0'),
        (entries(("a", OK), ("b", one_tensor(data_offsets=[2, 6])), data=6), 'tensor "b" overlaps tensor "a"'),
        (entries(("a", one_tensor(data_offsets=[4, 8])), data=8), 'tensor "a" leaves a gap after the header'),
        (entries(("b", OK), ("a", one_tensor(data_offsets=[8, 12])), data=12), '"a" leaves a gap after tensor "b"'),
        (
            entries(("a", OK), ("b", one_tensor(shape=[0], data_offsets=[2, 2]))),
            'tensor "b" overlaps tensor "a": expected it at byte 4, found 2',
        ),
        (entries(("a", OK), data=5), "has bytes too many: expected 4 bytes of tensors, found 5"),
        (entries(("a", OK), data=3), "cut short: expected 4 bytes of tensors, found 3"),
        (entries(data=1), "has bytes too many: expected 0"),
        (entries(("", OK)), 'the tensor name "" is empty'),
        (entries(("x" * 501, OK)), "has over 500 characters or strange ones"),
        (entries(("a\x1b[2J", OK)), 'the tensor name "a\\x1b[2J" is empty'),
        (entries(("a\u202eb", OK)), "the tensor name"),
        (entries(("a\nb", OK)), "the tensor name"),
        (entries(("\ud800", OK)), "half a character"),
        (entries(("a", OK), texts={KEY: 5}), "its metadata does not hold at finetune: expected a text"),
        (entries(("a", OK), texts={"x\x1b": None}), "its metadata does not hold at x�: expected a text"),
        (entries(("a", OK), texts=[KEY]), "__metadata__ is no mapping of texts"),
        (
            raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.replace(b'"a"', b'"\xff"')),
            "not UTF-8 at byte 2",
        ),
        (raw('{"a":1}'.encode("utf-16")), "it starts with b'\\xff\\xfe"),
        (raw(b' {"a":1}'), "it starts with b' {\"a\":1}'"),
        (raw(b'{"a":[' + b"[" * 500 + b"]" * 500 + b"]}"), "nested deeper than 30 levels"),
        (raw(b'{"a":' + b"[" * 200_000), "nested too deep"),
        (raw(b'{"a":[' + b"[]," * 600_000 + b"0]}"), "more than 1,000,000 values"),
        (struct.pack("<Q", MAX_HEADER + 1) + b"{" + b" " * MAX_HEADER, "at most 10,000,000 bytes of header are read"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "not a safetensors file: it starts with b'\\xff\\xff"),
        (struct.pack("<Q", 50) + b'{"a":1}', "cut short: the header alone has 50 bytes, the file 15"),
    ],
    ids=lambda value: value[:48] if isinstance(value, str) else "",
)
def test_every_lie_of_a_header_is_named(path, content, said):
    assert said in said_of(path, content)


def test_the_bytes_of_tensors_decide_their_order_and_empty_ones_take_none(path):
    header = {
        "c": {"dtype": "F32", "shape": [0, 2**31], "data_offsets": [4, 4]},
        "b": {"dtype": "I16", "shape": [2, 1], "data_offsets": [4, 8]},
        "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "d": {"dtype": "F32", "shape": [1, 0], "data_offsets": [8, 8]},
    }
    path.write_bytes(raw(header, struct.pack("<fhh", 1.5, 2, -3)))
    assert list(read_header(path).tensors) == ["a", "c", "b", "d"]
    found = read_weights(path).tensors
    assert found["a"].item() == 1.5 and found["b"].tolist() == [[2], [-3]]
    assert found["c"].shape == (0, 2**31) and found["d"].shape == (1, 0)


def tensors_of(count):
    return {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(count)}


def test_so_many_tensors_and_no_more(path):
    path.write_bytes(raw(tensors_of(MAX_TENSORS)))
    assert len(read_header(path).tensors) == MAX_TENSORS
    assert "more than 20,000 tensors" in said_of(path, raw(tensors_of(MAX_TENSORS + 1)))
    bare = {f"t{n}": 0 for n in range(MAX_TENSORS + 1)}
    assert "more than 20,000 tensors" in said_of(path, raw(bare), read_metadata)


HUNGRY = """
import sys, time
from pathlib import Path
from measure import peak
from finetune.errors import CheckpointError
from finetune.checkpoint.format import read_metadata
path, most = Path(sys.argv[1]), int(sys.argv[2])
before, start = peak(), time.process_time()
try:
    read_metadata(path)
except CheckpointError as error:
    said = str(error)
used = (peak() - before) // 2**20
assert used < most, f"{used} MB"
assert time.process_time() - start < 5
assert "torch" not in sys.modules
print(said)
"""


@pytest.mark.parametrize(
    ("content", "most", "said"),
    [
        (lambda: raw(tensors_of(130_000)), 60, "more than 20,000 tensors"),
        (lambda: struct.pack("<Q", 30_000_000) + b'{"' + b"x" * 30_000_000, 20, "at most 10,000,000 bytes of header"),
        (lambda: raw(b'{"a":[' + b"[]," * 3_300_000 + b"0]}"), 60, "more than 1,000,000 values"),
        (lambda: raw(b'{"a":[' + b"[]," * 490_000 + b"0]}"), 120, "damaged"),
        (lambda: with_metadata("[" + "[]," * 3_300_000 + "0]"), 120, "more than 1,000,000 values"),
        (
            lambda: with_metadata({**full(), "recipe": {"a": "x" * 9_000_000}}, a=one_tensor()),
            200,
            "recipe: a text of 9,000,000",
        ),
        (lambda: with_metadata("[" * 9_000_000), 120, "more than 1,000,000 values"),
        (lambda: raw(("{" + " " * 9_000_000 + "\U0001f600").encode()), 120, "not the JSON it should be"),
    ],
    ids=range(8),
)
def test_large_headers_take_little_time_and_memory(path, content, most, said):
    path.write_bytes(content())
    assert said in alone(HUNGRY, path, most)


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_every_type_is_read_as_the_formats_own_library_reads_it(path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    random = torch.randint(0, 256, (4, 8), dtype=torch.uint8)
    given = {name: random.view(getattr(torch, TORCH_NAMES[name])).clone() for name in BYTES if name != "BOOL"}
    given["BOOL"] = random > 100
    given |= {"one": torch.tensor(3.5), "none": torch.empty(0, 3), "deep": torch.zeros((1,) * MAX_AXES)}
    for name, tensor in given.items():  # random bytes may be NaN
        finite = tensor.is_floating_point() or tensor.is_complex()
        given[name] = torch.ones(3).to(tensor.dtype) if finite and tensor.dim() == 2 and tensor.numel() else tensor
    save_file(given, path)
    assert {entry.dtype for entry in read_header(path).tensors.values()} == BYTES.keys()
    found, wanted = read_weights(path).tensors, load_file(path)
    assert found.keys() == wanted.keys() == given.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].contiguous().view(torch.uint8).equal(tensor.view(torch.uint8)) if tensor.dim() else True
        assert found[name].data_ptr() % tensor.element_size() == 0


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("F16", struct.pack("<H", 0x7C00)),
        ("F16", struct.pack("<H", 0xFE01)),
        ("BF16", struct.pack("<H", 0x7F80)),
        ("BF16", struct.pack("<H", 0xFFC0)),
        ("F32", struct.pack("<f", float("-inf"))),
        ("F64", struct.pack("<d", float("nan"))),
        ("C64", struct.pack("<ff", 0, float("inf"))),
        ("F8_E4M3", b"\x7f"),
        ("F8_E4M3", b"\xff"),
        ("F8_E5M2", b"\x7c"),
        ("F8_E5M2", b"\xfd"),
        ("F8_E4M3FNUZ", b"\x80"),
        ("F8_E5M2FNUZ", b"\x80"),
        ("F8_E8M0", b"\xff"),
    ],
)
def test_numbers_that_are_not_finite_are_found_in_every_type(path, kind, content):
    size = BYTES[kind]
    for place in (0, 1, 300_000):
        data = bytearray(size * 300_001)
        data[place * size : (place + 1) * size] = content
        header = {"a": {"dtype": kind, "shape": [300_001], "data_offsets": [0, len(data)]}}
        said = said_of(path, raw(header, bytes(data)), read_weights)
        assert said == "NaN or infinite numbers in a; such weights predict nothing"


def test_of_very_many_bad_tensors_the_first_are_named():
    bad = {f"t{n:03}": torch.tensor(float("nan")) for n in range(25)}
    with pytest.raises(CheckpointError, match=r"here: NaN .* in t000, .*, t019 and 5 more; such"):
        check_finite(bad, "here")


def test_a_truth_value_is_0_or_1(path):
    header = {"a": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}
    assert "tensor a is BOOL, and a byte of it is neither 0 nor 1" in said_of(
        path, raw(header, b"\0\1\2"), read_weights
    )
    path.write_bytes(raw(header, b"\0\1\0"))
    assert read_weights(path).tensors["a"].tolist() == [False, True, False]


def test_what_does_not_fit_the_memory_is_refused_before_it_is_read(path, monkeypatch):
    size = 1 << 42
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size)  # takes no room on the disk
    with pytest.raises(CheckpointError, match=r"4,398,046,511,\d+ bytes do not fit the memory of this machine"):
        read_weights(path)


READING = """
import sys, torch
from pathlib import Path
from measure import peak
from finetune.checkpoint.format import read_weights
torch.zeros(10).isfinite().all(), torch.empty(9, dtype=torch.uint8).numpy()
before = peak()
tensors = read_weights(Path(sys.argv[1])).tensors
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.slow
def test_reading_takes_the_files_size_once(path):
    from safetensors.torch import save_file

    save_file({"large": torch.zeros(20_000_000), **{f"small{n}": torch.ones(10) for n in range(50)}}, path)
    assert 0.9 < float(alone(READING, path)) < 1.25


# --- places -----------------------------------------------------------------------------------------------------------


def test_places_that_are_no_files_are_refused_at_once_by_every_command(folder):
    os.mkfifo("pipe.safetensors")
    Path("device.safetensors").symlink_to("/dev/zero")
    Path("ring.safetensors").symlink_to("ring.safetensors")
    Path("folder.safetensors").mkdir()
    for name, why in {
        "pipe": "it is a pipe, not a regular file",
        "device": "it is a device, not a regular file",
        "folder": "Is a directory",
    }.items():
        file = f"{name}.safetensors"
        said = f"{file}: expected a .safetensors file, but it cannot be read ({why})\n"
        assert refused("inspect", file) == said
        assert refused("evaluate", file, "--data", "mnist") == said
        assert refused("predict", file, "x.png") == said
        assert refused("adapt", "--from", file, "--target", "mnist") == said
    assert refused("inspect", "ring.safetensors").startswith(
        "ring.safetensors: links that lead to each other in a ring"
    )


def test_the_names_of_files_beside_one_that_is_missing_are_shown_harmless(folder):
    Path("a\x1b[2J.safetensors").touch()
    assert "has a�[2J.safetensors" in refused("inspect", "none.safetensors")
    with pytest.raises(CheckpointError, match="has a�"):
        read_metadata(Path("none.safetensors"))


# --- networks ---------------------------------------------------------------------------------------------------------


def of(path, model, arguments, classes=("a", "b", "c"), input=None, tensors=None):
    """A checkpoint that says this of its network and has next to no tensors."""
    changes = {} if input is None else {"input": input}
    said = metadata(model=model, arguments=arguments, classes=list(classes), **changes)
    write_checkpoint(path, tensors or {"x": torch.zeros(1)}, said)
    return path


COLOUR = {"channels": 3, "size": 160, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        ("timm/vit_tiny_patch16_224", {"depth": 16384}, "more than 5,000 tensors to train"),
        ("timm/vit_tiny_patch16_224", {"embed_dim": 16384 * 3}, "expected at most 16,384, found 49,152"),
        ("timm/vit_tiny_patch16_224", {"mlp_ratio": 1e9}, "a tensor of"),
        ("timm/vit_tiny_patch16_224", {"mlp_ratio": 1e300}, "cannot be built with mlp_ratio=1e+300"),
        (
            "timm/vit_tiny_patch16_224",
            {"embed_dim": 8192, "num_heads": 1, "depth": 24},
            "parameters; at most 10,000,000,000",
        ),
        (
            "timm/vit_tiny_patch16_224",
            {"img_size": 4097},
            "expected the side in whole pixels, found 4097; at most 4,096 are taken",
        ),
        ("timm/vit_tiny_patch16_224", {"patch_size": 1, "img_size": 4096}, "a tensor of 12,884,902,656 bytes; at most"),
        (
            "timm/swin_tiny_patch4_window7_224",
            {"window_size": 512, "img_size": 2048},
            "a tensor of 549,755,813,888 bytes; at most 2,147,483,648 are made at once",
        ),
        ("timm/test_resnet", {"act_layer": "x" * 101}, "at most 100 characters that can be shown"),
        ("timm/test_resnet", {"act_layer": "os.system"}, "cannot be built with act_layer=os.system"),
        ("timm/coat_tiny", {"return_interm_layers": True}, "it does not say its classifier"),
        ("timm/test_resnet", {"pretrained": True}, "weights come from --from"),
        ("timm/test_resnet", {"checkpoint_path": "/etc/passwd"}, "weights come from --from"),
        ("timm/test_resnet", {"cache_dir": "/tmp"}, "a recipe may not name files"),
        ("timm/test_resnet", {"num_classes": 10**9}, "the data's classes decide the head"),
        ("timm/test_resnet", {"pretrained_cfg": "x"}, "weights come from --from"),
        ("timm/hf_hub:someone/thing", {}, "expected timm/NAME or timm/NAME.TAG of timm's own models, without paths"),
        ("timm/../../etc", {}, "without paths"),
        ("timm/" + "x" * 190, {}, "without paths"),
        ("timm/test_resnet", {}, "the tensors do not fit the model"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_take_memory_or_fetch_something_is_refused_before_it_is_built(path, model, arguments, said):
    of(path, model, arguments)
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_network_is_held_against_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr("finetune.models.timm.build.available_memory", lambda: 1_000_000)
    with pytest.raises(SettingError, match=r"1,\d\d\d,\d\d\d bytes do not fit the memory of this machine, 1,000,000"):
        build_model("timm/test_resnet", 3, {})
    with torch.device("meta"):
        assert build_model("timm/test_resnet", 3, {}).head.out_features == 3, "without numbers it takes none"


def test_networks_made_for_a_look_leave_no_hook_behind():
    with pytest.raises(SettingError):
        find_model("timm/vit_tiny_patch16_224", {"depth": 5000})
    torch.nn.ModuleList([torch.nn.Linear(1, 1) for _ in range(3000)])


def test_tables_that_are_in_no_file_are_counted(monkeypatch):
    monkeypatch.setattr("finetune.models.timm.build.MAX_TABLES", 1000)
    find_model("timm/test_resnet", {"drop_rate": 0.122})
    with pytest.raises(SettingError, match=r"bytes of tables; at most 1,000 can be built"):
        find_model("timm/swin_tiny_patch4_window7_224", {"drop_rate": 0.123})


def test_a_pass_that_would_take_too_much_is_refused(monkeypatch):
    monkeypatch.setattr("finetune.models.timm.build.MAX_PASS_BYTES", 1_000_000)
    with pytest.raises(SettingError, match=r"a tensor of [\d,]+ bytes; at most 1,000,000 are made at once"):
        find_model("timm/test_resnet", {"drop_rate": 0.123})


def test_work_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr("finetune.models.timm.build.MAX_STEPS", 10)
    with pytest.raises(SettingError, match="more than 10 operations"):
        find_model("timm/test_resnet", {"drop_rate": 0.124})
    monkeypatch.setattr("finetune.models.timm.build.MAX_SECONDS", -1)
    with pytest.raises(SettingError, match="more than -1 seconds"):
        find_model("timm/test_resnet", {"drop_rate": 0.125})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ["a", "b"]}, "the tensors do not fit the model"),
        ({"input": {**COLOUR, "size": 28}}, "its metadata says images of 3 channels, but model 'cnn' takes 1"),
        (
            {"input": {"channels": 1, "size": 32, "mean": [0], "std": [1], "interpolation": "bilinear"}},
            "model 'cnn' takes images of 28×28 pixels, not 32×32",
        ),
    ],
)
def test_metadata_is_held_against_the_network(path, changes, said):
    given = {"classes": ["a", "b", "c"], "input": None, **changes}
    of(path, "cnn", {}, given["classes"], given["input"], build_model("cnn", 3, {}).state_dict())
    with pytest.raises(CheckpointError, match=said):
        open_source(path)


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_a_key_twice_in_our_own_metadata_is_refused(path):
    text = json.dumps(full())
    for doubled in ('{"model": "cnn", ' + text[1:], text.replace('"size": 28', '"size": 9999, "size": 28')):
        said = said_of(path, with_metadata(doubled, a=one_tensor()), read_metadata)
        assert "its metadata does not hold at finetune: the key" in said and "is there twice" in said


def test_places_of_faults_are_shown_harmless_and_short(path):
    said = said_of(path, with_metadata({**full(), "\x1b[2J" + "x" * 5000: 1}, a=one_tensor()), read_metadata)
    assert "does not hold at �[2Jxxx" in said and len(said) < 300
    assert 'classes.0: expected 1 to 255 characters that can be shown, found "A\\x1b"' in said_of(
        path, with_metadata({**full(), "classes": ["A\x1b"]}, a=one_tensor()), read_metadata
    )


def test_a_long_lineage_loses_its_oldest_and_not_the_run(path):
    oldest = [{"id": f"{n}", "sha256": None, "task": None} for n in range(200)]
    write_checkpoint(path, build_model("cnn", 3, {}).state_dict(), metadata(lineage=oldest))
    source = open_source(path)
    assert [one["id"] for one in source.lineage_of_child()] == ["net.safetensors", *map(str, range(199))]
    metadata(lineage=source.lineage_of_child())


def test_what_is_shown_cannot_move_a_cursor(folder):
    path = folder / "net.safetensors"
    path.write_bytes(with_metadata({**full(), "recipe": {"\x1b[2J": "a\x9b\u202eb"}}, a=one_tensor()))
    shown = worked("inspect", path).out
    assert "�[2J  a��b" in shown and all(c.isprintable() or c == "\n" for c in shown)
    as_json = worked("inspect", path, "--json")
    assert all(c.isprintable() or c == "\n" for c in as_json.out)
    assert as_json.json["recipe"] == {"\x1b[2J": "a\x9b\u202eb"} == read_source_metadata(path).recipe
    path.write_bytes(raw({"__metadata__": {"\x1b]0;": "\x07" + "x" * 50_000}, "a": one_tensor()}, b"\0" * 4))
    shown = worked("inspect", path).out
    assert "�]0;  �xxx" in shown and len(shown) < 3000
