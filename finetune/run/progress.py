"""Progress of one network through its phases, saved for resuming."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from finetune.report.report import EpochRow, PhaseSummary
from finetune.run.run_folder import RunFolder
from finetune.run.snapshot import NetworkState, PhaseState
from finetune.train.loop import Training, TrainState, require_like, with_prefix

TRAINED, SCRATCH = "training", "scratch"


def completed_phases(run_folder: RunFolder, name: str) -> int:
    """The number of phases of a network that an earlier attempt completed."""
    state = run_folder.earlier.state
    return len(state.networks[name].phases) if state is not None and name in state.networks else 0


class NetworkProgress:
    """The progress of one network, which is put back to where an earlier attempt left it.

    `state` has the completed phases. `before` is the network that was trained to its end before this one; snapshots
    hold it, and those before it, too.
    """

    def __init__(
        self, run_folder: RunFolder, name: str, network: nn.Module, before: NetworkProgress | None = None
    ) -> None:
        self.run_folder, self.name, self.network, self.before = run_folder, name, network, before
        self.state = NetworkState()
        self.phase: PhaseState | None = None
        earlier, tensors = run_folder.earlier.state, run_folder.earlier.tensors
        if earlier is None or name not in earlier.networks:
            return
        self.state = earlier.networks[name]
        self.phase = earlier.phase if earlier.current == name else None
        if self.phase is None:
            self.load(network, with_prefix(tensors, f"{name}/"))
            if earlier.current == name:
                run_folder.restore_rng_state()

    def load(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Copies the tensors of the snapshot into the network. SettingError where they do not fit it."""
        with self.run_folder.misfit_is_told():
            require_like(network.state_dict(), tensors)
            network.load_state_dict(dict(tensors))

    def resume_point(self) -> tuple[list[EpochRow], TrainState | None, dict[str, str] | None]:
        """Returns rows, training state and hashes of frozen tensors to resume this phase from; only at the first call.

        ([], None, None) where no earlier attempt stopped within the phase. The hashes are from when the phase began.
        """
        phase, self.phase = self.phase, None
        if phase is None:
            return [], None, None
        tensors = self.run_folder.earlier.tensors
        state = TrainState(with_prefix(tensors, f"{self.name}/"), with_prefix(tensors, "phase/"), phase.numbers)
        return phase.history, state, phase.proof

    def maybe_snapshot(self, training: Training, history: list[EpochRow], proof: dict[str, str], *, row: bool) -> None:
        """Saves a snapshot between two events of a phase when one is due or a stop was requested, and then stops."""
        run_folder = self.run_folder
        if training.step == training.phase.steps:
            return  # `phase_done` comes next
        due = run_folder.requests.agree(run_folder.group, run_folder.due(row=row))
        if due or run_folder.requests.asked is not None:
            state = training.state()
            tensors = {f"{self.name}/{name}": t for name, t in state.network.items()}
            tensors |= {f"phase/{name}": t for name, t in state.tensors.items()}
            moment = f"step {training.step:,} of {training.phase.steps:,} of phase {training.phase.name}"
            self._save(tensors, PhaseState(history=history, numbers=state.numbers, proof=proof), moment)
        run_folder.requests.stop_if_asked()

    def phase_done(self, summary: PhaseSummary, epochs: int) -> None:
        """Records a completed phase and always saves a snapshot."""
        run_folder = self.run_folder
        run_folder.requests.hold()
        self.state = NetworkState(phases=[*self.state.phases, summary], epochs=self.state.epochs + epochs)
        self._save(self._tensors(), None, f"the end of phase {summary.name}")
        run_folder.requests.agree(run_folder.group)
        run_folder.requests.release()

    def _save(self, tensors: dict[str, Tensor], phase: PhaseState | None, moment: str) -> None:
        networks = {self.name: self.state}
        before = self.before
        while before is not None:
            tensors |= before._tensors()
            networks[before.name] = before.state
            before = before.before
        self.run_folder.save(self.name, networks, tensors, phase, moment)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{self.name}/{name}": t for name, t in self.network.state_dict().items()}
