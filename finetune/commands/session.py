"""A run's folder while the run goes on: who holds it, its snapshots, and where an earlier attempt stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from finetune.commands.differences import differences
from finetune.commands.facts import Facts, Keeping, LegFacts, PhaseFacts
from finetune.commands.outputs import SNAPSHOTS, Outputs, clear_run_folder, rewrite_metrics
from finetune.commands.stopping import StopRequests
from finetune.commands.together import MOST_LISTED, same_run, shared
from finetune.errors import DriftError, FinetuneError, NonFiniteError, SettingError
from finetune.files import write_whole
from finetune.lock import RunLock
from finetune.reporting.console import Console
from finetune.reporting.report import Report, parse_report, read_report
from finetune.reporting.tables import report_tables
from finetune.training.group import ALONE, Group
from finetune.training.snapshot import Snapshot, SnapshotStore

MOST_OF_THE_TIME = 1 / 20  # that snapshots at the ends of very short epochs may take


class Session:
    """Holds the run folder for as long as a block runs.

    run: what the result depends on (recipe, data, source, versions): an attempt with another one is not gone on with.
    machine: what may change its last bits. `found` is what an earlier attempt left, `finished` its report where it came
    to its end. SettingError where that was another run; OutputError where another run holds the folder.

    Of a group's processes the leader alone holds and writes; the others learn from it what was found.
    """

    def __init__(
        self,
        outputs: Outputs,
        recipe_text: str,
        run: Mapping[str, Any],
        machine: Mapping[str, Any],
        keeping: Keeping,
        console: Console,
        group: Group = ALONE,
    ) -> None:
        self.group = group
        self.outputs, self.recipe_text, self.keeping, self.console = outputs, recipe_text, keeping, console
        self.run, self.machine = _plain(run), _plain(machine)
        self.store = SnapshotStore(outputs.run_folder / SNAPSHOTS)
        self.requests = StopRequests()
        self.found: Facts | None = None
        self.tensors: dict[str, Tensor] = {}
        self.finished: Report | None = None
        self.rows: list[dict[str, Any]] = []
        self.moment = ""  # of the newest snapshot, in words
        self.began = self.saved = time.monotonic()
        self.cost = 0.0
        self.stack = ExitStack()

    def __enter__(self) -> Session:
        with self.stack:
            same_run(self.run, self.group)
            if self.group.leader:
                self._hold()
                if self.keeping.resume:
                    self._look_back()
                if self.found is None and self.finished is None:
                    self._begin()
                self.console.log = self.outputs.run_folder / "log.txt"
                self._tell()
            self._share()
            self.stack.enter_context(self.requests)
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stack.close()
        if isinstance(error, FinetuneError) and self.moment:
            goes_on = "" if isinstance(error, (NonFiniteError, DriftError)) else f"; go on with: {self.keeping.again}"
            error.args = (f"{error}\nsnapshot: {self.moment}, in {self.store.folder}{goes_on}",)

    def seconds(self) -> float:
        """Of the whole run, earlier attempts included."""
        return (0.0 if self.found is None else self.found.seconds) + time.monotonic() - self.began

    def record(self, row: Mapping[str, Any]) -> None:
        """One more row of metrics.jsonl, which a snapshot remembers."""
        self.rows.append(_plain(row))

    def due(self, *, row: bool) -> bool:
        """Whether it is time for a snapshot: the seconds are over, or an epoch has ended. The leader knows.

        Where epochs are so short that snapshots would take more than a twentieth of the time, not every one counts.
        """
        since = time.monotonic() - self.saved
        return self.group.leader and (since >= self.keeping.every or (row and since >= self.cost / MOST_OF_THE_TIME))

    def save(
        self,
        leg: str,
        legs: Mapping[str, LegFacts],
        tensors: Mapping[str, Tensor],
        phase: PhaseFacts | None,
        moment: str,
    ) -> None:
        """Writes a snapshot: `tensors` and the state of chance. OutputError when that fails; earlier ones stay."""
        if not self.group.leader:
            self.moment = moment
            return
        began = time.monotonic()
        facts = Facts(
            run=self.run,
            machine=self.machine,
            seconds=self.seconds(),
            rows=self.rows,
            legs=dict(legs),
            leg=leg,
            phase=phase,
            moment=moment,
        )
        self.store.save(Snapshot({**tensors, **_chance()}, facts.model_dump()))
        self.moment = moment
        self.saved = time.monotonic()
        self.cost = self.saved - began

    def restore_chance(self) -> None:
        """Puts back the random state of the snapshot that was found."""
        torch.set_rng_state(self.tensors["random/cpu"])
        for place in range(torch.cuda.device_count()):
            if (state := self.tensors.get(f"random/cuda:{place}")) is not None:
                torch.cuda.set_rng_state(state, place)

    def finish(self, digest: str) -> None:
        """The run came to its end: `digest` is its checkpoint's sha256. Snapshots are no longer needed."""
        said = {"run": self.run, "sha256": digest}
        write_whole(self._end, json.dumps(said, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n")
        self._tidy()
        self.moment = ""

    def _tidy(self) -> None:
        """Deletes what only an unfinished run needs."""
        self.store.clear()
        self.outputs.interrupted.unlink(missing_ok=True)  # of an earlier attempt

    @property
    def _end(self) -> Path:
        return self.outputs.run_folder / "finished.json"

    def _hold(self) -> None:
        lock = self.stack.enter_context(RunLock(self.outputs.run_folder))
        if lock.recovered is not None:
            self.console.note(
                f"{self.outputs.run_folder}: its last run died without a word ({lock.recovered}); if nobody killed it, "
                "memory may have run out"
            )

    def _share(self) -> None:
        """What the leader found is found in all processes."""
        finished = None if self.finished is None else self.finished.to_dict()
        said = {"finished": finished, "found": None if self.found is None else self.found.model_dump()}
        said, self.tensors = shared(said, self.tensors, self.group)
        if self.group.leader:
            return
        if said["finished"] is not None:
            self.finished = parse_report(json.dumps(said["finished"]).encode())
        if said["found"] is not None:
            self.found = Facts.model_validate(said["found"])
            self.rows, self.moment = self.found.rows, self.found.moment

    def _look_back(self) -> None:
        snapshot, faults = self.store.newest()
        for fault in faults:
            self.console.warn(fault)
        if snapshot is not None:
            try:
                facts = Facts.model_validate(snapshot.facts)
            except ValidationError as error:
                at = ".".join(map(str, error.errors()[0]["loc"]))
                raise SettingError(
                    f"{self.store.folder}: the newest snapshot does not hold at {at}; start anew without --resume"
                ) from None
            self._refuse_another(facts.run)
            self.found, self.tensors, self.rows, self.moment = facts, snapshot.tensors, facts.rows, facts.moment
            rewrite_metrics(self.outputs, self.rows)
        elif self._end.exists():
            self._look_at_end()

    def _look_at_end(self) -> None:
        """A run that is over is not done again, as long as what it wrote is still there."""
        try:
            said = json.loads(self._end.read_text(encoding="utf-8"))
            run, digest = said["run"], said["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        self._refuse_another(run)
        if digest == self.outputs.digest() and self.outputs.report.exists():
            self.finished = read_report(self.outputs.report)
            self._tidy()  # it may have been killed while it did this

    def _refuse_another(self, run: object) -> None:
        unlike = differences(run, self.run)
        if not unlike:
            return
        shown = [f"  {line}" for line in unlike[:MOST_LISTED]]
        more = [f"  and {len(unlike) - MOST_LISTED} more"] if len(unlike) > MOST_LISTED else []
        raise SettingError(
            "\n".join(
                [
                    f"--resume: {self.outputs.run_folder} holds another run, which is not gone on with:",
                    *shown,
                    *more,
                    "put that back to go on, or start anew without --resume, which moves the other run aside",
                ]
            )
        )

    def _begin(self) -> None:
        """A fresh folder: what another attempt left is moved aside, unless it is of this run and had no snapshot."""
        same = self.keeping.resume and _text(self.outputs.run_folder / "recipe.yaml") == self.recipe_text
        aside = None if same else clear_run_folder(self.outputs, self.console)
        if aside is not None:
            self._hold()
        rewrite_metrics(self.outputs, [])
        self._end.unlink(missing_ok=True)
        write_whole(self.outputs.run_folder / "recipe.yaml", self.recipe_text.encode())

    def _tell(self) -> None:
        """Says what became of an earlier attempt."""
        folder = self.outputs.run_folder
        if self.finished is not None:
            self.console.note(f"{folder}: this run came to its end already; nothing is done")
            for table in report_tables(self.finished):
                self.console.show(table)
        elif self.found is not None:
            self.console.note(f"{folder}: going on from {self.moment}")
            for line in differences(self.found.machine, self.machine)[:MOST_LISTED]:
                self.console.warn(f"{line}: the result may differ in its last bits from that of a run never stopped")
        elif self.keeping.resume:
            self.console.note(f"{folder}: no snapshot to go on from; beginning at the beginning")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it, so that what was read can be compared."""
    found: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return found


def _chance() -> dict[str, Tensor]:
    """The random state: of the processor, and of each GPU that has been used."""
    gpus = torch.cuda.get_rng_state_all()
    return {"random/cpu": torch.get_rng_state()} | {f"random/cuda:{i}": state for i, state in enumerate(gpus)}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
