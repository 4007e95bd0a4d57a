"""The files of an upload, made from a checkpoint without network access."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from finetune.checkpoint.format import Metadata, read_metadata, read_shapes
from finetune.data.registry import ALIASES, DATASETS
from finetune.errors import CheckpointError, RecipeError
from finetune.hub.model_card import (
    LICENCES,
    BaseModel,
    CardFacts,
    DataFacts,
    check_card_here,
    data_title,
    find_base_model,
    is_result,
    json_text,
    model_card,
    timm_licence,
)
from finetune.hub.repo_id import CARD, CONFIG, RECIPE, REPORT, WEIGHTS, HubName
from finetune.hub.timm_config import make_config
from finetune.io.safe_open import read_regular
from finetune.recipe.load import check_recipe, dump_recipe
from finetune.report.comparison import Comparison, sentence
from finetune.report.report import MAX_REPORT_BYTES
from finetune.report.tables import percent

NO_RECIPE = "# These weights were saved without a recipe.\n"


@dataclass(frozen=True)
class Bundle:
    """What goes up: names in the repository and contents. `remarks` are for the person who pushes."""

    metadata: Metadata
    files: dict[str, bytes | Path]
    headline: str
    remarks: tuple[str, ...]

    @property
    def card(self) -> str:
        content = self.files[CARD]
        assert isinstance(content, bytes)
        return content.decode()


def make_bundle(checkpoint: Path, name: HubName, licence: str | None) -> Bundle:
    """All files of a push, the card checked against the rules that are known here. The same input, the same bytes.

    CheckpointError when the checkpoint cannot be read, HubRefusal when the card does not hold.
    """
    metadata = read_metadata(checkpoint)
    config = make_config(metadata, read_shapes(checkpoint))
    report, remarks = _report(checkpoint, metadata)
    base = find_base_model(metadata.lineage)
    licence = _licence(licence, base, config)
    if licence == "unknown":
        remarks.append("no licence is named, so the card says unknown; name one with --license, for example mit")
    folder = _folder(metadata)
    if folder is not None and PurePath(folder).is_absolute():
        remarks.append(f"the recipe names the folder {folder}, and goes up with the weights as it is")
    verdicts = _verdicts(report)
    card = model_card(CardFacts(name.repo, metadata, _data(metadata), base, licence, verdicts))
    check_card_here(card)
    files: dict[str, bytes | Path] = {
        WEIGHTS: checkpoint,
        CONFIG: json_text(config).encode(),
        RECIPE: _recipe(metadata).encode(),
        REPORT: json_text(report).encode(),
        CARD: card.encode(),
    }
    return Bundle(metadata, files, headline(metadata), tuple(remarks))


def _licence(given: str | None, base: BaseModel | None, config: dict[str, Any]) -> str:
    """The licence that was named, else that of the timm weights it started from; written into timm's settings too."""
    settings = config.get("pretrained_cfg", {})
    timms = timm_licence(settings) if base is not None and base.through_timm else None
    found = given or (timms if timms is None or timms in LICENCES else "other") or "unknown"
    if settings:
        settings["license"] = found
    return found


def headline(metadata: Metadata) -> str:
    """A model in a few words: 'cnn, 10 classes of kmnist, accuracy 93.15 %'."""
    text = f"{metadata.model}, {len(metadata.classes)} classes"
    if isinstance(metadata.data.get("name"), str):
        text += f" of {data_title(metadata.data['name'])}"
    for key in ("after", "test"):
        if is_result(metadata.results.get(key)):
            return f"{text}, accuracy {percent(metadata.results[key]['accuracy'])}"
    return text


def _recipe(metadata: Metadata) -> str:
    """The resolved recipe as YAML; JSON, which is YAML too, where this version does not know all of it."""
    if not metadata.recipe:
        return NO_RECIPE
    try:
        return dump_recipe(check_recipe(metadata.recipe))
    except RecipeError:
        return json_text(metadata.recipe)


def _report(checkpoint: Path, metadata: Metadata) -> tuple[dict[str, Any], list[str]]:
    """The report that lies beside the checkpoint if it is of the same run; else what the checkpoint itself says."""
    path = checkpoint.with_suffix(".report.json")
    own = {"kind": metadata.recipe.get("kind"), "recipe": metadata.recipe, "results": metadata.results}
    own |= {"data": metadata.data, "lineage": metadata.lineage}
    if not path.exists():
        return own, [f"{path} is not there; report.json has what the checkpoint says"]
    try:
        found = json.loads(read_regular(path, MAX_REPORT_BYTES))
        same = isinstance(found, dict) and found.get("recipe") == metadata.recipe and _same_results(found, metadata)
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        raise CheckpointError(f"{path}: not the JSON of a report; move it away, and report.json is made anew") from None
    if not same:
        return own, [f"{path} is of another run than {checkpoint}; report.json has what the checkpoint says"]
    source = found.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        found["source"] = source | {
            "path": re.split(r"[\\/]", source["path"])[-1]
        }  # folders here are nobody's business
    return found, []


def _same_results(report: Mapping[str, Any], metadata: Metadata) -> bool:
    results = report.get("results") or {}
    for key, ours in metadata.results.items():
        theirs = results.get(key)
        if ours is None or theirs is None:
            if ours is not theirs:
                return False
        elif any(theirs.get(k) != v for k, v in ours.items()):
            return False
    return True


def _verdicts(report: Mapping[str, Any]) -> list[str]:
    """The report's comparisons in words, and what was forgotten."""
    found = []
    comparisons = report.get("comparisons")
    for key, values in comparisons.items() if isinstance(comparisons, Mapping) else ():
        of, _, against = key.partition("_vs_")
        if values is not None and against:
            try:
                comparison = Comparison(**{**values, "ci95": tuple(values["ci95"])})
                found.append(sentence(comparison, of, against))
            except (TypeError, KeyError, ValueError):
                continue
    kept = report.get("retention")
    if isinstance(kept, Mapping) and all(isinstance(kept.get(key), float) for key in ("before", "after")):
        before, after = percent(kept["before"]), percent(kept["after"])
        found.append(f"on {data_title(str(kept.get('dataset')))} itself: {before} before, {after} after")
    return found


def _folder(metadata: Metadata) -> str | None:
    """The folder or table that the recipe names, if its data is one: it may be called mnist and be no MNIST."""
    data = metadata.recipe.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    return name if isinstance(name, str) and re.search(r"[\\/]|\.csv$", name, re.IGNORECASE) else None


def _data(metadata: Metadata) -> DataFacts:
    name = metadata.data.get("name")
    if not isinstance(name, str):
        return DataFacts("unknown", "data that the checkpoint does not name")
    row = DATASETS.get(ALIASES.get(name, name)) if _folder(metadata) is None else None
    if row is None:
        return DataFacts(data_title(name), data_title(name))
    return DataFacts(row.name, row.title, row.licence, row.source, is_public=True)
