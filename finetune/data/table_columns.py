"""Which columns of a table hold the path, label, split and group: by the usual names, or as a person says."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from finetune.data.image_io import IMAGE_SUFFIXES
from finetune.data.split_names import SplitName, split_of
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.text import listed, name_hint

Role = Literal["path", "label", "split", "group"]
ROLES: tuple[Role, ...] = ("path", "label", "split", "group")
DELIMITERS = ",;\t|"
MAX_NAME_SHOWN = 40  # characters of a column's name in a message

# The usual names, without case, spaces and punctuation. A later row counts where no earlier one is there.
_USUAL: dict[Role, tuple[frozenset[str], ...]] = {
    "path": (
        frozenset({"path"}),
        frozenset(
            {
                *("file", "filename", "filepath", "fname", "fpath", "relativepath", "relpath"),
                *("image", "imagepath", "imagename", "imagefile", "imagefilename", "imageid"),
                *("img", "imgpath", "imgname", "imgfile", "imgid"),
                *("picture", "picturepath", "picturename", "photo", "photopath", "photoname"),
            }
        ),
        frozenset({"id", "idcode", "name"}),
    ),
    "label": (
        frozenset({"label"}),
        frozenset(
            {
                *("labels", "labelname", "class", "classname", "classid", "classlabel"),
                *("category", "categoryname", "categoryid", "target"),
            }
        ),
    ),
    "split": (frozenset({"split"}),),
    "group": (frozenset({"group"}),),
}
# Taken for the split where the first row has the name of a split there.
_MAYBE_SPLIT = frozenset({"set", "part", "subset", "partition", "usage", "phase", "dataset", "datasplit"})
# Of columns that are true or false, the splits that these mean.
_FLAGS: dict[str, tuple[SplitName, SplitName]] = {
    **dict.fromkeys(("isvalid", "isval", "isvalidation"), ("validation", "train")),
    **dict.fromkeys(("istest", "istesting"), ("test", "train")),
    **dict.fromkeys(("istrain", "istraining", "istrainingimage"), ("train", "test")),
}
_TRUTH: dict[str, bool] = {
    **dict.fromkeys(("true", "1", "yes", "t", "y", "1.0"), True),
    **dict.fromkeys(("false", "0", "no", "f", "n", "0.0"), False),
}
# May say what belongs together; never taken for it unasked.
_MAYBE_GROUP = re.compile(
    r"(patient|subject|person|participant|individual|animal|lesion|case|track|scene|session|sequence|video|clip|"
    r"slide|specimen|camera|site|location|burst)(id|number|no|name)?"
)


@dataclass(frozen=True)
class ColumnNames:
    """What a person says that columns are called, by role. Not `required`: the usual names do where one is missing."""

    names: Mapping[Role, str] = field(default_factory=dict)
    required: bool = True


@dataclass(frozen=True)
class Columns:
    """The index of each role's column in a row, and what to tell of them. flag: the splits of true and false."""

    path: int
    label: int
    split: int | None
    group: int | None
    flag: tuple[SplitName, SplitName] | None
    notes: tuple[str, ...]

    def split_in(self, cell: str) -> SplitName | None:
        """The split that a cell means, None for a cell that means none."""
        if self.flag is None:
            return split_of(cell)
        truth = _TRUTH.get(cell.casefold())
        return None if truth is None else self.flag[0 if truth else 1]


def find_delimiter(line: str, chosen: ColumnNames) -> str:
    """What divides the cells of a first line: what makes a path and a label of it, then what makes most cells."""

    def fit(delimiter: str) -> tuple[int, int]:
        head = _cells(line, delimiter)
        names = {_bare(cell) for cell in head}
        said = {_bare(name) for name in chosen.names.values()}
        usual = [bool(names & frozenset().union(*_USUAL[role])) for role in ("path", "label")]
        return len(names & said) + sum(usual), len(head)

    return max(DELIMITERS, key=fit)


def find_columns(head: Sequence[str], first_row: Sequence[str] | None, chosen: ColumnNames) -> Columns:
    """Finds each role's column in a table's first line. DataError, which does not name the table, where one is unclear.

    first_row: the cells of the first row below it, by which a column `set` or `is_valid` is known for the split.
    """
    found: dict[Role, int] = {}
    for role, name in chosen.names.items():
        if (index := _said(role, name, head, chosen.required)) is not None:
            found[role] = index
    for role in ROLES:
        if role in found:
            continue
        free = [index for index in range(len(head)) if index not in found.values()]
        candidates = _usual(role, head, free, first_row)
        if len(candidates) > 1:
            raise DataError(_which_one(role, [head[i] for i in candidates]))
        if candidates:
            found[role] = candidates[0]
    if missing := [role for role in ROLES[:2] if role not in found]:
        raise DataError(_no_column(missing, head))
    if len(set(found.values())) < len(found):
        raise DataError("one column cannot be two of path, label, split and group; change data.columns")
    split = found.get("split")
    flag = None if split is None else _FLAGS.get(_bare(head[split]))
    return Columns(found["path"], found["label"], split, found.get("group"), flag, _notes(head, found, flag))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _bare(name: str) -> str:
    """A column's name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _said(role: Role, name: str, head: Sequence[str], required: bool) -> int | None:
    """The index of the column that a person named: called exactly so, or else but for case and punctuation."""
    exact = [index for index, cell in enumerate(head) if cell.strip() == name.strip()]
    places = exact or [index for index, cell in enumerate(head) if _bare(cell) == _bare(name)]
    if len(places) == 1:
        return places[0]
    if not required:
        return None
    fault = f"has the column {name!r} twice" if places else f"has no column {name!r}"
    raise DataError(f"data.columns.{role}: the table {fault}{name_hint(name, map(_short, head), 'columns')}")


def _usual(role: Role, head: Sequence[str], free: Sequence[int], first_row: Sequence[str] | None) -> list[int]:
    """The columns that may hold a role, by the first row of usual names that has one."""
    for names in _USUAL[role]:
        if places := [index for index in free if _bare(head[index]) in names]:
            return places
    if role != "split" or first_row is None or len(first_row) != len(head):
        return []
    cells = {index: (_bare(head[index]), first_row[index].strip()) for index in free}
    return [
        index
        for index, (name, cell) in cells.items()
        if (name in _MAYBE_SPLIT and split_of(cell)) or (name in _FLAGS and cell.casefold() in _TRUTH)
    ]


def _which_one(role: Role, names: Sequence[str]) -> str:
    if len({name.strip() for name in names}) == 1:
        return f"the column {_short(names[0])} twice; rename one"
    return (
        f"{len(names)} columns may hold the {role}: {listed(map(_short, names))}; say which with "
        f"--set data.columns.{role}={_short(names[0])}"
    )


def _no_column(missing: Sequence[Role], head: Sequence[str]) -> str:
    found = listed(map(_short, head)) or "nothing"
    if any(PurePath(cell.strip()).suffix.lower() in IMAGE_SUFFIXES for cell in head[:100]):
        cure = "is the first line missing? Put path,label above the rows, in their order"
    else:
        cure = "say which columns they are with " + " ".join(f"--set data.columns.{role}=NAME" for role in missing)
    return (
        f"no column {', '.join(missing)}; expected a first line of path,label or path,label,split, or other usual "
        f"names, found {found}; {cure}"
    )


def _notes(head: Sequence[str], found: Mapping[Role, int], flag: tuple[SplitName, SplitName] | None) -> tuple[str, ...]:
    """What was found under another name, and what is not read."""
    notes = []
    if renamed := [f"{role} from {_short(head[i])}" for role, i in found.items() if _bare(head[i]) != role]:
        notes.append(f"read {', '.join(renamed)}")
    if flag is not None:
        notes[-1] += f", where true is {flag[0]} and false {flag[1]}"
    left = [name for index, name in enumerate(head) if index not in found.values() and name.strip()]
    if left:
        group = next((name for name in left if _MAYBE_GROUP.fullmatch(_bare(name))), None)
        hint = (
            ""
            if group is None or "group" in found
            else (
                f"; {_short(group)} may say which pictures belong together: with --set "
                f"data.columns.group={_short(group)} these stay in one part"
            )
        )
        notes.append(f"columns not read: {_some(left)}{hint}")
    return tuple(notes)


def _some(names: Iterable[str]) -> str:
    return listed(map(_short, names))


def _short(name: str) -> str:
    return printable(name.strip()[:MAX_NAME_SHOWN])
