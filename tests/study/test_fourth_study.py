"""A fourth kind of study is one short file: this one asks which of several values of a recipe is best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import adapt_recipe, phase

from finetune.errors import SettingError
from finetune.report.crossed import crossed_mean
from finetune.run.options import start_run
from finetune.study.analysis import rights
from finetune.study.design import open_study_recipe, row_trials
from finetune.study.runner import StudyFolder, TrialOptions, completed, run_trials
from finetune.study.trial import TrialRunner


def compare_values(source, target, recipe, key, values, *, seeds, resume=False):
    """Accuracy and interval of the fine-tuned network for each value of a recipe's key."""
    with start_run({"resume": resume}) as call:
        trials = {}
        for value in values:
            changed = open_study_recipe(source, recipe, ({"data.name": target, key: value}, {}), call)
            label = f"{key}-{value}"
            trials[value] = row_trials(source, changed, ("after",), seeds, shots=None, label=label, answers_only=True)
        runner = TrialRunner(call)
        with StudyFolder(Path("runs/values"), {"study": "values", "key": key, "values": values}, call) as folder:
            every = [trial for own in trials.values() for trial in own]
            found = completed(run_trials(every, folder, TrialOptions(), runner))
        test = runner.setup(trials[values[0]][0]).data.test
        answers = {value: [found[t.name].answers["after"] for t in own] for value, own in trials.items()}
        return {value: crossed_mean(rights(test, own)) for value, own in answers.items()}


def test_a_fourth_study_runs_resumes_and_keeps_out_of_another(folder, pretrained):
    Path("adapt.yaml").write_text(adapt_recipe(phase("all", "steps: 4", 10)))
    given = (str(pretrained), "kmnist", "adapt.yaml", "phases[0].steps")
    found = compare_values(*given, [1, 12], seeds=[0, 1])
    assert found[12].mean > found[1].mean and all(np.isfinite(one.ci95).all() for one in found.values())
    times = {path: path.stat().st_mtime_ns for path in Path("runs/values/trials").rglob("manifest.json")}
    again = compare_values(*given, [1, 12], seeds=[0, 1], resume=True)
    assert again == found and len(times) == 4
    assert times == {path: path.stat().st_mtime_ns for path in Path("runs/values/trials").rglob("manifest.json")}
    with pytest.raises(SettingError, match="another study"):
        compare_values(*given, [1, 3], seeds=[0, 1], resume=True)
