"""What a model card is written from: a checkpoint's metadata, the report of its run, its data and its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from finetune.checkpoint.format import Metadata
from finetune.errors import SettingError
from finetune.hub.repo_id import PREFIX
from finetune.models.spec import TIMM
from finetune.report.rows import in_order, own_row


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
class NetworkFacts:
    """The network's size; None where it is not known."""

    parameters: int | None = None
    multiply_adds: int | None = None


@dataclass(frozen=True)
class CardFacts:
    """All that goes into a card.

    report: the JSON values of the run's report, or what the checkpoint has of them. verdicts: sentences on the results.
    licence: an identifier of the Hub. examples: pictures that are pushed beside the card, and the class of each.
    """

    repo: str
    metadata: Metadata
    data: DataFacts
    base: BaseModel | None
    licence: str
    report: Mapping[str, Any] = field(default_factory=dict)
    network: NetworkFacts = NetworkFacts()
    verdicts: Sequence[str] = ()
    examples: Mapping[str, str] = field(default_factory=dict)

    @property
    def results(self) -> dict[str, Mapping[str, Any]]:
        """The rows that were measured, in the verdict's order; the report has more to say of each."""
        reported = self.report.get("results")
        rows = dict(self.metadata.results) | (dict(reported) if isinstance(reported, Mapping) else {})
        return {key: rows[key] for key in in_order(rows) if is_result(rows[key])}

    @property
    def own_result(self) -> Mapping[str, Any] | None:
        """The result of these weights themselves."""
        return self.results.get(own_row(self.results, self.metadata.recipe) or "")

    @property
    def is_timm(self) -> bool:
        return self.metadata.model.startswith(TIMM)


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


def network_facts(recorded: Mapping[str, Any], metadata: Metadata) -> NetworkFacts:
    """The network's size as the report recorded it; else counted, for which torch is imported where it is timm's."""
    counts = [recorded.get(key) for key in ("parameters", "multiply_adds")]
    if type(counts[0]) is int and (counts[1] is None or type(counts[1]) is int):
        return NetworkFacts(*counts)
    from finetune.models.cost import network_cost

    given = metadata.input
    try:
        cost = network_cost(metadata.model, metadata.arguments, len(metadata.classes), given.channels, given.size)
    except SettingError:
        return NetworkFacts()  # a model or arguments of another version; the card then says nothing of it
    return NetworkFacts(cost.parameters, cost.multiply_adds)


def is_result(value: Any) -> bool:
    """Whether a value of a checkpoint's results has what a row of the table needs."""
    if not isinstance(value, Mapping):
        return False
    ends = value.get("ci95")
    numbers = [value.get("accuracy"), *(ends if isinstance(ends, list | tuple) and len(ends) == 2 else [None])]
    counts = [value.get("correct"), value.get("total")]
    return all(isinstance(n, int | float) for n in numbers) and all(isinstance(n, int) for n in counts)


def data_title(name: str) -> str:
    """A folder's or file's own name, for data that is no registered set; its path stays private."""
    return PurePath(name).name or name
