"""Progress of one network through its phases, saved for resuming."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from finetune.report.report import EpochRow, PhaseSummary
from finetune.run.run_folder import RunFolder
from finetune.run.snapshot import NetworkState, PhaseState
from finetune.train.loop import Training, TrainState, with_prefix

TRAINED, SCRATCH = "training", "scratch"


def completed_phases(run_folder: RunFolder, name: str) -> int:
    """How many phases of a leg an earlier attempt brought to their end."""
    found = run_folder.found
    return len(found.networks[name].phases) if found is not None and name in found.networks else 0


class NetworkProgress:
    """One network's way, begun where an earlier attempt left it.

    `facts` has the phases that are over. `before` is the leg that came to its end before this one began: a
    snapshot has to hold its network too.
    """

    def __init__(
        self, run_folder: RunFolder, name: str, network: nn.Module, before: NetworkProgress | None = None
    ) -> None:
        self.run_folder, self.name, self.network, self.before = run_folder, name, network, before
        self.phase: PhaseState | None = None
        found = run_folder.found
        self.facts = NetworkState() if found is None or name not in found.networks else found.networks[name]
        if found is None or name not in found.networks:
            return
        if found.current == name:
            self.phase = found.phase
        if self.phase is None:
            network.load_state_dict(with_prefix(run_folder.tensors, f"{name}/"))
            if found.current == name:
                run_folder.restore_rng_state()

    def resume_point(self) -> tuple[list[EpochRow], TrainState | None, dict[str, str] | None]:
        """The rows of the phase that is to begin, where it stood, and the proof of its frozen tensors from when it
        began: if an earlier attempt was in the middle of it.
        """
        phase, self.phase = self.phase, None
        if phase is None:
            return [], None, None
        tensors = self.run_folder.tensors
        state = TrainState(with_prefix(tensors, f"{self.name}/"), with_prefix(tensors, "phase/"), phase.numbers)
        return phase.history, state, phase.proof

    def maybe_snapshot(self, training: Training, history: list[EpochRow], proof: dict[str, str], *, row: bool) -> None:
        """To be called between two events: keeps where the phase stands when that is due or a stop was asked for."""
        run_folder = self.run_folder
        if training.step == training.phase.steps:
            return  # `over` comes next
        due = run_folder.requests.agree(run_folder.group, run_folder.due(row=row))
        if due or run_folder.requests.asked is not None:
            state = training.state()
            facts = PhaseState(history=history, numbers=state.numbers, proof=proof)
            tensors = {f"phase/{name}": t for name, t in state.tensors.items()}
            moment = f"step {training.step:,} of {training.phase.steps:,} of phase {training.phase.name}"
            self._save(state.network, tensors, facts, moment)
        run_folder.requests.stop_if_asked()

    def phase_done(self, summary: PhaseSummary, epochs: int) -> None:
        """The phase is over; that is always kept."""
        self.run_folder.requests.hold()
        done = NetworkState(phases=[*self.facts.phases, summary], epochs=self.facts.epochs + epochs)
        self.facts = done
        self._save(self.network.state_dict(), {}, None, f"the end of phase {summary.name}")
        self.run_folder.requests.agree(self.run_folder.group)
        self.run_folder.requests.release()

    def _save(
        self, network: Mapping[str, Tensor], tensors: Mapping[str, Tensor], phase: PhaseState | None, moment: str
    ) -> None:
        every = {f"{self.name}/{name}": t for name, t in network.items()} | dict(tensors)
        networks = {self.name: self.facts}
        if self.before is not None:
            every |= {f"{self.before.name}/{key}": t for key, t in self.before.network.state_dict().items()}
            networks[self.before.name] = self.before.facts
        self.run_folder.save(self.name, networks, every, phase, moment)
