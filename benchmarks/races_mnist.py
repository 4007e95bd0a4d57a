"""Races of the article's network on MNIST."""

from __future__ import annotations

from contest import Contestant, Race
from environments import OURS
from judging import Claim, apart, each, mean, ratio

FEW = ("--set", "data.shots=200")  # of each of ten classes
LIMIT = ("--limit", "2000")


def _ours(name: str, *arguments: str, small: tuple[str, ...] = FEW) -> Contestant:
    return Contestant(name, "ours.py", OURS, arguments, small)


def _fast(name: str, *arguments: str) -> Contestant:
    small = (*FEW, "--set", "phases[0].steps=40")
    return _ours(name, "pretrain", "--recipe", "recipes/mnist-fast.yaml", *arguments, small=small)


def _epoch(name: str, precision: str) -> Contestant:
    recipe = "benchmarks/recipes/cnn-epoch.yaml"
    return _ours(name, "pretrain", "--recipe", recipe, "--set", f"precision={precision}")


KERAS = ("Keras, arrays", "Keras, tf.data", "Keras, tf.data, bfloat16")
EPOCH = (
    _epoch("finetune", "auto"),
    _epoch("finetune, float32", "float32"),
    Contestant("article's loop", "article_loop.py", "torch", (), LIMIT),
    Contestant("plain torch", "torch_cnn.py", "torch", (), LIMIT),
    Contestant("plain torch, bfloat16", "torch_cnn.py", "torch", ("--precision", "bfloat16"), LIMIT),
    Contestant(KERAS[0], "keras_cnn.py", "keras", ("--pipeline", "arrays"), LIMIT),
    Contestant(KERAS[1], "keras_cnn.py", "keras", ("--pipeline", "tf.data"), LIMIT),
    Contestant(KERAS[2], "keras_cnn.py", "keras", ("--pipeline", "tf.data", "--precision", "bfloat16"), LIMIT),
    Contestant("fastai, DataBlock", "fastai_cnn.py", "fastai", ("--pipeline", "datablock", "--workers", "2"), LIMIT),
    Contestant("fastai, tensors", "fastai_cnn.py", "fastai", ("--pipeline", "tensors"), LIMIT),
    Contestant(
        "fastai, tensors, workers", "fastai_cnn.py", "fastai", ("--pipeline", "tensors", "--workers", "2"), LIMIT
    ),
    Contestant("Lightning", "lightning_cnn.py", "lightning", (), LIMIT),
    Contestant("Lightning, bfloat16", "lightning_cnn.py", "lightning", ("--precision", "bfloat16"), LIMIT),
    Contestant(
        "Lightning, bfloat16, workers",
        "lightning_cnn.py",
        "lightning",
        ("--precision", "bfloat16", "--workers", "2"),
        LIMIT,
    ),
)


STEADY = tuple(
    Contestant(f"{precision}, {what}", "steady.py", OURS, ("--precision", precision, "--augment", augment), LIMIT)
    for precision in ("auto", "float32")
    for what, augment in (("not augmented", "none"), ("shifted", "shift"), ("rotated, scaled, sheared", "affine"))
)
RACES: tuple[Race, ...] = (
    Race(
        "mnist-99",
        "MNIST to 99.1 %",
        "The article's script as written, and `finetune pretrain --recipe recipes/mnist-fast.yaml`: whole processes, "
        "imports and test included, a seed a round.",
        (_fast("finetune"), Contestant("article's script", "article_script.py", "torch", (), LIMIT)),
        (
            Claim(
                "MNIST to 99.1 %: the article's script takes",
                ratio("article's script", "finetune", "seconds"),
                "times as long",
                at_least=15,
            ),
            Claim("its accuracy, mean over the seeds", mean("finetune", "accuracy"), "%", at_least=0.991),
        ),
        mnist=True,
    ),
    Race(
        "epoch",
        "An epoch of the article's network",
        "60,000 images in batches of 128, SGD; images/s of the second of two epochs, so that imports and compilation "
        "do not count. As shipped, finetune is in bfloat16 where the processor is fast at it.",
        EPOCH,
        (
            Claim(
                "an epoch of `cnn`: images/s against the article's loop",
                ratio("finetune", "article's loop", "images_per_second"),
                "times",
                at_least=3,
            ),
            Claim(
                "the same, float32 both",
                ratio("finetune, float32", "article's loop", "images_per_second"),
                "times",
                at_least=3,
            ),
            Claim(
                "against Keras in float32, the quicker of its pipelines",
                ratio("finetune", KERAS[:2], "images_per_second", max),
                "times",
                at_least=2.5,
            ),
            Claim(
                "against Keras, float32 both",
                ratio("finetune, float32", KERAS[:2], "images_per_second", max),
                "times",
                at_least=2.5,
            ),
            Claim(
                "against Keras, bfloat16 both",
                ratio("finetune", KERAS[2], "images_per_second"),
                "times",
                at_least=2.5,
            ),
        ),
        rounds=3,
        mnist=True,
    ),
    Race(
        "steady",
        "Steady training against bare steps",
        "finetune's loop over whole epochs against the same steps on one batch that lies ready, in one process.",
        STEADY,
        tuple(
            Claim(
                f"steady images/s against a fixed batch: {contestant.name}",
                each(lambda one, name=contestant.name: one[name]["share"]),
                "%",
                at_least=0.9,
            )
            for contestant in STEADY
        ),
        rounds=3,
    ),
    Race(
        "memory",
        "Memory of a pretrain on MNIST",
        "One epoch of `recipes/mnist.yaml`, test included; the largest process, shared libraries included.",
        (
            _ours(
                "finetune",
                *("pretrain", "--recipe", "recipes/mnist.yaml", "--set", "phases[0].epochs=1"),
                small=(*FEW, "--set", "data.validation=200"),
            ),
        ),
        (
            Claim(
                "peak memory of a pretrain on MNIST",
                each(lambda one: one["finetune"]["peak_bytes"]),
                "GB",
                at_most=1e9,
            ),
        ),
        rounds=3,
        mnist=True,
    ),
    Race(
        "precision",
        "bfloat16 against float32",
        "`recipes/mnist-fast.yaml` in both, a seed a round.",
        (_fast("float32", "--set", "precision=float32"), _fast("bfloat16", "--set", "precision=bfloat16")),
        (
            Claim(
                "accuracy in bfloat16 and float32: means apart, as a part of the larger range",
                apart("float32", "bfloat16", "accuracy"),
                "%",
                at_most=1,
            ),
        ),
        mnist=True,
    ),
)
