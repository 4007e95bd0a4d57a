"""The pictures of a report's page."""

import pytest
import torch
from tiny import ROOT, drawn

from finetune.run.page_pictures import PICTURE_SIDE, heated_pictures, picture_file
from finetune.sources.resolve import locate, open_source


def test_heatmaps_do_not_hang_on_the_memory_layout_that_training_left():
    pytest.importorskip("captum")
    images = torch.from_numpy(drawn("mnist", 40, "test")[0])[:, None]
    answered = {f"{k}.png": str(k % 10) for k in range(40)}
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        classifier = open_source(locate(ROOT / "checkpoints" / "mnist.safetensors")).classifier
        classifier.network.train().to(memory_format=layout)
        found.append(heated_pictures(classifier, images, answered))
    assert found[0] == found[1] and "Grad-CAM after conv2" in found[0][1][0]
    assert all(picture.heatmap for picture in found[0][0].values())


def test_a_large_picture_is_made_small():
    wide = torch.randint(0, 256, (3, 300, 900), dtype=torch.uint8)
    assert len(picture_file(wide)) < 3 * PICTURE_SIDE**2 and picture_file(wide) == picture_file(wide)
