"""Example pictures of a registered data set, pushed beside the card where its licence allows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from finetune.data.registry import find_dataset, is_present
from finetune.errors import DataError
from finetune.hub.repo_id import EXAMPLES

# Licences that allow to pass pictures on with their source named, as a card does.
FREE = ("CC BY 4.0", "CC BY-SA 3.0", "CC BY-SA 4.0", "MIT", "BSD 3-Clause")
COUNT = 3


def example_images(name: str, classes: Sequence[str], root: Path) -> dict[str, tuple[str, bytes]]:
    """The first test image of each of the first three classes: {file in the repository: (class, PNG)}.

    Empty where the licence does not allow it, or the data is not at hand below `root`; nothing is downloaded.
    """
    row = find_dataset(name)
    if row.licence not in FREE or not row.files or not is_present(name, root):
        return {}
    from PIL import Image

    from finetune.data.idx import read_arrays

    try:
        images, labels = read_arrays(row, root, row.test_files)
    except DataError:
        return {}  # a damaged file is for a training to report
    found: dict[str, tuple[str, bytes]] = {}
    for title in [title for title in classes if title in row.class_names][:COUNT]:
        indices = (labels == row.class_names.index(title)).nonzero()[0]
        if len(indices):
            buffer = io.BytesIO()
            Image.fromarray(images[indices[0]]).save(buffer, "PNG")
            found[f"{EXAMPLES}{len(found)}.png"] = (title, buffer.getvalue())
    return found
