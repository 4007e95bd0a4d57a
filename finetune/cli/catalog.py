"""Commands that list models, data sets and recipes."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import example, print_json, print_lines, print_listing, with_options


@click.command(epilog=example("finetune models 'timm/mobilenet*'"))
@click.argument("name", required=False)
@with_options("json")
def models(name: str | None, as_json: bool) -> None:
    """The models; with a name, its stages and parameter counts.

    A pattern lists the names that it matches: 'timm/mobilenet*'.
    """
    from finetune.commands import listing

    if name is not None and set(name) & set("*?"):
        found = listing.matching_models(name)
        print_json(found) if as_json else print_lines(found)
    else:
        print_listing(listing.models() if name is None else listing.model_details(name), as_json)


@click.command(epilog=example("finetune datasets kmnist-sample"))
@click.argument("name", required=False)
@with_options("data-root", "json")
def datasets(name: str | None, data_root: Path | None, as_json: bool) -> None:
    """The data sets and whether their files are there; with a name, its details."""
    from finetune.commands import listing
    from finetune.paths import data_root as resolve_data_root

    root = resolve_data_root(data_root)
    if name is not None:
        print_listing(listing.dataset_details(name, root), as_json)
    elif as_json:
        print_json(listing.datasets(root))
    else:
        found = listing.datasets(root).items()
        print_listing({key: f"{v['classes']} classes, {'here' if v['present'] else 'absent'}" for key, v in found})


@click.command(epilog=example("finetune recipes adapt"))
@click.argument("name", required=False)
@with_options("json")
def recipes(name: str | None, as_json: bool) -> None:
    """The shipped recipes; with a name, its text."""
    from finetune.commands import listing

    if name is None:
        print_listing(listing.recipes(), as_json)
    elif as_json:
        print_json({"name": name, "text": listing.recipe_text(name)})
    else:
        click.echo(listing.recipe_text(name), nl=False)
