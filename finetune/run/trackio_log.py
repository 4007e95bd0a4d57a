"""`--log trackio`: a run of the project `finetune` in trackio's database on this machine, for `trackio show`.

The database is trackio's own: one for all runs, in $TRACKIO_DIR, else in the Hugging Face cache. Rows are written to it
directly: `trackio.init` would ask the Hub for the name of whoever is logged in, and measure the machine as well.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Error as DatabaseError
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage

from finetune.errors import OutputError
from finetune.io.atomic import raises_output_error, write_atomic
from finetune.io.safe_open import read_regular
from finetune.run.loggers import Picture

PROJECT = "finetune"
MAX_ID_BYTES = 100
RUN_ID = "trackio_run_id"  # a file in the run folder: which run of the database it is
TRIALS = "trials"  # the folder of a study's trainings


class TrackioLog:
    """The numbers of every row; at the end the accuracies, the verdict and the confusion matrix as an image."""

    def __init__(self, run_folder: Path) -> None:
        of_study = run_folder.parent.name == TRIALS
        study = run_folder.parent.parent.name if of_study else run_folder.name
        self.name = f"{study}/{run_folder.name}" if of_study else study
        now = datetime.now(UTC).isoformat()
        self.config = {"_Created": now, "_Group": study, "run_folder": str(run_folder)}
        self.id = self._run_id(run_folder / RUN_ID)
        with self._raises_output_error():
            SQLiteStorage.delete_run(PROJECT, self.name, run_id=self.id)

    def row(self, step: int, values: Mapping[str, Any]) -> None:
        with self._raises_output_error():
            SQLiteStorage.bulk_log(PROJECT, self.name, [dict(values)], [step], config=self.config, run_id=self.id)

    def outcome(self, step: int, values: Mapping[str, float], verdict: str, confusion: Picture | None) -> None:
        found: dict[str, Any] = {**values, "verdict": trackio.Markdown(verdict)._to_dict()}
        with self._raises_output_error():
            if confusion is not None:
                picture = trackio.Image(confusion, caption="confusion matrix")
                picture._save(PROJECT, self.name, step + 1)
                found["confusion"] = picture._to_dict()
        self.row(step + 1, found)  # of its own: trackio has one line a step

    def close(self) -> None:
        pass

    @staticmethod
    def _run_id(path: Path) -> str:
        """The id that an earlier attempt noted in the run folder, else a new one."""
        with raises_output_error(path):
            if path.exists():
                return read_regular(path, MAX_ID_BYTES).decode("ascii", "replace").strip()
        fresh = uuid.uuid4().hex
        write_atomic(path, f"{fresh}\n".encode())
        return fresh

    @contextmanager
    def _raises_output_error(self) -> Iterator[None]:
        database = SQLiteStorage.get_project_db_path(PROJECT)
        try:
            with raises_output_error(database):
                yield
        except DatabaseError as error:
            raise OutputError(f"{database}: trackio cannot write there ({error}); leave --log trackio out") from None
