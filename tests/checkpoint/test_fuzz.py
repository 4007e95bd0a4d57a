"""Checkpoints that are nearly right, in every way that can be thought of: each is read, or refused in plain words."""

import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_files import full, metadata, raw, with_metadata
from fuzzing import ODD_NUMBERS, ODD_TEXTS, VALUES, answered, changed, damaged, fuzzed, modestly
from hypothesis import event, given
from hypothesis import strategies as st
from tiny import finetune

from finetune.checkpoint.format import KEY, encode, read_checkpoint, read_metadata, read_weights
from finetune.checkpoint.limits import MAX_INPUT_SIZE
from finetune.commands.inspect import inspect
from finetune.errors import CheckpointError, HubRefusal
from finetune.hub.timm_config import parse_config
from finetune.models.registry import build_model
from finetune.sources.resolve import open_source
from finetune.sources.save import make_metadata
from finetune.sources.third_party import from_repository

FILE = Path(tempfile.mkdtemp(prefix="finetune-fuzz-"), "net.safetensors")


@pytest.fixture(scope="module", autouse=True)
def place():
    yield
    FILE.unlink(missing_ok=True)
    FILE.parent.rmdir()


def read_all(content):
    """What the readers of a file give; all of them have to answer."""
    FILE.write_bytes(content)
    found = answered(lambda: read_weights(FILE))
    about = answered(lambda: inspect(FILE))
    ours = answered(lambda: read_checkpoint(FILE))
    said = answered(lambda: read_metadata(FILE))
    assert ours is None or (found is not None and said == ours.metadata)
    assert found is None or about is not None or KEY in found.texts
    return found


def same_as_the_formats_own_library(content, found):
    """Whatever is read here can be read there, and is the same."""
    wanted = safetensors.torch.load(content)
    assert found.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found.tensors[name].dtype == tensor.dtype and found.tensors[name].equal(tensor), name


HEADER = {
    "__metadata__": {"format": "pt", "note": "x"},
    "first.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "I16", "shape": [4], "data_offsets": [24, 32]},
    "none": {"dtype": "F64", "shape": [0, 5], "data_offsets": [32, 32]},
    "one": {"dtype": "BOOL", "shape": [], "data_offsets": [32, 33]},
    "half": {"dtype": "BF16", "shape": [1, 1, 2], "data_offsets": [33, 37]},
    "raw": {"dtype": "U8", "shape": [3], "data_offsets": [37, 40]},
}
DATA = struct.pack("<6f4h", *range(10)) + b"\1" + struct.pack("<2H", 0x3F80, 0x4000) + b"abc"
IN_HEADERS = st.one_of(
    VALUES,
    st.sampled_from(["F32", "F16", "BF16", "F8_E5M2", "F4", "U64", "C64", "BOOL", "I8"]),
    st.lists(st.integers(0, 41), min_size=2, max_size=2),
    st.lists(st.integers(0, 8) | ODD_NUMBERS, max_size=3),
    st.integers(0, 41),
)


SELDOM = st.sampled_from([False] * 7 + [True])


@st.composite
def headers(draw):
    """A file whose header had something done to it, or its length, or the data behind it."""
    values = draw(st.just(HEADER) | changed(HEADER, IN_HEADERS) | changed(HEADER, IN_HEADERS))
    if isinstance(values, dict):
        items = list(values.items())
        items += [draw(st.sampled_from(items))] if items and draw(SELDOM) else []  # a name that is there twice
        inside = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in draw(st.permutations(items)))
        text = f"{{{inside}}}"
    else:
        text = json.dumps(values)
    header = (text + " " * draw(st.integers(0, 3))).encode()
    length, data = len(header), DATA
    if draw(SELDOM):
        length = draw(st.integers(0, 2 * len(header)) | st.integers(0, 2**64 - 1))
    if draw(SELDOM):
        data = draw(st.sampled_from([DATA[:-1], DATA + b"x", b"", b"\xff" * len(DATA)]))
    return struct.pack("<Q", length) + header + data


@fuzzed(300)
@given(content=headers())
def test_headers(content):
    found = read_all(content)
    event("read" if found is not None else "refused")
    if found is not None:
        same_as_the_formats_own_library(content, found)


def test_the_header_that_is_changed_is_right():
    content = raw(HEADER, DATA)
    found = read_all(content)
    assert found.tensors.keys() == HEADER.keys() - {"__metadata__"} and found.texts == HEADER["__metadata__"]
    same_as_the_formats_own_library(content, found)


SMALL = encode({"weight": torch.ones(4, 3), "flag": torch.tensor(True)}, metadata())


@fuzzed(150)
@given(content=damaged(SMALL) | damaged(raw(HEADER, DATA)) | st.binary(max_size=99))
def test_bytes(content):
    found = read_all(content)
    if found is not None:
        same_as_the_formats_own_library(content, found)


@fuzzed(200)
@given(values=changed(full()), text=st.none() | st.tuples(st.integers(0, 999), st.sampled_from('[]{},:"\\0 1eN-')))
def test_metadata(values, text):
    said = json.dumps(values)
    if text is not None:
        said = said[: text[0]] + text[1] + said[text[0] :]
    found = read_all(with_metadata(said, a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}))
    ours = answered(lambda: read_checkpoint(FILE))
    event("read" if ours is not None else "refused")
    if found is None or ours is None:
        return
    again = encode(ours.tensors, ours.metadata)
    FILE.write_bytes(again)
    written = read_checkpoint(FILE).metadata.model_copy(update={"tensors": ours.metadata.tensors})
    assert written == ours.metadata, "what was read can be written again"
    for words in ((), ("--json",)):
        done = finetune("inspect", FILE, *words)
        assert done.code in (0, 2)
        assert all(c.isprintable() or c in "\n\u00a0" or c.isspace() for c in done.out)
        assert "\x1b" not in done.out + done.err


MODELS = [
    "cnn",
    "timm/test_resnet",
    "timm/test_vit",
    "timm/resnet18.nope",
    "timm/nothing",
    "timm/hf-hub:a/b",
    "CNN",
    "",
]
NAMES = "img_size in_chans depth drop_rate embed_dim num_heads mlp_ratio patch_size act_layer num_classes pretrained"
NAMES += " checkpoint_path features_only pos_embed layers qkv_bias nothing"
ARGUMENTS = st.dictionaries(
    st.sampled_from(NAMES.split()),
    st.sampled_from([0, 1, 3, -1, 16, 160, 4096, 16384, 2**40, 0.5, 1e9, True, None, "relu", "gelu", "avg", "x" * 300])
    | ODD_NUMBERS
    | ODD_TEXTS,
    max_size=2,
)
INPUTS = st.fixed_dictionaries(
    {
        "channels": st.sampled_from([1, 3]),
        "size": st.sampled_from([1, 28, 32, 160, MAX_INPUT_SIZE, MAX_INPUT_SIZE + 1]),
        "mean": st.lists(st.floats(-1, 1), min_size=1, max_size=3),
        "std": st.lists(st.floats(0, 1), min_size=1, max_size=3),
        "interpolation": st.sampled_from(["bilinear", "bicubic"]),
    }
)
CNN = build_model("cnn", 3, {}).state_dict()


@fuzzed(30)
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "model": st.sampled_from(MODELS),
            "arguments": ARGUMENTS,
            "input": INPUTS,
            "classes": st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4) | VALUES,
        },
    ),
    left_out=st.lists(st.sampled_from(sorted(CNN)), max_size=1),
)
def test_networks(changes, left_out):
    tensors = {name: t for name, t in CNN.items() if name not in left_out}
    plain = {"dtype": "F32"}
    entries, place = {}, 0
    for name, tensor in tensors.items():
        end = place + tensor.numel() * 4
        entries[name], place = {**plain, "shape": list(tensor.shape), "data_offsets": [place, end]}, end
    header = {"__metadata__": {KEY: json.dumps({**full(), **changes})}, **entries}
    FILE.write_bytes(raw(header, b"".join(t.numpy().tobytes() for t in tensors.values())))
    source = answered(lambda: open_source(FILE))
    event("read" if source is not None else "refused")
    if source is None:
        return
    assert source.metadata.model == "cnn" and source.metadata.arguments == {} and not left_out
    (seen,) = source.classifier.predict([np.zeros((40, 30), np.uint8)])
    assert sum(seen.probabilities) == pytest.approx(1, abs=1e-3) and seen.label in source.metadata.classes


@fuzzed(25)
@given(values=changed(full(), VALUES, 1), broken=st.none() | damaged(SMALL))
def test_whole_commands(data, values, broken):
    text = {KEY: json.dumps(values)}
    FILE.write_bytes(safetensors.torch.save(CNN, text) if broken is None else broken)
    for words in (("evaluate", FILE, "--data", "mnist", "--data-root", data), ("predict", FILE, "none.png")):
        with modestly():
            done = finetune(*words)
        assert done.code in (0, 1, 2) and "Traceback" not in done.err
        assert done.code == 0 or done.err.startswith("finetune: ")
        assert done.code != 2 or done.out == "", "a picture that is not there is a line, and the code is 1"


CONFIG = {
    "architecture": "test_resnet.r160_in1k",
    "num_classes": 2,
    "num_features": 256,
    "label_names": ["ant", "bee"],
    "model_args": {"in_chans": 1},
    "pretrained_cfg": {
        "tag": "x",
        "input_size": [1, 160, 160],
        "mean": [0.5],
        "std": [0.5],
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "label_offset": 0,
    },
}


def test_what_a_configuration_says_is_repeated_shortly():
    FILE.write_bytes(safetensors.torch.save(THEIRS))
    for part, value in (("model_args", {"in_chans": [1] * 9999}), ("model_args", {"img_size": "9" * 90})):
        with pytest.raises(CheckpointError) as caught:
            from_repository(FILE, "here", parse_config({**CONFIG, part: value}, "here"))
        assert len(str(caught.value)) < 400
    settings = {**CONFIG["pretrained_cfg"], "input_size": [[1] * 9999, 160, 160]}
    with pytest.raises(CheckpointError, match="its input_size is") as caught:
        from_repository(FILE, "here", parse_config({**CONFIG, "pretrained_cfg": settings}, "here"))
    assert len(str(caught.value)) < 400


THEIRS = build_model("timm/test_resnet", 2, {"in_chans": 1}).state_dict()
IN_CONFIGS = (
    VALUES | ARGUMENTS | st.sampled_from(["test_vit", "resnet18", 0, 1, 2, 3, 1000, 50_000, 10**6, [1, 32, 32], 4096])
)


@fuzzed(40)
@given(
    values=st.just(CONFIG) | changed(CONFIG, IN_CONFIGS, 2), whose=st.sampled_from(["theirs", "theirs", "ours", "none"])
)
def test_other_peoples_repositories(values, whose):
    numbers = {"theirs": THEIRS, "ours": CNN, "none": {}}[whose]
    FILE.write_bytes(safetensors.torch.save(numbers))
    try:
        config = parse_config(values, "here") if isinstance(values, dict) else None
    except HubRefusal as error:
        assert str(error).startswith("here: ") and str(error).isprintable()
        return
    opened = answered(lambda: from_repository(FILE, "here", config)) if config is not None else None
    event("read" if opened is not None else "refused")
    if opened is None:
        return
    assert numbers is THEIRS and len(set(opened.classifier.class_names)) == 2
    (seen,) = opened.classifier.predict([np.zeros((40, 30), np.uint8)])
    assert sum(seen.probabilities) == pytest.approx(1, abs=1e-3)
    encode(opened.classifier.network.state_dict(), make_metadata(opened.classifier))  # as a pull writes it
