"""The metadata of a model card, made and checked with the Hub's own classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.errors import HubRefusal, SettingError, name_hint
from finetune.hub.config import TIMM
from finetune.hub.names import PREFIX

if TYPE_CHECKING:
    from finetune.hub.card import CardFacts

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


@dataclass(frozen=True)
class BaseModel:
    """The model on the Hub that the weights were trained from, its commit where known, and whether timm named it."""

    id: str
    commit: str | None = None
    through_timm: bool = False


def base_of(lineage: Sequence[Mapping[str, Any]]) -> BaseModel | None:
    """The nearest ancestor that came from the Hub or timm, out of a checkpoint's lineage."""
    for parent in lineage:
        named = parent.get("id")
        if not isinstance(named, str):
            continue
        if named.startswith(PREFIX):
            repo, _, commit = named.removeprefix(PREFIX).partition("@")
            return BaseModel(repo, commit or None)
        if named.startswith("timm:"):
            return BaseModel(_timm_repository(named.removeprefix("timm:")), through_timm=True)
    return None


def _timm_repository(name: str) -> str:
    """Where timm has the weights of ARCH[.TAG], without a tag those of its default one."""
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(name, allow_unregistered=True)
    repository = getattr(found, "hf_hub_id", None) or TIMM + name
    return str(repository).partition("@")[0]


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

    m = facts.metadata
    is_timm = m.model.startswith(TIMM)
    results = _eval_results(facts)
    data = ModelCardData(
        library_name="timm" if is_timm else "finetune",
        pipeline_tag="image-classification",
        tags=sorted(
            {"image-classification", "finetune", "safetensors", *(("timm", "transformers") if is_timm else ())}
        ),
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

    for key in ("after", "test"):
        found = facts.metadata.results.get(key)
        if isinstance(found, Mapping) and isinstance(found.get("accuracy"), float):
            kind = facts.data.name if facts.data.is_public else "imagefolder"
            return [
                EvalResult(
                    task_type="image-classification",
                    dataset_type=_DATASETS.get(kind, kind),
                    dataset_name=facts.data.title,
                    dataset_split="test",
                    metric_type="accuracy",
                    metric_value=found["accuracy"],
                    metric_name="Accuracy",
                )
            ]
    return []


def check_card_here(card: str) -> None:
    """HubRefusal unless the card's metadata is what the Hub's rules ask for, as far as that is known without it."""
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
