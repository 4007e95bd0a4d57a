"""Every command's help as one page: `python -m finetune.help > docs/commands.md`."""

from __future__ import annotations

import click

from finetune.cli import cli


def commands_markdown() -> str:
    """The page, in the order in which `finetune --help` lists the commands."""
    parts = ["# Commands\n", "Made by `make docs` from the program's own help.\n", _block(cli, "finetune", None)]
    parent = click.Context(cli, info_name="finetune")
    for name in cli.list_commands(parent):
        parts += [f"## finetune {name}\n", _block(cli.commands[name], name, parent)]
    return "\n".join(parts)


def _block(command: click.Command, name: str, parent: click.Context | None) -> str:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    return f"```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    print(commands_markdown(), end="")
