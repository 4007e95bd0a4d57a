"""`push --with onnx`: the files that JavaScript and others look for, which answer as the checkpoint does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hub_home import loopback, make_checkpoint
from PIL import Image
from tiny import refused

import finetune
from finetune.hub.javascript import preprocessor_config
from finetune.models.spec import InputSpec

CLIENT = os.environ.get("TRANSFORMERS_JS", "")  # a folder with node_modules/@huggingface/transformers
PICTURES = os.environ.get("TRANSFORMERS_JS_PICTURES", "")  # a folder of pictures to compare labels on


def test_settings_are_in_the_words_of_transformers():
    whole = InputSpec(1, 28, (0.1,), (0.3,))
    cut = InputSpec(3, 224, (0.5,) * 3, (0.2,) * 3, "bicubic", 0.875, "shorter_side")
    found = preprocessor_config(whole)
    assert (found["size"], found["resample"], found["do_convert_rgb"]) == ({"height": 28, "width": 28}, 2, False)
    found = preprocessor_config(cut)
    assert (found["size"], found["resample"], found["do_convert_rgb"]) == ({"shortest_edge": 256}, 3, True)
    assert found["crop_size"] == {"height": 224, "width": 224} and found["image_mean"] == [0.5] * 3


def test_data_without_onnx_is_a_mistake(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "net.safetensors")
    assert "--with onnx" in refused("push", checkpoint, "ada/net", "--dry-run", "--data", "kmnist-sample")


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A Hub with a checkpoint that was pushed twice with its ONNX files, and the pushes."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with loopback(tmp_path_factory.mktemp("hub-onnx")) as hub:
        make_checkpoint(hub.work / "net.safetensors")
        words = ("push", "net.safetensors", "ada/net", "--license", "mit", "--with", "onnx", "--data", "kmnist-sample")
        yield hub, [hub.worked(*words, patient=True) for _ in range(2)]


@pytest.mark.slow
def test_both_parts_go_up_once_and_give_the_checkpoints_logits(pushed):
    import onnxruntime

    hub, (_, again) = pushed
    assert "no new commit" in again.out
    files = hub.files("ada/net")
    parts = {"onnx/model.onnx", "onnx/picture_input.onnx", "preprocessor_config.json"}
    assert parts < files.keys()
    config = json.loads(files["config.json"])
    classifier = finetune.load(hub.work / "net.safetensors")
    assert list(config["id2label"].values()) == list(classifier.class_names)
    prepare, network = (
        onnxruntime.InferenceSession(files[f"onnx/{name}.onnx"], providers=["CPUExecutionProvider"])
        for name in ("picture_input", "model")
    )
    pixels = np.random.default_rng(0).integers(0, 256, (40, 31, 3)).astype(np.uint8)
    (logits,) = network.run(["logits"], {"pixel_values": prepare.run(None, {"pictures": pixels[None]})[0]})
    ours = classifier(classifier.preprocess(Image.fromarray(pixels))[None]).detach().numpy()
    assert np.abs(logits - ours).max() < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("node") or not CLIENT, reason="needs node, and TRANSFORMERS_JS to name its package"
)
def test_the_cards_javascript_names_the_same_labels(pushed, tmp_path):
    """The script of the card, as it stands there, against the loopback Hub."""
    hub, _ = pushed
    [script] = re.findall(r"```js\n(.+?)```", hub.files("ada/net")["README.md"].decode(), re.DOTALL)
    pictures = sorted(Path(PICTURES).rglob("*.jp*g")) if PICTURES else drawn(tmp_path / "pictures")
    before = (
        "import { env } from '@huggingface/transformers';\n"
        f"env.remoteHost = '{hub.endpoint}/'; env.allowLocalModels = false; env.cacheDir = '{tmp_path}/cache/';\n"
    )
    after = """for (const file of process.argv.slice(2)) {
      console.log(JSON.stringify((await classify(file, { top_k: 1 }))[0]));
    }"""
    (tmp_path / "classify.mjs").write_text(
        before + script.replace("console.log(await classify('picture.jpg'));\n", after)
    )
    (tmp_path / "node_modules").symlink_to(Path(CLIENT, "node_modules").resolve())
    words = ["node", "classify.mjs", *map(str, pictures)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = [json.loads(line)["label"] for line in done.stdout.splitlines() if line.startswith("{")]
    ours = finetune.load(hub.work / "net.safetensors").predict(pictures)
    assert theirs == [prediction.label for prediction in ours] and len(theirs) == len(pictures) > 0


def drawn(folder: Path) -> list[Path]:
    folder.mkdir()
    rng, paths = np.random.default_rng(0), [folder / f"{index}.png" for index in range(20)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (*rng.integers(20, 90, 2), 3)).astype(np.uint8)).save(path)
    return paths
