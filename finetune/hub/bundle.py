"""The files of an upload, made from a checkpoint without network access."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from finetune.checkpoint.format import Metadata, read_metadata, read_shapes
from finetune.data.registry import ALIASES, DATASETS
from finetune.errors import CheckpointError, SettingError
from finetune.hub.card_facts import (
    BaseModel,
    CardFacts,
    DataFacts,
    data_title,
    find_base_model,
    is_result,
    network_facts,
)
from finetune.hub.example_images import example_images
from finetune.hub.model_card import LICENCES, check_card_here, model_card, stated_licence
from finetune.hub.repo_id import CARD, CONFIG, RECIPE, REPORT, WEIGHTS, HubName
from finetune.hub.timm_config import make_config, read_published
from finetune.io.sanitize import without_folders
from finetune.paths import data_root
from finetune.recipe.yaml_loader import write_recipe
from finetune.report.comparison import comparison_from, sentences
from finetune.report.report import read_report_beside
from finetune.report.rows import own_row
from finetune.report.tables import percent


@dataclass(frozen=True)
class Bundle:
    """The files to upload, by their names in the repository. `remarks` are for the person who pushes."""

    files: dict[str, bytes | Path]
    headline: str
    remarks: tuple[str, ...]

    @property
    def card(self) -> str:
        content = self.files[CARD]
        assert isinstance(content, bytes)
        return content.decode()


@dataclass(frozen=True)
class Parts:
    """What goes up besides: files by their names in the repository, entries of config.json, sections of the card."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, str] = field(default_factory=dict)


def make_bundle(
    checkpoint: Path, name: HubName, licence: str | None, previous: str | None = None, parts: Parts | None = None
) -> Bundle:
    """Makes all files of a push, and checks the card. The same input gives the same bytes.

    `previous` is the card that is in the repository, in which a person's words stay. CheckpointError where the
    checkpoint cannot be read, HubRefusal where the card does not hold.
    """
    parts = parts or Parts()
    metadata = read_metadata(checkpoint)
    report, remarks = _report(checkpoint, metadata)
    recorded = _recorded(report, metadata.model)
    published = read_published(recorded.get("timm"))
    config = make_config(metadata, read_shapes(checkpoint), published)
    base = find_base_model(metadata, published)
    licence = _choose_licence(licence or (stated_licence(previous) if previous else None), base, config)
    if licence == "unknown":
        remarks.append("no licence is named, so the card says unknown; name one with --license, for example mit")
    folder = _data_folder(metadata)
    if folder is not None and PurePath(folder).is_absolute():
        remarks.append(f"the recipe names the folder {folder}, and goes up with the weights as it is")
    data = _describe_data(metadata)
    examples = example_images(data.name, metadata.classes, data_root(None)) if data.is_public else {}
    titles = {file: title for file, (title, _) in examples.items()}
    facts = CardFacts(
        name.repo, metadata, data, base, licence, report, network_facts(recorded, metadata), _verdicts(report), titles
    )
    card, said = model_card(facts, previous, parts.sections)
    check_card_here(card)
    files: dict[str, bytes | Path] = {file: content for file, (_, content) in examples.items()}
    files |= {
        WEIGHTS: checkpoint,
        CONFIG: json_text({**config, **parts.config}).encode(),
        RECIPE: _recipe(report["recipe"]).encode(),
        REPORT: json_text(report).encode(),
        CARD: card.encode(),
        **parts.files,
    }
    return Bundle(files, headline(metadata), (*remarks, *said))


def _choose_licence(given: str | None, base: BaseModel | None, config: dict[str, Any]) -> str:
    """The given licence, else that of the timm weights it started from; written into timm's settings too."""
    settings = config.get("pretrained_cfg", {})
    timms = settings.get("license") if base is not None and base.through_timm else None
    if isinstance(timms, str) and re.fullmatch(r"[A-Za-z0-9.-]{2,40}", timms):
        timms = timms.lower() if timms.lower() in LICENCES else "other"
    else:
        timms = None
    found = given or timms or "unknown"
    if settings:
        settings["license"] = found
    return found


def headline(metadata: Metadata) -> str:
    """A model in a few words: 'cnn, 10 classes of kmnist, accuracy 93.15 %'."""
    text = f"{metadata.model}, {len(metadata.classes)} classes"
    if isinstance(metadata.data.get("name"), str):
        text += f" of {data_title(metadata.data['name'])}"
    own: Any = metadata.results.get(own_row(metadata.results, metadata.recipe) or "")
    return f"{text}, accuracy {percent(own['accuracy'])}" if is_result(own) else text


def _recipe(recipe: Mapping[str, Any]) -> str:
    """The resolved recipe as YAML, as it was when the weights were made; this version need not know all of it."""
    if not recipe:
        return "# These weights were saved without a recipe.\n"
    return write_recipe({key: recipe[key] for key in ("kind", "model", "data") if key in recipe} | dict(recipe))


def _recorded(report: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """What a report says of the network, if it is this model; empty otherwise."""
    network = report.get("network")
    return network if isinstance(network, Mapping) and network.get("model") == model else {}


def _report(checkpoint: Path, metadata: Metadata) -> tuple[dict[str, Any], list[str]]:
    """The report beside the checkpoint if it is of the same run, else what the checkpoint itself says; and remarks."""
    path = checkpoint.with_suffix(".report.json")
    own = {"kind": metadata.recipe.get("kind"), "recipe": metadata.recipe, "results": metadata.results}
    own |= {"data": metadata.data, "lineage": metadata.lineage}
    try:
        found = read_report_beside(path)
    except SettingError as error:
        cure = "put it right, or move it away: report.json then has what the checkpoint says"
        raise CheckpointError(f"{error}; {cure}") from None
    if found is None:
        return own, [f"{path} is not there; report.json has what the checkpoint says"]
    if found.get("recipe") != metadata.recipe or not _same_results(found.get("results"), metadata.results):
        return own, [f"{path} is of another run than {checkpoint}; report.json has what the checkpoint says"]
    source = found.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        found["source"] = source | {"path": re.split(r"[\\/]", source["path"])[-1]}  # folders here stay private
    public: dict[str, Any] = _without_folders(found)
    return public, []


def _without_folders(value: Any) -> Any:
    """JSON values without the folders of absolute paths, of which older reports have some."""
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return list(map(_without_folders, value)) if isinstance(value, list) else value


def _same_results(report: Any, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a report's results agree with all the numbers of the checkpoint's."""
    theirs = report if isinstance(report, Mapping) else {}
    for key, ours in checkpoint.items():
        other = theirs.get(key)
        if not isinstance(ours, Mapping) or not isinstance(other, Mapping):
            if ours is not None or other is not None:
                return False
        elif any(other.get(k) != v for k, v in ours.items()):
            return False
    return True


def _verdicts(report: Mapping[str, Any]) -> list[str]:
    """The report's comparisons and its retention of the source's data, in sentences."""
    given = report.get("comparisons")
    comparisons = {key: comparison_from(values) for key, values in given.items()} if isinstance(given, Mapping) else {}
    results = report.get("results")
    majority = results.get("majority") if isinstance(results, Mapping) else None
    commonest = majority.get("method") if isinstance(majority, Mapping) else None
    found = sentences(comparisons, commonest if isinstance(commonest, str) else None)
    kept = report.get("retention")
    if isinstance(kept, Mapping) and all(isinstance(kept.get(key), float) for key in ("before", "after")):
        before, after = percent(kept["before"]), percent(kept["after"])
        mixed = f", {percent(kept['interpolated'])} interpolated" if isinstance(kept.get("interpolated"), float) else ""
        found.append(f"on {data_title(str(kept.get('dataset')))} itself: {before} before, {after} after{mixed}")
    return found


def _data_folder(metadata: Metadata) -> str | None:
    """The folder or table that the recipe names, if its data is one: it may be called mnist and be no MNIST."""
    data = metadata.recipe.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    return name if isinstance(name, str) and re.search(r"[\\/]|\.csv$", name, re.IGNORECASE) else None


def _describe_data(metadata: Metadata) -> DataFacts:
    name = metadata.data.get("name")
    if not isinstance(name, str):
        return DataFacts("unknown", "data that the checkpoint does not name")
    row = DATASETS.get(ALIASES.get(name, name)) if _data_folder(metadata) is None else None
    if row is None:
        return DataFacts(data_title(name), data_title(name))
    return DataFacts(row.name, row.title, row.licence, row.source, is_public=True)


def json_text(values: Mapping[str, Any]) -> str:
    """JSON as it is written into the repository: the same values, the same bytes."""
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
