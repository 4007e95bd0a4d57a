"""Every error that `finetune` raises on purpose.

    FinetuneError                  exit code 1: the run failed
    ├── UserError                  exit code 2: something the person gave is wrong
    │   ├── RecipeError            a recipe or a --set; carries every problem at once
    │   ├── DataError              a data set, its files or its classes
    │   ├── CheckpointError        a weights file, or weights that do not fit
    │   ├── SettingError           an option or an argument of a command or function
    │   └── OutputError            a place that cannot be written
    ├── DownloadError              no mirror gave the files
    ├── HubError                   the Hub or the way to it failed; the same command may work later
    │   └── HubRefusal             (also a UserError) the Hub says no: a name, a token, a permission
    ├── TrainingError              the training itself cannot go on
    │   ├── NonFiniteError         a loss or a weight that is not a finite number
    │   ├── DriftError             a tensor that a phase freezes is not what it was
    │   └── ProcessLost            another process of the same job is gone
    ├── ClaimError                 what a checkpoint says of itself does not hold
    ├── ExportError                a network that cannot be exported, or a file that does not answer as it does
    └── Interrupted                exit code 130: stopped by Ctrl-C (143 by SIGTERM, 129 by SIGHUP); says what was kept

The innermost raise names the fault; whoever knows the context adds it. A message says what was expected, what was
found, where, and what to type next. `cli` is the one place that turns these into text and an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence


class FinetuneError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the command line's."""

    exit_code = 1


class UserError(FinetuneError):
    """Something that the user gave is wrong and can be corrected: a file, a name, a value."""

    exit_code = 2


class RecipeError(UserError):
    """An invalid recipe; `problems` has one line for each fault found."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """A data set that is unknown, damaged, or lacks what was asked for."""


class CheckpointError(UserError):
    """A weights file that cannot be read, or weights that do not fit the model."""


class SettingError(UserError):
    """An option of a command, or an argument of a function, that makes no sense."""


class OutputError(UserError):
    """A file or folder that cannot be written."""


class DownloadError(FinetuneError):
    """No mirror gave the files of a data set."""


class HubError(FinetuneError):
    """The Hub, or the way to it, failed: no network, a fault of the server, a transfer cut short or damaged."""


class HubRefusal(HubError, UserError):
    """The Hub refused, and the user can correct it: a name, a token, a permission, a choice."""

    exit_code = 2


class TrainingError(FinetuneError):
    """Training cannot go on, for example because the loss is no longer a number."""


class NonFiniteError(TrainingError):
    """A loss or a weight is NaN or infinite. `images`: the indices in the training set of that step's images."""

    def __init__(self, message: str, images: Sequence[int] = ()) -> None:
        self.images = tuple(images)
        super().__init__(message)


class DriftError(TrainingError):
    """A frozen tensor changed during its phase, so that the weights are not what the recipe says."""


class ProcessLost(TrainingError):
    """Another process of the same job has ended or does not answer."""


class ClaimError(FinetuneError):
    """`verify` found that some of a checkpoint's statements about itself are false."""


class ExportError(FinetuneError):
    """A network that cannot be exported, or an exported file that does not answer as its checkpoint does."""


class Interrupted(FinetuneError):
    """The person pressed Ctrl-C, or a signal asked the run to end; the message says what was kept."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        self.exit_code = exit_code
        super().__init__(message)
