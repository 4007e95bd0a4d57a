"""What transformers.js and optimum read in a repository: onnx/model.onnx, and settings in the words they know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.checkpoint.format import Metadata
from finetune.hub.bundle import Parts, json_text
from finetune.hub.repo_id import ONNX_FOLDER, PREPROCESSOR
from finetune.models.spec import InputSpec

ONNX_MODEL, ONNX_INPUT = f"{ONNX_FOLDER}model.onnx", f"{ONNX_FOLDER}picture_input.onnx"
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers

_SECTION = """
## In JavaScript and with onnxruntime

`onnx/model.onnx` is the network: `pixel_values` (float32, N×{channels}×{size}×{size}, normalized) to `logits`.
`onnx/picture_input.onnx` makes its input of decoded pictures (uint8, N×H×W×3, red, green, blue, of any size): it
resizes, cuts and normalizes as in training. {proof} With `npm install @huggingface/transformers`:

```js
import {{ AutoModel, ImageClassificationPipeline, Tensor }} from '@huggingface/transformers';

const load = (name) => AutoModel.from_pretrained('{repo}', {{ dtype: 'fp32', model_file_name: name }});
const [model, input] = [await load('model'), await load('picture_input')];
const processor = async ([image]) => {{
  const {{ data, height, width }} = image.rgb();
  return input({{ pictures: new Tensor('uint8', data, [1, height, width, 3]) }});
}};
const classify = new ImageClassificationPipeline({{ task: 'image-classification', model, processor }});
console.log(await classify('picture.jpg'));
```

The library's own resizing is another one than Python's, so `preprocessor_config.json` alone gives nearly these answers.
"""


def onnx_bundle(metadata: Metadata, repo: str, files: Mapping[str, bytes], proof: str) -> Parts:
    """What an upload with ONNX files has besides: settings for transformers.js, and a section of the card on them.

    files: by their names in the repository. proof: a sentence on what they were proven on. config.json gets the labels
    as transformers.js reads them; what timm and transformers read stays.
    """
    given = metadata.input
    mean, std = tuple(given.mean), tuple(given.std)
    spec = InputSpec(given.channels, given.size, mean, std, given.interpolation, given.crop, given.resize)
    settings = json_text(preprocessor_config(spec)).encode()
    section = _SECTION.format(repo=repo, channels=spec.channels, size=spec.size, proof=proof).strip()
    labels = {"id2label": {str(index): name for index, name in enumerate(metadata.classes)}}
    return Parts({**files, PREPROCESSOR: settings}, labels, {"javascript": section})


def preprocessor_config(spec: InputSpec) -> dict[str, Any]:
    """How a picture becomes the input, as transformers.js reads it.

    Without a type, so that transformers of Python goes on to what config.json says for timm.
    """
    side: dict[str, int] = {"height": spec.working, "width": spec.working}
    return {
        "do_resize": True,
        "size": side if spec.resize == "squash" else {"shortest_edge": spec.working},
        "resample": _RESAMPLE[spec.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": spec.size, "width": spec.size},
        "do_convert_rgb": spec.channels == 3,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
