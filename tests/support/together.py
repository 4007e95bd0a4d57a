"""Run by torchrun, as one of several processes: `together.py commands FOLDER [training FOLDER]`.

The first runs the commands that FOLDER/commands.json lists, one after the other, and leaves what each process printed;
the second trains small networks in every way there is and leaves the ends in its FOLDER. What is compared with them is
computed in the same process, alone, so that only the number of processes differs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from networks import NormNet
from safetensors.torch import load, save, save_file
from torch import nn
from training_parts import NORMALISE, images, net, phase

from finetune.cli.main import main
from finetune.data.augment.affine import Augment
from finetune.data.loader import Batches
from finetune.distributed.launch import distributed_context
from finetune.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from finetune.errors import NonFiniteError
from finetune.train import meter
from finetune.train.device import Runtime, seeded
from finetune.train.inference import outputs
from finetune.train.loop import Training, TrainState
from finetune.train.meter import Row, ValidationScore
from finetune.train.parallel import Sharded

CPU = torch.device("cpu")
RANK = int(os.environ.get("RANK", "0"))
ADAMW = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.01}
EVERYTHING = {"l2_sp": 0.1, "keep": "best", "ema": 0.9, "clip_norm": 0.5, "layer_decay": 0.5}
COUNT = 61  # images: batches of 16 do not divide it, and in batches of 15 the last one leaves a process without any
PHASES = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "arguments": ADAMW},
    "everything": EVERYTHING,
    "frozen": {"stages": ("body", "head")},
}
RESUMED = {"plain": ("everything", "adamw"), "norm": ("everything",)}  # by kind of network


class Unused(NormNet):
    """Has trainable numbers that take no part."""

    def __init__(self) -> None:
        super().__init__()
        self.body.add_module("spare", nn.Identity())
        self.body.spare.weight = nn.Parameter(torch.ones(3))


def plain(kind: type[NormNet] = NormNet, seed: int = 0) -> NormNet:
    """Without what depends on which images are in one process: normalisation over the batch, and dropout."""
    with seeded(seed):
        network = kind()
    network.stem[1], network.body[1] = nn.Identity(), nn.Identity()
    network.body[3].p = 0.0
    return network


def train(group, network, given, *, sharding=None, batch_size=16, augment=None, stop=None, state=None):
    """The rows, or the state after `stop` events."""
    pixels, labels = images(count=COUNT)
    options = {"batch_size": batch_size, "seed": 0, "normalize": NORMALISE, "augment": augment, "classes": 3}
    runtime = Runtime(CPU, "float32", group, sharding)
    runtime.place(network)

    def judged():
        return ValidationScore(float(network.head.weight.detach().double().sum().sin()))

    with seeded(0):
        batches = Batches(pixels, labels, **options).shard(group.rank, group.size)
        training = Training(network, batches, given, runtime, first_epoch=3, validate=judged, source=net(seed=9))
        if state is not None:
            training.restore(state)
        rows = []
        for count, event in enumerate(training):
            rows += [event] if isinstance(event, Row) else []
            if count == stop:
                return training.state()
    if isinstance(training.parallel, Sharded):
        part, all_ = (sum(t.numel() for t in ts) for ts in (local_tensors(training), network.parameters()))
        assert part < 0.6 * all_, "each of two processes holds about a half"
    return rows


def local_tensors(training):
    return [p.to_local() for p in training.trained.parameters()]


def handed_over(state: TrainState, group: ProcessGroup) -> TrainState:
    """The leader's state, by way of a file's bytes, in all processes."""
    tensors = {f"network {k}": t for k, t in state.network.items()} | {f"t {k}": t for k, t in state.tensors.items()}
    content = save({k: t.contiguous() for k, t in tensors.items()}) if group.leader else None
    assert group.leader or not tensors, "only the leader holds a state"
    numbers = json.loads(group.broadcast_bytes(json.dumps(state.numbers).encode()))
    parts = [(name.partition(" "), t) for name, t in load(group.broadcast_bytes(content)).items()]
    of = {kind: {name: t for (first, _, name), t in parts if first == kind} for kind in ("network", "t")}
    return TrainState(of["network"], of["t"], numbers)


class Ends:
    """Where networks and rows go: FOLDER/NAME.RANK.safetensors, and FOLDER/RANK.json for the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, {}

    def keep(self, name: str, network: nn.Module, rows: list[Row]) -> None:
        state = {key: t.contiguous() for key, t in network.state_dict().items()}
        save_file(state, self.folder / f"{name}.{RANK}.safetensors")
        self.said[name] = [[row.train_loss, row.train_accuracy, row.validation_accuracy] for row in rows]

    def close(self) -> None:
        (self.folder / f"{RANK}.json").write_text(json.dumps(self.said))


def all_trainings(group: ProcessGroup, ends: Ends) -> None:
    for name, changes in PHASES.items():
        given = phase(steps=12, **changes)
        for kind, make in (("plain", plain), ("norm", net)):
            for way, with_whom, sharding in (
                ("alone", SINGLE_PROCESS, None),
                ("ddp", group, None),
                ("fsdp", group, "fsdp"),
            ):
                network = make()
                ends.keep(f"{way}-{kind}-{name}", network, train(with_whom, network, given, sharding=sharding))
                if way != "alone" and name in RESUMED[kind]:
                    stopped = train(group, make(), given, sharding=sharding, stop=4)
                    state, network = handed_over(stopped, group), make(seed=1)
                    rows = train(group, network, given, sharding=sharding, state=state)
                    ends.keep(f"{way}-{kind}-{name}-resumed", network, rows)
                    network = make(seed=1)
                    ends.keep(f"{way}-{kind}-{name}-alone", network, train(SINGLE_PROCESS, network, given, state=state))
    others = {
        "mixed": (plain, {"augment": Augment(shift=1, mixup=0.3, cutmix=0.5)}),
        "fifteen": (plain, {"batch_size": 15}),
        "single": (plain, {"batch_size": 1}),
        "unused": (lambda: plain(Unused), {}),
    }
    for name, (make, options) in others.items():
        for way, with_whom in (("alone", SINGLE_PROCESS), ("ddp", group)):
            network = make()
            ends.keep(f"{way}-{name}", network, train(with_whom, network, phase(steps=12), **options))


def all_else(group: ProcessGroup, ends: Ends) -> None:
    network, (pixels, _) = net(), images(1234)
    seen = [outputs(network, pixels[:n], NORMALISE, stop=stop, group=group) for n in (1234, 3) for stop in (None, 1)]
    alone = [outputs(network, pixels[:n], NORMALISE, stop=stop) for n in (1234, 3) for stop in (None, 1)]
    ends.said["evaluation"] = [torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(seen, alone, strict=True)]
    half = group.all_gather(torch.full((2, 3), group.rank).to(torch.bfloat16), [1] * 2 * group.size)
    ends.said["gathered"] = half.tolist()
    own = torch.tensor([float(group.rank), 1.0])
    ends.said["sum"] = group.sum(own).tolist()
    group.average([own])
    ends.said["average"] = own.tolist()
    own.fill_(group.rank)
    group.broadcast_([own])
    ends.said["same"] = own.tolist()
    ends.said["vote"] = group.all_reduce_max_async(group.rank == 1, False, True)()
    ends.said["shared"] = [len(group.broadcast_bytes(text if group.leader else None)) for text in (b"", b"x" * 100_000)]
    begun = ends.folder / "begun"
    with group.leader_first("a mark"):
        ends.said["there"] = begun.exists()
        begun.touch()
    ends.said["lost"] = lost(group)
    network = net()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    train(group, network, replace(phase(steps=3), stages=("head",)))
    ends.said["moved"] = [n for n, t in network.state_dict().items() if not torch.equal(t, before[n])]


def lost(group: ProcessGroup) -> list[object]:
    """What each process says when a loss in the part of one of them is not a number, and whether a weight changed."""
    kept = torch.ones(COUNT, 6, 8, 8)
    kept[7] = torch.nan
    batches = Batches(kept, torch.arange(COUNT) % 3, batch_size=16, seed=0).shard(group.rank, group.size)
    network = plain()
    training = Training(network, batches, phase(("head",), start=2), Runtime(CPU, "float32", group))
    before = network.head.weight.detach().clone()
    try:
        for _ in training:
            before = network.head.weight.detach().clone()
    except NonFiniteError as error:
        return [str(error), list(error.images), torch.equal(network.head.weight, before)]
    return []


def run_commands(folder: Path) -> None:
    """Every command as the command line runs it; for one process alone the environment may be changed."""
    for place, command in enumerate(json.loads((folder / "commands.json").read_text())):
        out, err, code = io.StringIO(), io.StringIO(), 0
        sys.argv = ["finetune", *command["words"]]
        before = dict(os.environ)
        os.environ.update(command.get("environment", {}).get(str(RANK), {}))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        os.environ.clear()
        os.environ.update(before)
        said = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
        (folder / f"{place}.{RANK}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    places = dict(zip(sys.argv[1::2], map(Path, sys.argv[2::2]), strict=True))
    meter.TICK = 0.0
    run_commands(places["commands"])
    if "training" in places:
        found = Ends(places["training"])
        with distributed_context("cpu") as processes:
            all_trainings(processes, found)
            all_else(processes, found)
        found.close()
