"""Writes the model card: YAML header and text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from finetune.checkpoint.format import Metadata
from finetune.errors import HubRefusal, SettingError
from finetune.hub.repo_id import CARD, CONFIG, PREFIX, RECIPE, REPORT, WEIGHTS
from finetune.models.spec import TIMM
from finetune.report.rows import OWN_ROWS, row_of
from finetune.text import name_hint

LICENCES = (
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0"),
    *("isc", "unlicense", "zlib", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0"),
    *("cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "openrail", "bigscience-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0"),
    *("ecl-2.0", "epl-2.0", "eupl-1.1", "ms-pl", "odbl", "odc-by", "ofl-1.1", "osl-3.0", "pddl", "postgresql", "wtfpl"),
    *("other", "unknown"),
)
"""Identifiers that the Hub knows, without those of single companies' models."""

# The data sets that the Hub itself has, under the names of their own people there; a card links no others.
_DATASETS = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}
_RELATION = "finetune"
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MAX_CLASSES = 60  # named in the text; config.json has them all
_PARTS = {"train": "learn from", "validation": "validate", "test": "test"}
_FILES = {
    WEIGHTS: "the weights, and under the metadata key `finetune` all that is known of them",
    CONFIG: "architecture, classes and input, for programs",
    RECIPE: "the recipe that made them, with every default filled in",
    REPORT: "results per class, confusion, history of the training",
    CARD: "this page",
}


@dataclass(frozen=True)
class BaseModel:
    """The model on the Hub that the weights were trained from, its commit where known, and whether timm named it."""

    id: str
    commit: str | None = None
    through_timm: bool = False


@dataclass(frozen=True)
class DataFacts:
    """What a card says of the data. `name` is the registered name or a folder's; `licence` and `source` free text."""

    name: str
    title: str
    licence: str | None = None
    source: str | None = None
    is_public: bool = False


@dataclass(frozen=True)
class CardFacts:
    """All that goes into a card. `verdicts` are sentences on the results; `licence` is an identifier of the Hub."""

    repo: str
    metadata: Metadata
    data: DataFacts
    base: BaseModel | None
    licence: str
    verdicts: Sequence[str] = ()


def find_base_model(metadata: Metadata, published: Mapping[str, Any] | None = None) -> BaseModel | None:
    """The nearest ancestor that came from the Hub or timm, out of a checkpoint's lineage.

    `published` is what timm publishes of the network, asked of timm where it is None and needed.
    """
    for parent in metadata.lineage:
        named = parent.get("id")
        if not isinstance(named, str):
            continue
        if named.startswith(PREFIX):
            repo, _, commit = named.removeprefix(PREFIX).partition("@")
            return BaseModel(repo, commit or None)
        if named.startswith("timm:"):
            name = TIMM + named.removeprefix("timm:")
            if published is None or name != metadata.model:
                from finetune.models.timm.names import published_settings

                published = published_settings(name)
            return BaseModel(str(published.get("hub") or name), through_timm=True)
    return None


def check_licence(given: str) -> str:
    """The identifier in lower case. SettingError with near ones when the Hub does not know it."""
    if given.lower() not in LICENCES:
        raise SettingError(
            f"--license {given}: not one of the Hub's identifiers{name_hint(given, LICENCES, 'licences')}"
        )
    return given.lower()


def card_header(facts: CardFacts) -> str:
    """The YAML block at the top of README.md, with its fences."""
    from huggingface_hub import ModelCardData

    is_timm = facts.metadata.model.startswith(TIMM)
    results = _eval_results(facts)
    data = ModelCardData(
        library_name="timm" if is_timm else "finetune",
        pipeline_tag="image-classification",
        tags=["finetune", "image-classification", "safetensors", *(["timm", "transformers"] if is_timm else [])],
        license=facts.licence,
        datasets=[_DATASETS[facts.data.name]] if facts.data.is_public and facts.data.name in _DATASETS else None,
        metrics=["accuracy"] if results else None,
        base_model=facts.base.id if facts.base else None,
        base_model_relation=_RELATION if facts.base else None,
        model_name=facts.repo.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _eval_results(facts: CardFacts) -> list[Any]:
    """The result of these weights themselves: `after` of an adapt, `test` of a pretrain."""
    from huggingface_hub import EvalResult

    results = [facts.metadata.results.get(key) for key in OWN_ROWS]
    accuracies = [r["accuracy"] for r in results if isinstance(r, Mapping) and isinstance(r.get("accuracy"), float)]
    kind = facts.data.name if facts.data.is_public else "imagefolder"
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_DATASETS.get(kind, kind),
            dataset_name=facts.data.title,
            dataset_split="test" if facts.metadata.data.get("folds") is None else "cross-validation",
            metric_type="accuracy",
            metric_value=accuracy,
            metric_name="Accuracy",
        )
        for accuracy in accuracies[:1]
    ]


def check_card_here(card: str) -> None:
    """HubRefusal unless the card's metadata follows the Hub's rules, as far as they can be checked offline."""
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise HubRefusal(f"the model card does not hold: its metadata cannot be read ({error})") from None
    problems = [
        f"{key}: {read.get(key)!r}"
        for key, holds in {
            "library_name": read.get("library_name") in ("finetune", "timm"),
            "pipeline_tag": read.get("pipeline_tag") == "image-classification",
            "license": read.get("license") in LICENCES,
            "tags": _texts(read.get("tags")),
            "datasets": "datasets" not in read or _texts(read["datasets"]),
            "metrics": "metrics" not in read or _texts(read["metrics"]),
            "base_model": "base_model" not in read or _REPO.fullmatch(str(read["base_model"])) is not None,
            "base_model_relation": ("base_model" in read) == (read.get("base_model_relation") == _RELATION),
            "model-index": "model-index" not in read or isinstance(read["model-index"][0].get("name"), str),
        }.items()
        if not holds
    ]
    if problems:
        raise HubRefusal(f"the model card does not hold: {'; '.join(problems)}")


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def model_card(facts: CardFacts) -> str:
    """README.md as text."""
    sections = {
        "Results": _results(facts),
        "How to load it": _loading(facts),
        "Data": _data(facts),
        "Licence": _licence(facts.licence),
        "Limits": _limits(len(facts.metadata.classes)),
        "Files": "\n".join(f"- `{name}`: {what}" for name, what in _FILES.items()),
    }
    blocks = [f"# {plain_text(facts.repo.partition('/')[2])}", _summary(facts)]
    blocks += [f"## {title}\n\n{text}" for title, text in sections.items()]
    return card_header(facts) + "\n" + "\n\n".join(blocks) + "\n"


def _summary(facts: CardFacts) -> str:
    m = facts.metadata
    name = code_span(m.model.removeprefix(TIMM))
    network = f"timm's {name}" if m.model.startswith(TIMM) else f"the network {name} of finetune"
    text = f"An image classifier: {network}, trained on {plain_text(facts.data.title)}, with {len(m.classes)} classes"
    if facts.base is not None:
        text += f", starting from the weights of {code_span(facts.base.id)}"
        text += f" at commit {code_span(facts.base.commit)}" if facts.base.commit else ""
    shown = ", ".join(code_span(c) for c in m.classes[:_MAX_CLASSES])
    more = f" and {len(m.classes) - _MAX_CLASSES} more" if len(m.classes) > _MAX_CLASSES else ""
    shape = f"{m.input.channels}×{m.input.size}×{m.input.size}"
    colour = "grey" if m.input.channels == 1 else "colour"
    return f"{text}.\n\nIt takes {colour} images of {shape} (channels, height, width). Classes: {shown}{more}."


def _results(facts: CardFacts) -> str:
    rows = {key: result for key, result in facts.metadata.results.items() if is_result(result)}
    if not rows:
        return "None are recorded: the weights were saved without a test."
    lines = ["| | right / total | accuracy | 95 % interval |", "|---|---:|---:|---:|"]
    for key, r in rows.items():
        title = f"{row_of(key).title}: {row_of(key).how}".rstrip(": ")
        low, high = (f"{100 * end:.2f}" for end in r["ci95"])
        method = f" ({plain_text(str(r['method']))})" if r.get("method") else ""
        right, accuracy = f"{r['correct']:,} / {r['total']:,}", f"{100 * r['accuracy']:.2f} %"
        lines.append(f"| {plain_text(title)}{method} | {right} | {accuracy} | {low} to {high} |")
    first = next(iter(rows.values()))
    total, groups = first["total"], first.get("groups")
    which = "Wilson intervals" if type(groups) is not int else f"Wilson intervals by their {groups:,} groups"
    about = (
        f"\nOn {total:,} test images of {plain_text(facts.data.title)} that training never saw; {which}, "
        "which cover the choice of test images and not the randomness of training."
    )
    if (folds := facts.metadata.data.get("folds")) is not None:
        about = (
            f"\nCross-validated: each of {total:,} images of {plain_text(facts.data.title)} was tested once, by a "
            f"training on the others of {plain_text(str(folds))} folds; these weights are of one more, on images of "
            "all folds. Intervals are over folds, corrected for images that their trainings share (Nadeau and Bengio)."
        )
    verdicts = [f"- {plain_text(sentence)}" for sentence in facts.verdicts]
    return "\n".join([*lines, about, *([""] if verdicts else []), *verdicts])


_COMMANDS = """\
On the command line, with finetune installed; DATA is a data set's name or a folder of pictures:

```
finetune pull {repo}
finetune predict hub:{repo} image.png
finetune inspect hub:{repo}
finetune adapt --from hub:{repo} --target DATA
```

From Python:

```python
import finetune

classifier = finetune.load("hub:{repo}")
print(classifier.predict(["image.png"])[0].label)
```"""

_WITHOUT_US = """\
The tensors alone, without finetune:

```python
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

tensors = load_file(hf_hub_download("{repo}", "{weights}"))
```"""

_WITH_TIMM = """\
With timm alone, or with transformers:

```python
import timm
from PIL import Image

model = timm.create_model("hf_hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open("image.png").convert("{mode}")
logits = model(transform(image).unsqueeze(0))
print(model.pretrained_cfg["label_names"][int(logits.argmax())])
```

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{repo}")
model = AutoModelForImageClassification.from_pretrained("{repo}")
image = Image.open("image.png").convert("{mode}")
logits = model(**processor(image)).logits
print(model.config.id2label[int(logits.argmax())])
```"""


def _loading(facts: CardFacts) -> str:
    text = f"{_COMMANDS}\n\n{_WITH_TIMM if facts.metadata.model.startswith(TIMM) else _WITHOUT_US}"
    mode = "L" if facts.metadata.input.channels == 1 else "RGB"
    return text.format(repo=facts.repo, mode=mode, weights=WEIGHTS)


def _data(facts: CardFacts) -> str:
    data, parts = facts.data, []
    for part, use in _PARTS.items():
        there = facts.metadata.data.get(part)
        if isinstance(there, dict) and isinstance(there.get("images"), int) and there["images"]:
            parts.append(f"{there['images']:,} images to {use}")
    text = plain_text(data.title) + (f" ({', '.join(parts)})" if parts else "") + "."
    text += f" From {data.source}." if data.source else ""
    return text + (
        f" Its licence: {plain_text(data.licence)}." if data.licence else " Its licence is not known to finetune."
    )


def _licence(licence: str) -> str:
    if licence == "unknown":
        return "None is stated. Ask the owner before you use the weights; those of the data and of the source hold too."
    return f"`{licence}`. The licences of the data and of the source hold beside it."


def _limits(classes: int) -> str:
    return (
        f"- It answers with one of its {classes} classes whatever the image shows; none is for anything else.\n"
        "- The accuracy above is for images like the test images. On other cameras, sizes, crops or populations it can "
        "be much worse; measure on your own with `finetune evaluate`.\n"
        "- One training run with one seed: another seed gives slightly different weights and results.\n"
        "- The data may hold biases of those who gathered and labelled it, and the weights then hold them too."
    )


def is_result(value: Any) -> bool:
    """Whether a value of a checkpoint's results has what a row of the table needs."""
    if not isinstance(value, Mapping):
        return False
    ends = value.get("ci95")
    numbers = [value.get("accuracy"), *(ends if isinstance(ends, list | tuple) and len(ends) == 2 else [None])]
    counts = [value.get("correct"), value.get("total")]
    return all(isinstance(n, int | float) for n in numbers) and all(isinstance(n, int) for n in counts)


def plain_text(text: str) -> str:
    """Text from a checkpoint as Markdown that shows just that: no table, link, heading or HTML of its own."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _one_line(text))


def code_span(text: str) -> str:
    """Text from a checkpoint as Markdown code, in which backslashes would be shown."""
    return f"`{_one_line(text).replace('`', chr(39))}`"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def data_title(name: str) -> str:
    """A folder's or file's own name, for data that is no registered set; its path stays private."""
    return PurePath(name).name or name


def json_text(values: Mapping[str, Any]) -> str:
    """JSON as it is written into the repository: the same values, the same bytes."""
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
