"""The command line: the command group, error messages and exit codes."""

from __future__ import annotations

import errno
import sys

import click

from finetune.cli import catalog, checkpoints, hub, study, train
from finetune.distributed.error_file import tell_torchrun
from finetune.errors import FinetuneError
from finetune.io.sanitize import printable_lines
from finetune.io.screen import open_standard_streams
from finetune.system import VERSION, available_memory, configure_process
from finetune.text import amount

EXIT_CODES = """\b
Exit codes:
    0  done
    1  the run failed, or a claim that verify looked at
    2  something given is wrong: a file, a name, a value
  130  stopped by Ctrl-C; 143 by SIGTERM, 129 by SIGHUP"""


# The commands by what a person wants, in the order in which they are met.
COMMANDS = {
    "Train": (train.pretrain, train.adapt, train.plan, train.where),
    "Ask whether it helps, how good it is, what it sees": (
        *(study.curve, study.rank, study.compare, checkpoints.evaluate, checkpoints.calibrate, checkpoints.predict),
        checkpoints.verify,
    ),
    "Look at what there is": (
        *(checkpoints.report, checkpoints.app, checkpoints.check, checkpoints.inspect),
        *(catalog.models, catalog.datasets, catalog.recipes),
    ),
    "Share": (checkpoints.export, hub.push, hub.pull),
}


class SectionedGroup(click.Group):
    """Lists the commands under the headings of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                limit = formatter.width - 6 - width
                formatter.write_dl(
                    [(f"{command.name}".ljust(width), command.get_short_help_str(limit)) for command in commands]
                )


@click.group(
    cls=SectionedGroup,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, prog_name="finetune")
def cli() -> None:
    """Pretrains and fine-tunes image classifiers, and tells whether the pretrained weights helped."""


for _commands in COMMANDS.values():
    for _command in _commands:
        cli.add_command(_command)


def main() -> None:
    """Runs the command line. Every error that is raised on purpose ends as one message and an exit code."""
    configure_process()
    output = open_standard_streams()
    try:
        cli.main(prog_name="finetune", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        tell_torchrun(f"finetune: {error.format_message()}")
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except FinetuneError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped by Ctrl-C", 130)
    except OSError as error:
        if output is None or error is not output.error:
            raise
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        whole = amount(available_memory())
        _fail(f"out of memory: this machine has {whole} in all; end other programs, or use one with more", 1)
    if output is not None and output.error is not None:
        _fail_to_print(output.error)


def _fail_to_print(error: OSError) -> None:
    """Ends with 1: what was asked for could not be printed. A reader that has seen enough needs no words."""
    if error.errno == errno.EPIPE:
        sys.exit(1)
    _fail(f"standard output cannot be written ({error.strerror}); what a command writes to files is there", 1)


def _is_out_of_memory(error: Exception) -> bool:
    """Torch's CPU allocator has no exception of its own, and torch may not have been imported."""
    found = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return found or "allocate memory" in str(error)


def _fail(message: str, code: int) -> None:
    first, _, rest = printable_lines(message).partition("\n")  # it may repeat what is in other people's files
    said = f"finetune: {first}" + (f"\n{rest}" if rest else "")
    click.echo(said, err=True)
    tell_torchrun(said)
    sys.exit(code)
