"""Generates docs/commands.md from the commands' help."""

from __future__ import annotations

import click

from finetune.cli.main import cli

WIDTH = 100  # columns


def commands_markdown() -> str:
    """The page, in the order in which `finetune --help` lists the commands."""
    parent = click.Context(cli, info_name="finetune", **{**cli.context_settings, "terminal_width": WIDTH})
    parts = ["# Commands\n", "Made by `make docs` from the program's own help.\n", _block(parent)]
    for name in cli.list_commands(parent):
        context = click.Context(cli.commands[name], info_name=name, parent=parent)
        parts += [f"## finetune {name}\n", _block(context)]
    return "\n".join(parts)


def _block(context: click.Context) -> str:
    return f"```text\n{context.get_help()}\n```\n"


if __name__ == "__main__":
    print(commands_markdown(), end="")
