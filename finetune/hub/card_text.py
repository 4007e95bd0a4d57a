"""Writes the sections of a model card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.hub.card_facts import CardFacts, data_title
from finetune.hub.card_marks import unmarked
from finetune.hub.repo_id import CARD, CONFIG, EXAMPLES, PREFIX, RECIPE, REPORT, WEIGHTS
from finetune.models.spec import TIMM
from finetune.report.confidence import ConfidenceSummary, confidence_lines
from finetune.report.metrics import METRICS
from finetune.report.rows import row_of
from finetune.report.statistics import Confusion
from finetune.report.tables import confusion_lines, metric_text, percent
from finetune.text import DISTRIBUTION, listed

_MAX_CLASSES = 60  # named in the text; config.json has them all
_MAX_WORST = 20  # classes in the table, where there are more than _MAX_CLASSES
_PARTS = {"train": "learn from", "validation": "validate", "test": "test"}
_FILES = {
    WEIGHTS: "the weights, and under the metadata key `finetune` all that is known of them",
    CONFIG: "architecture, classes and input, for programs",
    RECIPE: "the recipe that made them, with every default filled in",
    REPORT: "results per class, confusion, history of the training",
    CARD: "this page",
}


def card_sections(facts: CardFacts) -> dict[str, str]:
    """The card's sections in their order, by the names in their marks."""
    return {
        "summary": f"# {plain_text(facts.repo.partition('/')[2])}\n\n{_summary(facts)}",
        "use": f"## Intended use and limits\n\n{_use(facts)}",
        "loading": f"## How to use it\n\n{_loading(facts)}",
        "results": f"## Results\n\n{_results(facts)}",
        "source": f"## What the weights came from\n\n{_source(facts)}",
        "training": f"## Training\n\n{_training(facts)}",
        "network": f"## Network and input\n\n{_network(facts)}",
        "data": f"## Data and licences\n\n{_data(facts)}\n\n{_licence(facts.licence)}",
        "citation": f"## Citation\n\n{_citation(facts)}",
        "files": f"## Files\n\n{_files(facts)}",
    }


def _summary(facts: CardFacts) -> str:
    m = facts.metadata
    name = code_span(m.model.removeprefix(TIMM))
    network = f"timm's {name}" if facts.is_timm else f"the network {name} of finetune"
    text = f"An image classifier: {network}, trained on {_called(facts)}, with {len(m.classes)} classes"
    if facts.base is not None:
        text += f", starting from the weights of {code_span(facts.base.id)}"
        text += f" at commit {code_span(facts.base.commit)}" if facts.base.commit else ""
    own = facts.own_result
    if own is not None:
        low, high = (f"{100 * end:.2f}" for end in own["ci95"])
        text += f". It names {percent(own['accuracy'])} of the test images rightly (95 % interval {low} to {high})"
    shown = ", ".join(code_span(c) for c in m.classes[:_MAX_CLASSES])
    more = f" and {len(m.classes) - _MAX_CLASSES} more" if len(m.classes) > _MAX_CLASSES else ""
    return f"{text}.\n\nClasses: {shown}{more}."


def _called(facts: CardFacts) -> str:
    title = plain_text(facts.data.title)
    return title if facts.data.is_public or facts.data.name == "unknown" else f"a data set called {title}"


def _use(facts: CardFacts) -> str:
    seeds = _seeds(facts)
    trainings = f"the weights are of the first of {len(seeds)} trainings" if len(seeds) > 1 else "one training run"
    return (
        f"For telling images like the test images below apart by the {len(facts.metadata.classes)} classes above, and "
        "as a start for fine-tuning on other images. Nobody has tested it for decisions that touch people's health, "
        "safety or rights.\n\n"
        f"- It answers with one of its {len(facts.metadata.classes)} classes whatever the image shows; none is for "
        "anything else.\n"
        "- The accuracy below is for images like the test images. On other cameras, sizes, crops or populations it can "
        "be much worse; measure on your own with `finetune evaluate`.\n"
        f"- {trainings.capitalize()}: another seed gives slightly different weights and results.\n"
        "- The data may hold biases of those who gathered and labelled it, and the weights then hold them too."
    )


# --- results ----------------------------------------------------------------------------------------------------------


def _results(facts: CardFacts) -> str:
    rows = facts.results
    if not rows:
        return "None are recorded: the weights were saved without a test."
    folds, several = facts.metadata.data.get("folds"), any(len(_each(r)) > 1 for r in rows.values())
    counted = f"range over {'folds' if folds is not None else 'seeds'}" if several else "right / total"
    lines = [f"| | how | {counted} | accuracy | 95 % interval |", "|---|---|---:|---:|---:|"]
    for key, r in rows.items():
        row, method = row_of(key), r.get("method")
        how = plain_text(f"{row.how}: {method}" if method else row.how)
        low, high = (f"{100 * end:.2f}" for end in r["ci95"])
        shown = f"{_count_or_range(r)} | {percent(r['accuracy'])} | {low} to {high}"
        lines.append(f"| {plain_text(row.title)} | {how} | {shown} |")
    blocks = ["\n".join(lines), _about_intervals(facts, next(iter(rows.values())))]
    blocks += [block for block in (_metrics(facts.own_result), _confidence(facts.report.get("confidence"))) if block]
    if facts.verdicts:
        blocks.append("\n".join(f"- {plain_text(sentence)}" for sentence in facts.verdicts))
    return "\n\n".join([*blocks, *_per_class(facts)])


def _each(result: Mapping[str, Any]) -> list[float]:
    """The accuracy of each seed or fold."""
    given = result.get("per_fold") or result.get("per_seed") or []
    found = [own.get("accuracy") for own in given if isinstance(own, Mapping)] if isinstance(given, list) else []
    return [accuracy for accuracy in found if isinstance(accuracy, float)]


def _count_or_range(result: Mapping[str, Any]) -> str:
    each = _each(result)
    if len(each) < 2:
        return f"{result['correct']:,} / {result['total']:,}"
    return f"{100 * min(each):.2f} to {100 * max(each):.2f} %"


def _about_intervals(facts: CardFacts, result: Mapping[str, Any]) -> str:
    total, groups = result["total"], result.get("groups")
    if (folds := facts.metadata.data.get("folds")) is not None:
        return (
            f"Cross-validated: each of {total:,} images was tested once, by a training on the others of "
            f"{plain_text(str(folds))} folds; these weights are of one more, on images of all folds. Intervals are "
            "over folds, corrected for images that their trainings share (Nadeau and Bengio)."
        )
    seeds = max(1, len(_seeds(facts)))
    on = f"On {total // seeds:,} test images that training never saw"
    if len(_each(result)) > 1:
        return f"{on}, over {seeds} seeds; intervals are over other trainings and other test images."
    which = "Wilson intervals" if type(groups) is not int else f"Wilson intervals by their {groups:,} groups"
    return f"{on}; {which}, which cover the choice of test images and not the randomness of training."


def _metrics(own: Mapping[str, Any] | None) -> str:
    """Other metrics of these weights, in one line; empty where none are recorded."""
    given = own.get("metrics") if own is not None else None
    if not isinstance(given, Mapping):
        return ""
    values = {key: given[key].get("value") for key in METRICS if isinstance(given.get(key), Mapping)}
    said = [
        f"{METRICS[key].title} {metric_text(key, value)}"
        for key, value in values.items()
        if key != "accuracy" and isinstance(value, float)
    ]
    return f"Other metrics of these weights: {', '.join(said)}." if said else ""


def _confidence(given: object) -> str:
    """What the report says of the weights' confidence; empty where it says nothing that holds."""
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(ConfidenceSummary).validate_python(given)
    except ValidationError:
        return ""
    if found.temperature is None:
        return ""
    lines = [
        *confidence_lines(replace(found, notes=[])),
        "programs that read the logits alone, as timm and transformers do, give probabilities that are not calibrated: "
        "divide the logits by the temperature before the softmax",
    ]
    return "\n".join(["Confidence:", "", *(f"- {plain_text(line)}" for line in lines)])


def _per_class(facts: CardFacts) -> list[str]:
    """The table of classes, worst first where there are too many, and the commonest mistakes."""
    own = facts.own_result or {}
    given = own.get("per_class")
    if not isinstance(given, Mapping):
        return []
    scores = [(name, given[name]) for name in facts.metadata.classes if _is_class_score(given.get(name))]
    if not scores:
        return []
    about = "Per class:"
    if len(scores) > _MAX_CLASSES:
        scores = sorted(scores, key=lambda item: item[1]["accuracy"])[:_MAX_WORST]
        about = f"The {_MAX_WORST} worst classes ([{REPORT}]({REPORT}) has all):"
    lines = ["| class | right / total | accuracy |", "|---|---:|---:|"]
    for name, score in scores:
        shown = f"{score['correct']:,} / {score['total']:,} | {percent(score['accuracy'])}"
        lines.append(f"| {plain_text(name)} | {shown} |")
    mistakes = [plain_text(line) for line in _mistakes(own.get("confusion"), facts.metadata.classes)]
    ending = [f"Most frequent mistakes: {'; '.join(mistakes)}."] if mistakes else []
    return [about, "\n".join(lines), *ending]


def _is_class_score(score: object) -> bool:
    return (
        isinstance(score, Mapping)
        and isinstance(score.get("accuracy"), float)
        and all(type(score.get(key)) is int for key in ("correct", "total"))
    )


def _mistakes(confusion: object, classes: Sequence[str]) -> list[str]:
    """The commonest mistakes in words; none for what is no confusion of these classes, as in a report made by hand."""
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(Confusion).validate_python(confusion, strict=True)
    except ValidationError:
        return []
    return confusion_lines(found, classes) if found.classes == len(classes) else []


# --- where it came from, and how it was made --------------------------------------------------------------------------


def _source(facts: CardFacts) -> str:
    if not facts.metadata.lineage:
        return "No other weights: the training began with random ones."
    lines = [f"{number}. {_parent(facts, parent)}" for number, parent in enumerate(facts.metadata.lineage, 1)]
    return "\n".join(["Nearest first:", "", *lines])


def _parent(facts: CardFacts, parent: Mapping[str, Any]) -> str:
    named, task = str(parent.get("id")), parent.get("task")
    if named.startswith(PREFIX):
        repo, _, commit = named.removeprefix(PREFIX).partition("@")
        text = f"{_link(repo)} on the Hub" + (f", commit {code_span(commit)}" if commit else "")
    elif named.startswith("timm:"):
        text = f"timm's pretrained {code_span(named.removeprefix('timm:'))}"
        if facts.base is not None and facts.base.through_timm:
            text += f", {_link(facts.base.id)} on the Hub"
    elif named.startswith("random:"):
        text = f"random weights of {code_span(named.removeprefix('random:'))}"
    else:
        text = f"the file {code_span(data_title(named))}"
    text += f", trained on {plain_text(data_title(str(task)))}" if isinstance(task, str) else ""
    digest = parent.get("sha256")
    return text + (f"; sha256 {code_span(digest)}" if isinstance(digest, str) else "")


def _link(repo: str) -> str:
    return f"[{plain_text(repo)}](https://huggingface.co/{re.sub(r'[^A-Za-z0-9._/-]', '', repo)})"


def _training(facts: CardFacts) -> str:
    seeds = listed(map(str, _seeds(facts))) or "not recorded"
    versions = ", ".join(f"{name} {text}" for name, text in facts.metadata.versions.items())
    lines = [
        f"- **Data**: {_parts(facts) or 'not recorded'}; {_augmentation(facts.metadata.recipe)}.",
        f"- **Phases**: {'; then '.join(_phases(facts.metadata.recipe)) or 'not recorded'}.",
        f"- **Run**: seed {plain_text(seeds)}{_where(facts.report)}; {plain_text(versions)}.",
    ]
    if facts.metadata.recipe:
        lines += ["", f"[{RECIPE}]({RECIPE}) has every setting, [{REPORT}]({REPORT}) every epoch."]
    return "\n".join(lines)


def _seeds(facts: CardFacts) -> list[int]:
    given = facts.report.get("seeds")
    found = [seed for seed in given if type(seed) is int] if isinstance(given, list) else []
    own = facts.metadata.recipe.get("seed")
    return found or ([own] if type(own) is int else [])


def _parts(facts: CardFacts) -> str:
    parts = []
    for part, use in _PARTS.items():
        there = facts.metadata.data.get(part)
        if isinstance(there, dict) and isinstance(there.get("images"), int) and there["images"]:
            parts.append(f"{there['images']:,} images to {use}")
    return ", ".join(parts)


def _augmentation(recipe: Mapping[str, Any]) -> str:
    data = recipe.get("data")
    given = data.get("augment") if isinstance(data, Mapping) else None
    if not isinstance(given, Mapping):
        return "not augmented"
    on = {key: value for key, value in given.items() if _is_on(value)}
    if "elastic" not in on:
        on.pop("elastic_grid", None)  # of no meaning then
    said = [f"{key} {value:g}" if type(value) is not bool else key for key, value in on.items()]
    return f"augmented by {plain_text(', '.join(said))}" if said else "not augmented"


def _is_on(value: object) -> bool:
    return isinstance(value, int | float) and bool(value)


def _phases(recipe: Mapping[str, Any]) -> list[str]:
    given = recipe.get("phases")
    return [_phase(phase) for phase in given if isinstance(phase, Mapping)] if isinstance(given, list) else []


def _phase(phase: Mapping[str, Any]) -> str:
    """A phase in a few words: 'all layers, 5 epochs, batches of 64, sgd at 0.05, cosine'."""
    train = phase.get("train")
    if train == "all":
        what = "all layers"
    elif isinstance(train, Mapping):
        what = f"the last {train.get('last')} stages"
    else:
        what = f"the {train}" if isinstance(train, str) else " and ".join(map(str, train or ["?"]))
    said = [what]
    if phase.get("solver"):
        return plain_text(f"{what}, solved by {phase['solver']}")
    if phase.get("lora"):
        said.append("by low-rank adapters")
    for key in ("epochs", "steps"):
        if type(count := phase.get(key)) is int:
            said.append(f"{count:,} {key if count != 1 else key[:-1]}")
    said.append(f"batches of {phase.get('batch_size')}")
    optimizer, schedule = phase.get("optimizer"), phase.get("schedule")
    if isinstance(optimizer, Mapping):
        said.append(f"{optimizer.get('name')} with a learning rate of {optimizer.get('lr')}")
    if isinstance(schedule, Mapping):
        said.append(f"{schedule.get('name')} schedule".replace("_", " "))
    return plain_text(", ".join(said))


def _where(report: Mapping[str, Any]) -> str:
    """Device and precision, where the report has them."""
    environment = report.get("environment")
    precision = environment.get("precision") if isinstance(environment, Mapping) else None
    found = [value for value in (report.get("device"), precision) if isinstance(value, str)]
    return f", on {plain_text(' in '.join(found))}" if found else ""


# --- network, data, citation ------------------------------------------------------------------------------------------


def _network(facts: CardFacts) -> str:
    given, network = facts.metadata.input, facts.network
    lines = []
    if network.parameters is not None:
        lines.append(f"| parameters | {network.parameters:,} |")
    if network.multiply_adds is not None:
        lines.append(f"| multiply-adds of one image | {_millions(network.multiply_adds)} |")
    colour = "grey" if given.channels == 1 else "colour (RGB)"
    crop = f"its sides squashed to {given.size} pixels"
    if given.resize == "shorter_side":
        working = int(given.size / given.crop)
        crop = f"its shorter side brought to {working} pixels, and the centre of {given.size}×{given.size} cut out"
    elif given.crop < 1:
        working = int(given.size / given.crop)
        crop = f"its sides squashed to {working} pixels, and the centre of {given.size}×{given.size} cut out"
    lines += [
        f"| input | {given.channels}×{given.size}×{given.size}: channels, height, width |",
        f"| pictures | {colour}; {crop} ({given.interpolation}, crop {given.crop:g}) |",
        f"| mean | {_numbers(given.mean)} of values scaled to 0..1 |",
        f"| deviation | {_numbers(given.std)} |",
    ]
    return "\n".join(["| | |", "|---|---|", *lines])


def _millions(count: int) -> str:
    return f"{count / 1e9:,.2f} G" if count >= 1e9 else f"{count / 1e6:,.1f} M"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _data(facts: CardFacts) -> str:
    data = facts.data
    text = (title := _called(facts))[:1].upper() + title[1:] + (f": {_parts(facts)}" if _parts(facts) else "") + "."
    text += f" From {data.source}." if data.source else ""
    text += f" Its licence: {plain_text(data.licence)}." if data.licence else " Its licence is not known to finetune."
    if facts.examples:
        text += f" The pictures in [{EXAMPLES}]({EXAMPLES}) are from its test images, under that licence."
    return text


def _licence(licence: str) -> str:
    if licence == "unknown":
        return (
            "The licence of these weights: none is stated. Ask the owner before you use them; those of the data and of "
            "the source hold too."
        )
    return f"The licence of these weights: `{licence}`. The licences of the data and of the source hold beside it."


def _citation(facts: CardFacts) -> str:
    version = str(facts.metadata.versions.get("finetune", ""))
    entries = [_FINETUNE.format(version=re.sub(r"[^\w.+-]", "", version))]
    if facts.is_timm:
        entries.append(_TIMM)
    blocks = ["```bibtex\n" + "\n\n".join(entries) + "\n```"]
    if facts.data.source:
        blocks.append(f"And the data: {facts.data.source}")
    return "\n\n".join(blocks)


_FINETUNE = """\
@software{{finetune,
  title   = {{finetune: pretrains and fine-tunes image classifiers}},
  author  = {{{{the finetune founders}}}},
  version = {{{version}}},
  license = {{MIT}}
}}"""

_TIMM = """\
@misc{rw2019timm,
  author = {Ross Wightman},
  title  = {PyTorch Image Models},
  year   = {2019},
  doi    = {10.5281/zenodo.4414861},
  url    = {https://github.com/huggingface/pytorch-image-models}
}"""


def _files(facts: CardFacts) -> str:
    files = _FILES | ({EXAMPLES: "pictures to try it on"} if facts.examples else {})
    return "\n".join(f"- `{name}`: {what}" for name, what in files.items())


# --- loading ----------------------------------------------------------------------------------------------------------

_COMMANDS = """\
On the command line; DATA is a data set's name or a folder of pictures:

```
pip install {distribution}
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

_OWN_FEATURES = """\
Its features, what the last layer sees of a picture:

```python
import torch

import finetune

classifier = finetune.load("hub:{repo}")
with torch.no_grad():
    features = classifier.network.features(classifier.preprocess("image.png").unsqueeze(0))
print(tuple(features.shape))
```"""

_WITHOUT_US = """\
The tensors alone, without finetune:

```python
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

tensors = load_file(hf_hub_download("{repo}", "{weights}"))
```"""

_WITH_TIMM = """\
With timm alone, its features too (what the last layer sees of a picture):

```python
import timm
import torch
from PIL import Image

model = timm.create_model("hf_hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
images = transform(Image.open("image.png").convert("{mode}")).unsqueeze(0)
with torch.no_grad():
    logits = model(images)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
print(model.pretrained_cfg["label_names"][int(logits.argmax())])
```

With transformers:

```python
{grey_import}from transformers import pipeline

classify = pipeline("image-classification", model="{repo}"){grey}
print(classify("image.png")[0]["label"])
```"""

_GREY_PIPELINE = """
# transformers opens every picture in colour, and this network takes grey ones
classify.image_processor.val_transforms.transforms.insert(0, Grayscale())"""


def _loading(facts: CardFacts) -> str:
    grey = facts.metadata.input.channels == 1
    text = "\n\n".join([_COMMANDS, _WITH_TIMM] if facts.is_timm else [_COMMANDS, _OWN_FEATURES, _WITHOUT_US])
    return text.format(
        repo=facts.repo,
        mode="L" if grey else "RGB",
        weights=WEIGHTS,
        distribution=DISTRIBUTION,
        grey_import="from torchvision.transforms import Grayscale\n" if grey else "",
        grey=_GREY_PIPELINE if grey else "",
    )


# --- text from a checkpoint -------------------------------------------------------------------------------------------


def plain_text(text: str) -> str:
    """Text from a checkpoint as Markdown that shows just that: no table, link, heading or HTML of its own."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _one_line(text))


def code_span(text: str) -> str:
    """Text from a checkpoint as Markdown code, in which backslashes would be shown."""
    return f"`{unmarked(_one_line(text).replace('`', chr(39)))}`"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
