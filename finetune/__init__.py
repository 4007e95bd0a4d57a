"""Pretrain and fine-tune image classifiers, and tell whether the pretrained weights helped.

    >>> import finetune
    >>> report = finetune.pretrain("recipes/digits.yaml")
    >>> report = finetune.adapt("checkpoints/mnist.safetensors", "kmnist")
    >>> classifier = finetune.load("checkpoints/mnist-kmnist.safetensors")
    >>> classifier.predict(["image.png"])[0].label

Importing this package imports neither torch nor anything else that is slow; that happens at the first use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it; importing typing takes a third of the time until Ctrl-C can be answered
if TYPE_CHECKING:
    from typing import Any

    from finetune.commands.adapt import adapt
    from finetune.commands.calibrate import Calibration, calibrate
    from finetune.commands.check import check
    from finetune.commands.compare import compare
    from finetune.commands.evaluate import evaluate
    from finetune.commands.export import export_checkpoint
    from finetune.commands.predict import FilePrediction, predict
    from finetune.commands.pretrain import pretrain
    from finetune.commands.pull import pull
    from finetune.commands.push import push
    from finetune.commands.report import html_report
    from finetune.commands.verify import verify
    from finetune.commands.where import where
    from finetune.models.classifier import Classifier, Prediction
    from finetune.report.check_report import CheckReport
    from finetune.report.curve_report import CurveReport
    from finetune.report.ranking import RankReport
    from finetune.report.report import Report
    from finetune.report.where_report import WhereReport
    from finetune.sources.resolve import load
    from finetune.sources.save import save
    from finetune.study.curve import curve
    from finetune.study.folds import adapt_folds
    from finetune.study.rank import rank
    from finetune.study.seeds import adapt_seeds
    from finetune.system import VERSION

    __version__ = VERSION

__all__ = [
    "Calibration",
    "CheckReport",
    "Classifier",
    "CurveReport",
    "FilePrediction",
    "Prediction",
    "RankReport",
    "Report",
    "WhereReport",
    "adapt",
    "adapt_folds",
    "adapt_seeds",
    "calibrate",
    "check",
    "compare",
    "curve",
    "evaluate",
    "export_checkpoint",
    "html_report",
    "load",
    "predict",
    "pretrain",
    "pull",
    "push",
    "rank",
    "save",
    "verify",
    "where",
]

_HOMES = {
    "Calibration": "finetune.commands.calibrate",
    "CheckReport": "finetune.report.check_report",
    "Classifier": "finetune.models.classifier",
    "CurveReport": "finetune.report.curve_report",
    "FilePrediction": "finetune.commands.predict",
    "Prediction": "finetune.models.classifier",
    "RankReport": "finetune.report.ranking",
    "Report": "finetune.report.report",
    "WhereReport": "finetune.report.where_report",
    "adapt": "finetune.commands.adapt",
    "adapt_folds": "finetune.study.folds",
    "adapt_seeds": "finetune.study.seeds",
    "calibrate": "finetune.commands.calibrate",
    "check": "finetune.commands.check",
    "compare": "finetune.commands.compare",
    "curve": "finetune.study.curve",
    "evaluate": "finetune.commands.evaluate",
    "export_checkpoint": "finetune.commands.export",
    "html_report": "finetune.commands.report",
    "load": "finetune.sources.resolve",
    "predict": "finetune.commands.predict",
    "pretrain": "finetune.commands.pretrain",
    "pull": "finetune.commands.pull",
    "push": "finetune.commands.push",
    "rank": "finetune.study.rank",
    "save": "finetune.sources.save",
    "verify": "finetune.commands.verify",
    "where": "finetune.commands.where",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from finetune.system import VERSION

        return VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    from importlib import import_module
    from types import FunctionType

    found = getattr(import_module(_HOMES[name]), name)
    if isinstance(found, FunctionType):
        from finetune.arguments import check_arguments

        found = check_arguments(found)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
