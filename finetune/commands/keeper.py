"""What a stopped run leaves behind: the weights of the last row, as a checkpoint like any other."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import TracebackType

from torch import Tensor, nn

from finetune.checkpoint import Metadata, write_checkpoint
from finetune.commands.outputs import Outputs
from finetune.commands.stopping import Stopped
from finetune.errors import Interrupted, OutputError, TrainingError


class Keeper:
    """Holds the newest good weights; when the block ends by Ctrl-C, a failed training or a failed write, keeps them.

    Of a group's processes only the leader `writes`.
    """

    def __init__(self, outputs: Outputs, describe: Callable[[], Metadata], *, writes: bool = True) -> None:
        self.outputs, self.describe, self.writes = outputs, describe, writes
        self.state: dict[str, Tensor] = {}
        self.moment = ""

    def keep(self, network: nn.Module, moment: str) -> None:
        """Copies the weights as they are now; `moment` says when that was."""
        if not self.writes:
            return
        self.state = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
        self.moment = moment

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            request = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
            raise Interrupted(f"stopped by {request.name}; {self._rescue()}", request.exit_code) from None
        if isinstance(error, (TrainingError, OutputError)) and self.writes:
            error.args = (f"{error}\n{self._rescue()}",)

    def _rescue(self) -> str:
        folder = self.outputs.run_folder
        if not self.writes:
            return "the first process tells what was kept"
        if not self.state:
            return f"no epoch had ended, so there are no weights to keep; {folder} has the recipe and the log"
        try:
            write_checkpoint(self.outputs.interrupted, self.state, self.describe())
        except OutputError as error:
            return f"the weights {self.moment} could not be kept: {error}"
        return (
            f"kept: the weights {self.moment} in {self.outputs.interrupted}, a checkpoint that every command takes, "
            f"and the numbers so far in {self.outputs.metrics}"
        )
