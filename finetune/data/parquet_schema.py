"""Finds the columns of images, labels and groups in a Parquet file's schema, by their features, types and names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.data.shards import check_class_list
from finetune.data.table_columns import ColumnNames, Role
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.io.strict_json import parse_json
from finetune.text import listed, name_hint

if TYPE_CHECKING:
    import pyarrow as pa

MAX_FEATURES = 20_000_000  # bytes of JSON with the class names, in a schema's metadata
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "cls", "fine_label")
MAX_SHOWN = 20  # columns named in one message


@dataclass(frozen=True)
class Layout:
    """Which columns of a Parquet file are used. image, inner: leaves such as image.bytes and image.path."""

    column: str
    image: str
    inner: str | None
    label: str | None
    group: str | None
    split: str | None
    class_names: tuple[str, ...] | None

    @property
    def plain(self) -> list[str]:
        """The columns that are read for all rows when a data set is listed, besides `inner`."""
        return [name for name in (self.label, self.group, self.split) if name is not None]


def find_layout(schema: pa.Schema, where: str, columns: ColumnNames, labelled: bool) -> Layout:
    """The columns to use: those that `columns` names, else by their features, types and usual names. DataError."""
    features, known = _features(schema), set(schema.names)
    for role, name in columns.names.items() if columns.required else ():
        if name not in known:
            raise DataError(f"{where}: data.columns.{role}: no column {name!r}{name_hint(name, known, 'columns')}")
    given = {role: name for role, name in columns.names.items() if name in known}
    name, count = next(iter(Counter(schema.names).most_common(1)), ("", 0))
    if count > 1:
        raise DataError(f"{where}: {count} columns are called {printable(name)}; give each its own name")
    column = given.get("path") or _find_image(schema, features, where)
    image, inner = _image_leaves(schema, column, where)
    label = given.get("label") or _find_label(schema, features, where) if labelled else None
    if label is not None and not (is_number(schema, label) or is_text(schema, label)):
        found = schema.field(label).type
        raise DataError(f"{where}: expected a label of whole numbers or texts in the column {label}, found {found}")
    others = {}
    roles: tuple[Role, ...] = ("group", "split")
    for key in roles:
        other = given.get(key) or (key if key in known else None)
        usable = labelled and other is not None and (is_text(schema, other) or is_number(schema, other))
        others[key] = other if usable else None
    names = features.get(label or "", {}).get("names") if label is not None and is_number(schema, label) else None
    class_names = check_class_list(names, f"{where}: {label}") if isinstance(names, list) and names else None
    return Layout(column, image, inner, label, others["group"], others["split"], class_names)


def _listed(schema: pa.Schema) -> str:
    return listed(map(printable, schema.names[:MAX_SHOWN])) or "none"


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What `datasets` wrote of the columns' meaning; empty where it did not, or it cannot be read."""
    content = (schema.metadata or {}).get(b"huggingface", b"")
    try:
        found = parse_json(content, MAX_FEATURES)["info"]["features"]
        return {name: value for name, value in found.items() if isinstance(value, dict)}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _find_image(schema: pa.Schema, features: Mapping[str, Mapping[str, Any]], where: str) -> str:
    marked = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    found = marked or [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    has = ", ".join(f"{printable(f.name)} ({f.type})" for f in list(schema)[:MAX_SHOWN])
    if found:
        raise DataError(
            f"{where}: expected one column of pictures, found {listed(found)}; name one with "
            f"--set data.columns.path={found[0]}"
        )
    raise DataError(f"{where}: expected a column of pictures, image {{bytes, path}} or bytes; found {has or 'none'}")


def _find_label(schema: pa.Schema, features: Mapping[str, Mapping[str, Any]], where: str) -> str:
    marked = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    usual = [name for name in LABEL_COLUMNS if name in schema.names]
    if len(marked) > 1 and "label" not in marked:
        raise DataError(
            f"{where}: expected one column of labels, found {listed(marked)}; name one with "
            f"--set data.columns.label={marked[0]}"
        )
    if marked or usual:
        return "label" if "label" in marked else (marked or usual)[0]
    raise DataError(
        f"{where}: expected a column of labels, for example label; found {_listed(schema)}; name one with "
        "--set data.columns.label=NAME"
    )


def _image_leaves(schema: pa.Schema, column: str, where: str) -> tuple[str, str | None]:
    """The leaf with the bytes of a column of images, and that with their names, if there is one."""
    import pyarrow as pa

    kind = schema.field(column).type
    if not _holds_bytes(kind):
        raise DataError(
            f"{where}: expected pictures, as {{bytes, path}} or bytes, in the column {column}, found {kind}"
        )
    if not pa.types.is_struct(kind):
        return column, None
    named = kind.get_field_index("path") >= 0 and pa.types.is_string(kind.field("path").type)
    return f"{column}.bytes", f"{column}.path" if named else None


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_number(schema: pa.Schema, name: str | None) -> bool:
    import pyarrow as pa

    return name is not None and bool(pa.types.is_integer(schema.field(name).type))


def is_text(schema: pa.Schema, name: str) -> bool:
    import pyarrow as pa

    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def schema_difference(layout: Layout, schema: pa.Schema, other: pa.Schema) -> str | None:
    """How another file's columns differ from the first's, of those that are used; None where they do not."""
    for name in (layout.column, *layout.plain):
        if other.names.count(name) != 1:
            return f"it has no column {printable(name)}, but {_listed(other)}"
        ours, theirs = schema.field(name).type, other.field(name).type
        if ours != theirs:
            return f"{printable(name)} is {theirs} there, and {ours} in the other"
    if layout.label is not None:
        names = [_features(each).get(layout.label, {}).get("names") for each in (schema, other)]
        if names[0] != names[1]:
            texts = [printable(str(each)[:200]) if each else "none" for each in names]
            return f"the class names of {layout.label} are {texts[1]} there, and {texts[0]} in the other"
    return None
