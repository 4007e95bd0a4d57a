"""Races of a resnet18 on photographs."""

from __future__ import annotations

from contest import Contestant, Race
from environments import OURS
from judging import Claim, Round, each, ratio

ADAPT, ROWS = "finetune.commands.adapt", "finetune.commands.baselines"
RESNET = (
    "adapt",
    "--from",
    "{work}/resnet18.safetensors",
    "--model",
    "timm/resnet18",
    "--target",
    "{work}/photographs",
)
WATCHED = (
    *("--preload", "timm", "--watch", f"work={ADAPT}:adapt", "--watch", "data=finetune.run.setup:open_run_data"),
    *("--watch", f"look={ROWS}:extract_source_features", "--watch", f"train={ROWS}:run_phases"),
)


def _resnet(name: str, recipe: str, *before: str) -> Contestant:
    return Contestant(
        name, "ours.py", OURS, (*WATCHED, *before, *RESNET, "--recipe", f"benchmarks/recipes/{recipe}.yaml")
    )


def _photographs(recipe: str, thawed: int) -> tuple[Contestant, ...]:
    def peer(name: str, environment: str, *arguments: str) -> Contestant:
        given = ("--epochs", "4", "--thawed", str(thawed), *arguments)
        return Contestant(name, f"{environment}_photographs.py", environment, given, ("--epochs", "1"))

    return (
        _resnet("finetune", recipe),
        peer("plain torch + timm", "torch"),
        peer("plain torch + timm, bfloat16", "torch", "--precision", "bfloat16"),
        peer("Lightning", "lightning"),
        peer("Lightning, bfloat16", "lightning", "--precision", "bfloat16"),
        peer("fastai", "fastai"),
    )


PASS = Contestant("one forward pass", "forward_pass.py", OURS)
FROZEN, ALL = _photographs("photographs-frozen", 0), _photographs("photographs-all", 1)
PEERS = tuple(contestant.name for contestant in FROZEN[1:])
AS_THEY_COME = tuple(name for name in PEERS if "bfloat16" not in name)


def _forward_passes(one: Round) -> float:
    """What finetune takes between reading and testing, the head's steps aside, in passes over the training images."""
    ours = one["finetune"]
    return (ours["look_seconds"] + ours["train_seconds"] - ours["rows_seconds"]) / one[PASS.name]["pass_seconds"]


RACES: tuple[Race, ...] = (
    Race(
        "photographs-frozen",
        "Photographs: four epochs of the head",
        "resnet18 on 2,000 photographs of 64 pixels, 500 to test; the clock runs from the first picture read to the "
        "test's accuracy, after all imports. finetune also tests the source before training, the others do not.",
        (*FROZEN, PASS),
        (
            Claim(
                "4 frozen epochs: the quickest peer as it comes, in float32, takes",
                ratio(AS_THEY_COME, "finetune", "work_seconds"),
                "times as long",
                at_least=5,
            ),
            Claim(
                "the quickest peer, bfloat16 too, takes",
                ratio(PEERS, "finetune", "work_seconds"),
                "times as long",
                at_least=5,
            ),
            Claim(
                "4 frozen epochs without the head's steps, reading and testing",
                each(_forward_passes),
                "forward passes",
                at_most=1.3,
            ),
        ),
        photographs=True,
    ),
    Race(
        "photographs-all",
        "Photographs: four epochs of the head, one of all layers",
        "The same, then one epoch of all layers.",
        ALL,
        (
            Claim(
                "4 frozen epochs and 1 of all layers: the quickest peer, bfloat16 too, takes",
                ratio(PEERS, "finetune", "work_seconds"),
                "times as long",
                at_least=1,
            ),
        ),
        photographs=True,
    ),
    Race(
        "second-adapt",
        "A second adapt on the same folder",
        "The photographs are read again, what the first run kept is there; the share is of the time after imports.",
        (
            _resnet("4 frozen epochs", "photographs-frozen", "--again"),
            _resnet("4 frozen epochs, 1 of all layers", "photographs-all", "--again"),
        ),
        tuple(
            Claim(
                f"second adapt: time spent on data, {name}",
                each(lambda one, name=name: one[name]["data_seconds"] / one[name]["work_seconds"]),
                "%",
                at_most=0.05,
            )
            for name in ("4 frozen epochs", "4 frozen epochs, 1 of all layers")
        ),
        rounds=3,
        photographs=True,
    ),
)
