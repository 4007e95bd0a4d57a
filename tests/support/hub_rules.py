"""The rules for a model card's metadata that the loopback Hub checks: those of the Hub's documentation."""

from __future__ import annotations

from typing import Any

import yaml

LICENSES = {"mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "other"}
LICENSES |= {"unknown", "gpl-3.0", "openrail", "bsd-2-clause", "unlicense", "cc"}
RELATIONS = {"adapter", "merge", "quantized", "finetune"}
LISTS = ("tags", "datasets", "metrics", "language")


def card_data(text: str) -> dict[str, Any]:
    """The metadata of a card, or nothing."""
    if not text.startswith("---\n") or "\n---\n" not in text:
        return {}
    found = yaml.safe_load(text[4:].split("\n---\n")[0])
    return found if isinstance(found, dict) else {}


def card_faults(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    try:
        data = card_data(text)
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for key in LISTS:
        if key in data and not (isinstance(data[key], list) and all(isinstance(v, str) for v in data[key])):
            errors.append(f'"{key}" must be an array of strings')
    if "base_model_relation" in data and data["base_model_relation"] not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    for number, entry in enumerate(data.get("model-index", [])):
        errors += [f'"model-index[{number}].{fault}' for fault in _index_faults(entry)]
    return errors, []


def _index_faults(entry: dict[str, Any]) -> list[str]:
    faults = [] if isinstance(entry.get("name"), str) else ['name" is required']
    for result in entry.get("results", []):
        if "type" not in result.get("task", {}):
            faults.append('results.task.type" is required')
        if not {"type", "name"} <= result.get("dataset", {}).keys():
            faults.append('results.dataset.type and name" are required')
        for metric in result.get("metrics", []):
            if not {"type", "value"} <= metric.keys():
                faults.append('results.metrics.type and value" are required')
    return faults
