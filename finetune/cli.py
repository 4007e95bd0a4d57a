"""The command line: parses, calls one command, prints. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune import __version__
from finetune.errors import DataError, FinetuneError, SettingError, UserError
from finetune.options import RUN, shared

if TYPE_CHECKING:
    from finetune.reporting.console import Console

EXIT_CODES = """\b
Exit codes:
    0  done
    1  the run failed
    2  something given is wrong: a file, a name, a value
  130  stopped by Ctrl-C"""


class Story(click.Group):
    """Lists the commands in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=Story, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="finetune")
def cli() -> None:
    """Pretrains and fine-tunes image classifiers, and tells whether the pretrained weights helped."""


def main() -> None:
    """Runs the command line. Every error that is raised on purpose ends as one message and an exit code."""
    # Threads that go on spinning while they wait take most of the speed on a machine with other work (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except FinetuneError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped by Ctrl-C", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        _fail("out of memory; a smaller batch_size in the recipe needs less", 1)


def _fail(message: str, code: int) -> None:
    first, _, rest = message.partition("\n")
    click.echo(f"finetune: {first}" + (f"\n{rest}" if rest else ""), err=True)
    sys.exit(code)


@cli.command()
@shared("recipe", *RUN)
def pretrain(
    recipe: Path,
    out: Path | None,
    data_root: Path | None,
    device: str,
    seed: int | None,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Trains from scratch; writes a checkpoint and its report."""
    from finetune.commands.pretrain import pretrain as run

    console = _console(quiet, results=not as_json)
    overrides = [*settings, *_override("seed", seed)]
    report = run(recipe, out=out, root=data_root, device=device, overrides=overrides, console=console)
    if as_json:
        click.echo(report.to_json(), nl=False)


@cli.command()
@click.option(
    "--from",
    "source",
    required=True,
    metavar="SOURCE",
    help="What to start from: a checkpoint, timm:NAME[.TAG], or a bare safetensors file with --model.",
)
@click.option("--recipe", type=click.Path(path_type=Path), default="recipes/adapt.yaml", show_default=True)
@shared("model", "target", "shots", *RUN)
@click.option("--no-compare", is_flag=True, help="Leaves out the linear probe and the run from scratch.")
def adapt(
    source: str,
    recipe: Path,
    model: str | None,
    target: str | None,
    shots: int | None,
    no_compare: bool,
    out: Path | None,
    data_root: Path | None,
    device: str,
    seed: int | None,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Fine-tunes a checkpoint on a target and tells what that brought; writes a checkpoint and its report."""
    from finetune.commands.adapt import adapt as run

    console = _console(quiet, results=not as_json)
    overrides = [*_model(model), *settings, *_target(target)]
    overrides += [*_override("data.shots", shots), *_override("seed", seed)]
    report = run(
        source,
        recipe,
        compare=not no_compare,
        out=out,
        root=data_root,
        device=device,
        overrides=overrides,
        console=console,
    )
    if as_json:
        click.echo(report.to_json(), nl=False)


@cli.command()
@click.argument("checkpoint")
@click.option(
    "--data", required=True, metavar="DATA", help="Whose test images to use: a data set, a folder or a CSV file."
)
@click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="Pictures that cannot be read: list them and stop, or go on without them.",
)
@click.option(
    "--confusion", type=click.Path(path_type=Path), metavar="PNG", help="Draws the confusion matrix as a picture."
)
@shared("data-root", "device", "json")
def evaluate(
    checkpoint: str,
    data: str,
    on_bad_image: str,
    confusion: Path | None,
    data_root: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Accuracy with its interval, per class, and the most frequent mistakes."""
    from finetune.commands.evaluate import evaluate as run
    from finetune.reporting.pictures import confusion_picture
    from finetune.reporting.tables import evaluation_parts

    console = _console(results=not as_json)
    found = run(checkpoint, data, root=data_root, device=device, on_bad_image=on_bad_image, console=console)
    if confusion is not None:
        confusion_picture(found.result.confusion or [], found.classes, confusion)
        console.note(f"wrote {confusion}")
    if as_json:
        _print_json(found.to_dict())
        return
    parts = evaluation_parts(found.result, found.data, found.classes, found.claimed, found.left_out, found.not_offered)
    for part in parts:
        console.show(part)


@cli.command()
@click.argument("checkpoint")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes to name per picture.")
@click.option("--tta", type=click.Choice(["flip"]), help="Averages over the picture and its mirror image.")
@shared("device", "json")
def predict(checkpoint: str, images: tuple[str, ...], top: int, tta: str | None, device: str, as_json: bool) -> None:
    """Label and probability for pictures: files, folders, or - for paths on standard input."""
    from finetune.commands.predict import predict as run
    from finetune.reporting.tables import sight_line

    found = []
    for sight in run(checkpoint, images, top=top, flip=tta == "flip", device=device):
        found.append(sight)
        if not as_json and sight.error is None:
            click.echo(sight_line(sight.file, sight.top))
    if as_json:
        _print_json([sight.to_dict() for sight in found])
    bad = [sight.error for sight in found if sight.error is not None]
    if bad:
        raise DataError("\n  ".join([f"{len(bad)} of {len(found)} pictures could not be read:", *bad]))


@cli.command()
@shared("recipe")
@click.option("--from", "source", metavar="SOURCE", help="What to start from, for an adapt recipe, as in adapt.")
@shared("model", "target", "shots", "data-root", "device", "seed", "set", "json")
@click.option(
    "--show-augment",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Draws training images as the phases would see them.",
)
def plan(
    recipe: Path,
    source: str | None,
    model: str | None,
    target: str | None,
    shots: int | None,
    data_root: Path | None,
    device: str,
    seed: int | None,
    settings: tuple[str, ...],
    as_json: bool,
    show_augment: Path | None,
) -> None:
    """Trains nothing: says what each phase would train, at which learning rates, and for how long."""
    from finetune.commands.plan import plan as run
    from finetune.reporting.tables import plan_parts

    overrides = [*_model(model), *settings, *_target(target)]
    overrides += [*_override("data.shots", shots), *_override("seed", seed)]
    console = _console(results=not as_json)
    found = run(
        recipe,
        source=source,
        root=data_root,
        device=device,
        overrides=overrides,
        show_augment=show_augment,
        console=console,
    )
    if as_json:
        _print_json(found.to_dict())
    else:
        for part in plan_parts(found.to_dict()):
            console.show(part)


@cli.command()
@click.argument("checkpoint")
@shared("json")
def inspect(checkpoint: str, as_json: bool) -> None:
    """What is in a checkpoint: model, classes, input, recipe, data, results, lineage."""
    from finetune.commands.inspect import inspect as run
    from finetune.reporting.tables import mapping_lines

    found = run(checkpoint)
    if as_json:
        _print_json(found)
    else:
        _print_lines(mapping_lines(found))


@cli.command()
@click.argument("checkpoint")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Makes a new repository private.")
@click.option("--tag", metavar="TAG", help="Names the result, for example v1.")
@click.option("--message", metavar="TEXT", help="The commit's message [default: what the model is].")
@click.option("--create-pr", is_flag=True, help="Proposes the files in a pull request instead.")
@click.option("--license", "licence", metavar="ID", help="The weights' licence, for example mit or cc-by-4.0.")
@click.option("--dry-run", is_flag=True, help="Writes the files to hub/OWNER/NAME, shows them, and sends nothing.")
@click.option("--yes", is_flag=True, help="Replaces another model that is there, without asking.")
@shared("json", "quiet")
def push(checkpoint: str, repository: str, as_json: bool, quiet: bool, **given: Any) -> None:
    """Uploads a checkpoint, its configuration, recipe, report and model card to the Hub, in one commit."""
    from finetune.commands.push import push as run

    confirm = None
    if sys.stdin.isatty() and sys.stderr.isatty():
        confirm = lambda question: click.confirm(question, err=True)  # noqa: E731
    done = run(checkpoint, repository, confirm=confirm, console=_console(quiet, as_json), **given)
    if as_json:
        _print_json(done.to_dict())


@cli.command()
@click.argument("repository", metavar="OWNER/NAME[@REVISION]")
@shared("out", "json", "quiet")
def pull(repository: str, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Downloads weights from the Hub, compares their hash, and writes them as a checkpoint."""
    from finetune.commands.pull import pull as run

    done = run(repository, out=out, console=_console(quiet, as_json))
    if as_json:
        _print_json(done.to_dict())


@cli.command()
@click.argument("name", required=False)
@shared("json")
def models(name: str | None, as_json: bool) -> None:
    """The models; with a name, its stages and parameter counts.

    A pattern lists the names that it matches: 'timm/mobilenet*'.
    """
    from finetune.commands import listing

    if name is not None and set(name) & set("*?"):
        found = listing.matching_models(name)
        _print_json(found) if as_json else _print_lines(found)
    else:
        _print_listing(listing.models() if name is None else listing.model_details(name), as_json)


@cli.command()
@click.argument("name", required=False)
@shared("data-root", "json")
def datasets(name: str | None, data_root: Path | None, as_json: bool) -> None:
    """The data sets and whether their files are there; with a name, its details."""
    from finetune.commands import listing
    from finetune.data.root import data_root as root_of

    root = root_of(data_root)
    if name is not None:
        _print_listing(listing.dataset_details(name, root), as_json)
    elif as_json:
        _print_json(listing.datasets(root))
    else:
        found = listing.datasets(root).items()
        _print_listing({key: f"{v['classes']} classes, {'here' if v['present'] else 'absent'}" for key, v in found})


@cli.command()
@click.argument("name", required=False)
@shared("json")
def recipes(name: str | None, as_json: bool) -> None:
    """The shipped recipes; with a name, its text."""
    from finetune.commands import listing

    if name is None:
        _print_listing(listing.recipes(), as_json)
    elif as_json:
        _print_json({"name": name, "text": listing.recipe_text(name)})
    else:
        click.echo(listing.recipe_text(name), nl=False)


def _console(quiet: bool = False, results: bool = True) -> Console:
    from finetune.reporting.console import Console

    return Console(quiet=quiet, results=results)


def _override(key: str, value: object) -> list[str]:
    return [] if value is None else [f"{key}={json.dumps(value, ensure_ascii=False)}"]


def _model(name: str | None) -> list[str]:
    return _override("model.name", name)


def _target(name: str | None) -> list[str]:
    """`--target` as a setting; a name that is not known is reported as what was typed."""
    if name is None:
        return []
    from finetune.data.catalog import find_dataset
    from finetune.data.photographs import is_photographs

    try:
        if not is_photographs(name):
            find_dataset(name)
    except UserError as error:
        raise SettingError(f"--target {name}: {error}") from None
    return _override("data.name", name)


def _print_json(values: object) -> None:
    click.echo(json.dumps(values, indent=1, ensure_ascii=False))


def _print_listing(values: dict[str, Any], as_json: bool = False) -> None:
    from finetune.reporting.tables import mapping_lines

    if as_json:
        _print_json(values)
    else:
        _print_lines(mapping_lines(values))


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)
