"""Writes the model card: its metadata (YAML) and its text, anew or into a card that is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from finetune.errors import HubRefusal, SettingError
from finetune.hub.card_facts import CardFacts
from finetune.hub.card_marks import fresh_body, merge_body, merge_metadata, split_card
from finetune.hub.card_text import card_sections
from finetune.hub.repo_id import EXAMPLES
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
_TAGS = ["finetune", "image-classification", "safetensors"]
_TIMM_TAGS = ["timm", "transformers"]
_RELATION = "finetune"
_RELATIONS = ("finetune", "adapter", "merge", "quantized")
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
# By key of the metadata, whether an entry of its list may be one that a push wrote.
_OURS: dict[str, Callable[[Any], bool]] = {
    "tags": lambda tag: tag in (*_TAGS, *_TIMM_TAGS),
    "datasets": lambda name: name in _DATASETS.values(),
    "metrics": lambda metric: metric == "accuracy",
    "widget": lambda example: isinstance(example, Mapping) and str(example.get("src", "")).startswith(EXAMPLES),
}


def check_licence(given: str) -> str:
    """The identifier in lower case. SettingError with near ones when the Hub does not know it."""
    if given.lower() not in LICENCES:
        raise SettingError(
            f"--license {given}: not one of the Hub's identifiers{name_hint(given, LICENCES, 'licences')}"
        )
    return given.lower()


def stated_licence(card: str) -> str | None:
    """The licence that the metadata of a card names, if it is one that the Hub knows and says something."""
    metadata, _ = split_card(card)
    found = (metadata or {}).get("license")
    return found if isinstance(found, str) and found in LICENCES and found != "unknown" else None


def model_card(
    facts: CardFacts, previous: str | None = None, more: Mapping[str, str] | None = None
) -> tuple[str, list[str]]:
    """README.md as text, and remarks for the person who pushes. A person's words in the `previous` card stay.

    more: further sections, by the names in their marks.
    """
    sections, metadata, remarks = {**card_sections(facts), **(more or {})}, card_metadata(facts), []
    if previous is None:
        body = fresh_body(sections)
    else:
        before, text = split_card(previous)
        if before is None:
            remarks.append("README.md: its metadata is no YAML mapping, and is made anew")
        metadata = merge_metadata(before or {}, metadata, _OURS)
        merged, said = merge_body(text.lstrip("\n"), sections)
        body, remarks = merged, remarks + said
    return f"{_front_matter(metadata)}\n{body}", remarks


def _front_matter(metadata: Mapping[str, Any]) -> str:
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

    return f"---\n{yaml_dump(metadata, sort_keys=False).strip()}\n---\n"


def card_metadata(facts: CardFacts) -> dict[str, Any]:
    """The values of the YAML block at the top of README.md, as the Hub's own class has them."""
    from huggingface_hub import ModelCardData

    results = _eval_results(facts)
    known = facts.data.is_public and facts.data.name in _DATASETS
    examples = [{"src": file, "example_title": title} for file, title in facts.examples.items()]
    found: dict[str, Any] = ModelCardData(
        library_name="timm" if facts.is_timm else "finetune",
        pipeline_tag="image-classification",
        tags=[*_TAGS, *(_TIMM_TAGS if facts.is_timm else [])],
        license=facts.licence,
        datasets=[_DATASETS[facts.data.name]] if known else None,
        metrics=["accuracy"] if results else None,
        base_model=facts.base.id if facts.base else None,
        base_model_relation=_RELATION if facts.base else None,
        model_name=facts.repo.partition("/")[2] if results else None,
        eval_results=results or None,
        widget=examples or None,
    ).to_dict()  # type: ignore[no-untyped-call]
    return {key: value for key, value in found.items() if value is not None}


def _eval_results(facts: CardFacts) -> list[Any]:
    """The accuracy of these weights themselves: `after` of an adapt, `test` of a pretrain."""
    from huggingface_hub import EvalResult

    own = facts.own_result
    if own is None:
        return []
    kind = facts.data.name if facts.data.is_public else "imagefolder"
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_DATASETS.get(kind, kind),
            dataset_name=facts.data.title,
            dataset_split="test" if facts.metadata.data.get("folds") is None else "cross-validation",
            metric_type="accuracy",
            metric_value=own["accuracy"],
            metric_name="Accuracy",
        )
    ]


def check_card_here(card: str) -> None:
    """HubRefusal unless the card's metadata follows the Hub's rules, as far as they can be checked offline."""
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise HubRefusal(f"the model card does not hold: its metadata cannot be read ({error})") from None
    bases = read.get("base_model")
    problems = [
        f"{key}: {read.get(key)!r}"
        for key, holds in {
            "library_name": read.get("library_name") in ("finetune", "timm"),
            "pipeline_tag": read.get("pipeline_tag") == "image-classification",
            "license": read.get("license") in LICENCES,
            "tags": _texts(read.get("tags")),
            "datasets": "datasets" not in read or _texts(read["datasets"]),
            "metrics": "metrics" not in read or _texts(read["metrics"]),
            "base_model": bases is None
            or all(_REPO.fullmatch(str(base)) for base in (bases if isinstance(bases, list) else [bases])),
            "base_model_relation": read.get("base_model_relation") in (None, *_RELATIONS),
            "model-index": "model-index" not in read or isinstance(read["model-index"][0].get("name"), str),
        }.items()
        if not holds
    ]
    if problems:
        raise HubRefusal(f"the model card does not hold: {'; '.join(problems)}")


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
