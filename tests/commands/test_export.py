"""`finetune export`: files that answer as their checkpoint, and are not there where they do not."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import files_under, refused, worked

import finetune
from finetune.checkpoint.confidence import Confidence, Novelty
from finetune.checkpoint.format import write_checkpoint
from finetune.errors import ExportError
from finetune.exports.facts import ExportFacts
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model, find_model
from finetune.sources.resolve import open_source
from finetune.sources.save import make_metadata
from finetune.train.novelty import reference_layer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = ("ants", "bees")
NETWORKS = ("cnn", "timm/test_resnet", "timm/mobilenetv3_small_050", "timm/test_vit", "timm/convnext_atto")


def make_checkpoint(path, model="cnn"):
    """A network with random weights that knows two classes; its logits are spread, so that decisions differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model(model, len(CLASSES), {})
        torch.nn.init.normal_(network.head.weight, std=0.5)
    write_checkpoint(
        path, network.state_dict(), make_metadata(Classifier(network, model, {}, CLASSES, find_model(model).input))
    )
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, and pictures of many sizes, grey and colourful, to learn from and to test on."""
    folder, rng = tmp_path_factory.mktemp("export"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label in CLASSES:
            inside = folder / "pictures" / split / label
            inside.mkdir(parents=True)
            for index in range(count):
                height, width = rng.integers(20, 60, 2)
                pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
                Image.fromarray(pixels if index else pixels[..., 0]).save(inside / f"{index}.png")
    make_checkpoint(folder / "net.safetensors")
    return folder


@pytest.fixture(scope="module")
def raw(place):
    """The cnn as an ONNX file of tensors, made once."""
    words = ("--to", "onnx", "--raw", "--data", place / "pictures", "--out", place / "raw.onnx")
    return worked("export", place / "net.safetensors", *words)


def test_a_file_of_tensors_says_what_it_is_and_was_proven_on(place, raw):
    report = json.loads((place / "raw.export.json").read_text(encoding="utf-8"))
    proof = report["proof"]
    assert proof["holds"] and proof["pictures"] == 6 and 0 <= proof["largest_difference"] <= 1e-4
    assert report["file"]["bytes"] == (place / "raw.onnx").stat().st_size and report["part"] == "test"
    assert report["file"]["latency"]["ratio"] > 0 and report["takes"] == "tensors"
    assert "proven on 6 pictures of pictures (test)" in raw.out and "one picture" in raw.out
    session = onnxruntime.InferenceSession(place / "raw.onnx", providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    assert json.loads(texts["labels"]) == list(CLASSES) and texts["input"].startswith("pixel_values: float32")
    assert session.get_inputs()[0].shape == ["batch", 1, 28, 28]
    classifier = finetune.load(place / "net.safetensors")
    for count in (1, 5):
        inputs = torch.randn(count, 1, 28, 28)
        (logits,) = session.run(["logits"], {"pixel_values": inputs.numpy()})
        assert np.abs(logits - classifier(inputs).detach().numpy()).max() < 1e-4
    content = (place / "raw.onnx").read_bytes()
    assert str(finetune.__path__[0]).encode() not in content and b"site-packages" not in content


def test_evaluate_runs_it_as_it_runs_the_checkpoint(place, raw):
    shown = [
        worked("evaluate", place / name, "--data", place / "pictures", "--json").json
        for name in ("net.safetensors", "raw.onnx")
    ]
    assert shown[0].keys() == shown[1].keys()
    for key in ("accuracy", "confusion", "classes", "part", "data"):
        assert shown[0][key] == shown[1][key]
    assert shown[1]["checkpoint"].endswith("raw.onnx")


def test_evaluate_says_what_the_confidence_of_an_exported_file_is_worth(place, raw, tmp_path):
    model = onnx.load(place / "raw.onnx")
    (entry,) = (own for own in model.metadata_props if own.key == "finetune")
    values = json.loads(entry.value)
    novelty = Novelty(layers=[reference_layer(3, torch.ones(1, 128))], threshold=1.0, share=0.01, images=50)
    record = Confidence(temperature=0.02, images=50, how="data", novelty=novelty)
    entry.value = json.dumps(values | {"checkpoint": values["checkpoint"] | {"confidence": record.model_dump()}})
    onnx.save(model, tmp_path / "sure.onnx")
    found = finetune.evaluate(tmp_path / "sure.onnx", place / "pictures")
    assert found.confidence.after["log_loss"].value > found.confidence.before["log_loss"].value, "wrong, and surer"
    assert found.confidence.novelty.test is None and "an exported file gives no features" in found.confidence.notes[0]


def test_a_file_that_answers_otherwise_is_not_kept(place, raw, monkeypatch, tmp_path):
    from finetune.exports import onnx_file

    model = onnx.load(place / "raw.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias"))
    values = onnx.numpy_helper.to_array(bias) + np.array([0, 1e-3], np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    monkeypatch.setattr(onnx_file, "network_model", lambda network, facts: model)
    words = ("--to", "onnx", "--raw", "--data", place / "pictures", "--out", tmp_path / "net.onnx")
    said = refused("export", place / "net.safetensors", *words, code=1)
    assert "does not answer as the checkpoint does, so it is not kept" in said and "0.001" in said
    assert files_under(tmp_path) == set()


def test_nothing_is_written_unproven(place, tmp_path):
    said = refused("export", place / "net.safetensors", "--to", "onnx", "--out", tmp_path / "net.onnx")
    assert "kept only if it is proven on real pictures; give some with --data" in said
    assert "--data" in refused("export", place / "net.safetensors", "--to", "onnx", "--data", tmp_path / "nowhere/")
    assert files_under(tmp_path) == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "torch-export", "--int8"), "--int8 goes with --to onnx"),
        (("--to", "onnx", "--out", "net.pt2"), "expected a file name that ends in .onnx"),
        (("--to", "onnx", "--out", "/proc/none/net.onnx"), "name another place with --out"),
    ],
)
def test_what_cannot_be_is_said_first(place, words, said):
    assert said in refused("export", place / "net.safetensors", *words)


def test_without_the_extra_the_command_that_installs_it_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "finetune-images[onnx]" in refused("export", place / "net.safetensors", "--to", "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "finetune-images[onnx]" in refused("evaluate", place / "any.onnx", "--data", place / "pictures")


def test_evaluate_refuses_other_files(place, raw, tmp_path):
    helper = onnx.helper
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", ends[:1], ends[1:])
    other = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(other, tmp_path / "other.onnx")
    (tmp_path / "torn.onnx").write_bytes((place / "raw.onnx").read_bytes()[:1000])
    (tmp_path / "net.pt2").write_bytes(b"PK")
    expected = {
        "other.onnx": "without finetune's metadata",
        "torn.onnx": "onnxruntime cannot open it",
        "net.pt2": "found a torch.export program",
        "missing.onnx": "cannot be read",
    }
    for name, said in expected.items():
        assert said in refused("evaluate", tmp_path / name, "--data", place / "pictures"), name
    assert "--html" in refused("evaluate", place / "raw.onnx", "--data", place / "pictures", "--html")
    assert "--device" in refused("evaluate", place / "raw.onnx", "--data", place / "pictures", "--device", "cuda")


def test_a_network_that_cannot_be_traced_is_named(place):
    from finetune.exports import onnx_file, torch_file

    class Choosy(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    source = open_source(place / "net.safetensors")
    facts = ExportFacts(source.metadata, "tensors", source.sha256)
    for make in (onnx_file.network_model, torch_file.encode):
        with pytest.raises(ExportError, match="cnn: cannot be exported"):
            make(Choosy(), facts)


@pytest.mark.slow
@pytest.mark.parametrize("model", NETWORKS)
def test_every_kind_of_network_takes_pictures_and_answers_the_same(place, tmp_path, model):
    checkpoint = make_checkpoint(tmp_path / "net.safetensors", model)
    found = finetune.export_checkpoint(checkpoint, int8=True, data=str(place / "pictures"))
    assert found.proof.holds and found.proof.pictures == 6 and found.int8.file.bytes < found.file.bytes
    assert files_under(tmp_path) == {"net.safetensors", "net.onnx", "net.int8.onnx", "net.export.json"}
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 50, 41, 3)).astype(np.uint8)
    (logits,) = session.run(None, {"pictures": pixels})
    classifier = finetune.load(checkpoint)
    ours = classifier(torch.stack([classifier.preprocess(picture) for picture in pixels])).detach().numpy()
    assert np.abs(logits - ours).max() < 1e-4
    for file in ("net.onnx", "net.int8.onnx"):
        worked("evaluate", tmp_path / file, "--data", place / "pictures")
    again = finetune.export_checkpoint(checkpoint, data=str(place / "pictures"), out=tmp_path / "again.onnx")
    assert again.file.sha256 == found.file.sha256


@pytest.mark.slow
def test_a_program_of_torch_export_has_its_labels_beside_it(place, tmp_path):
    found = finetune.export_checkpoint(
        place / "net.safetensors", to="torch-export", data=str(place / "pictures"), out=tmp_path / "net.pt2"
    )
    extra = {"labels.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    assert found.proof.holds and json.loads(extra["labels.json"]) == list(CLASSES)
    assert program.module()(torch.zeros(3, 9, 30, 3, dtype=torch.uint8)).shape == (3, 2)
