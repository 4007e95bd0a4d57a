"""What the person sees, on a terminal and elsewhere; and the tables, at the widths of real screens."""

import os
import pty
import re
import subprocess
import sys
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console as RichConsole
from rich.console import Group
from rich.table import Table
from tiny import SUPPORT

from finetune.report.comparison import Score, compare
from finetune.report.console import Console
from finetune.report.report import Report, Result, Retention, TargetSummary
from finetune.report.statistics import Confusion
from finetune.report.tables import (
    class_table,
    confusion_lines,
    evaluation_parts,
    mapping_lines,
    percent,
    plan_parts,
    report_tables,
)

LITERAL = "[red]x[/red] [/] :100: [bold]recipe.yaml:100: a[1].b 'text' 3.14 <ü>"


def plain_table(title, columns, rows):
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def run_phase(console):
    with console.phase("phase head: 100 steps", 100) as view:
        view.tick(1, 10, 0.5, 0.9, 1234.5)
        view.tick(2, 50, 0.25, 0.9912, 123456.7)
        if view.bar is not None:
            view.bar.refresh()
        view.row("  epoch 1/2: loss 0.5000")


def terminal(console, width):
    """The console with its progress on a terminal of that width, and what was written there."""
    screen = StringIO()
    console.err = RichConsole(file=screen, force_terminal=True, width=width, highlight=False, markup=False, emoji=False)
    return screen


def drawn(table, width=120):
    screen = StringIO()
    RichConsole(file=screen, width=width, highlight=False, markup=False, emoji=False).print(table)
    return screen.getvalue()


def cells(text):
    """The rows of a drawn table, each a list of texts, lines of a wrapped cell put together."""
    rows, fresh = [], True
    for line in text.splitlines():
        if line.startswith(("│", "┃")):
            parts = [part.strip() for part in line.strip("│┃").replace("┃", "│").split("│")]
            if fresh or parts[0]:
                rows.append(parts)
            else:
                rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], parts, strict=True)]
            fresh = False
        else:
            fresh = True
    return rows


# --- console ----------------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(capsys):
    console = Console()
    run_phase(console)
    console.note(LITERAL)
    console.warn("look out")
    console.say(LITERAL)
    out, err = capsys.readouterr()
    assert out == f"{LITERAL}\n"
    assert err == f"phase head: 100 steps\n  epoch 1/2: loss 0.5000\n{LITERAL}\nwarning: look out\n"


def test_long_lines_are_not_broken(capsys):
    console, long = Console(), " ".join(["word"] * 200)
    console.note(long)
    console.say(long)
    assert tuple(capsys.readouterr()) == (f"{long}\n", f"{long}\n")


def test_quiet_leaves_progress_out_and_warnings_in(capsys):
    console = Console(quiet=True)
    run_phase(console)
    console.note("a remark")
    console.warn("look out")
    console.say("the result")
    console.show(plain_table("t", ["a"], [["b"]]))
    out, err = capsys.readouterr()
    assert err == "warning: look out\n"
    assert out.startswith("the result\n") and "│ b" in out


def test_quiet_shows_no_bar_on_a_terminal_either():
    console = Console(quiet=True)
    screen = terminal(console, 80)
    run_phase(console)
    assert screen.getvalue() == ""


def test_for_programs_standard_output_is_left_alone(capsys):
    console = Console(results=False)
    run_phase(console)
    console.say("the result")
    console.show(plain_table("t", ["a"], [["b"]]))
    out, err = capsys.readouterr()
    assert out == "" and "epoch 1/2" in err


def test_the_log_has_every_line_even_when_quiet(tmp_path, capsys):
    console = Console(quiet=True, results=False)
    console.note("before there was a log")
    console.log = tmp_path / "log.txt"
    run_phase(console)
    console.note(LITERAL)
    console.warn("look out")
    console.say("größer")
    lines = console.log.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    expected = ["phase head: 100 steps", "  epoch 1/2: loss 0.5000", LITERAL, "warning: look out", "größer"]
    assert [line[20:] for line in lines] == expected


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_a_bar_shows_where_it_is(width):
    console = Console()
    screen = terminal(console, width)
    run_phase(console)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    states = [s for s in re.split(r"[\r\n]", shown) if "━" in s]
    last = states[-1]
    assert " 50% " in last
    assert "epoch 2  loss 0.2500  accuracy 99.12%  123,457 images/s" in last
    assert re.search(r"\d:\d\d:\d\d$", last.rstrip())
    assert all(len(s) <= width and "…" not in s for s in states)
    assert "  epoch 1/2: loss 0.5000" in shown.split("\n")[1] or "  epoch 1/2: loss 0.5000\n" in shown


def test_a_real_terminal_has_the_bar_and_the_lines_stay():
    """On a pseudo-terminal, with nothing of the console replaced."""
    code = (
        "import test_console as t; from finetune.report.console import Console\n"
        "console = Console(); t.run_phase(console); console.say(t.LITERAL)"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": f"{SUPPORT}:{Path(__file__).parent}", "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            found += part
        assert process.wait() == 0
    os.close(ours)
    text = found.decode()
    assert "━" in text and "123,457 images/s" in text
    lines = [line.rsplit("\r", 1)[-1] for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\r\n")]
    assert "phase head: 100 steps" in lines and "  epoch 1/2: loss 0.5000" in lines and LITERAL in lines


def test_text_in_tables_is_shown_as_it_is(capsys):
    console = Console()
    short = "[red]x[/red] [/] y.yaml:100: z"
    console.show(plain_table(f"title {short}", [short, "b"], [["[/nonsense]", short], [":dog:", "[bold]"]]))
    out = capsys.readouterr().out
    assert out.startswith(f"title {short} ")
    assert cells(out) == [[short, "b"], ["[/nonsense]", short], [":dog:", "[bold]"]]


def test_tables_elsewhere_than_on_a_terminal_are_120_wide(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    Console().show(plain_table("t", ["a"], [["x" * 300]]))
    assert max(map(len, capsys.readouterr().out.splitlines())) == 120


# --- tables -----------------------------------------------------------------------------------------------------------


def result(right, total, **more):
    return Result(**asdict(Score.of(np.arange(total) < right)), **more)


def adapt_report(**changes):
    first, second = np.arange(10_000) < 6019, np.arange(10_000) < 9020
    values = {
        "kind": "adapt",
        "recipe": {},
        "seed": 0,
        "device": "cpu",
        "environment": {},
        "seconds": 1.0,
        "source": None,
        "target": TargetSummary("[kmnist]", [str(i) for i in range(10)], 54_000, 6_000, 10_000),
        "transplant": None,
        "phases": [],
        "results": {
            "before": result(6019, 10_000, method="nearest class mean"),
            "linear_probe": result(8000, 10_000),
            "after": result(9020, 10_000),
            "scratch": result(9021, 10_000),
        },
        "comparisons": {"after_vs_before": compare(first, second), "after_vs_scratch": compare(second, second)},
        "retention": Retention("mnist", 0.9953, 0.5),
    }
    return Report(**{**values, **changes})


@pytest.mark.parametrize("width", [80, 120])
def test_a_report_shows_every_row_uncut(width):
    text = "".join(drawn(part, width) for part in report_tables(adapt_report()))
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert text.startswith("[kmnist]: 10 classes; 54,000 to learn from, 6,000 to validate, 10,000 to test")
    assert [row[:3] for row in cells(text)[1:]] == [
        ["before", "6,019 / 10,000", "60.19 % (59.23 to 61.15)"],
        ["linear probe", "8,000 / 10,000", "80.00 % (79.20 to 80.77)"],
        ["after", "9,020 / 10,000", "90.20 % (89.60 to 90.77)"],
        ["scratch", "9,021 / 10,000", "90.21 % (89.61 to 90.78)"],
    ]
    assert [row[3] for row in cells(text)[1:]] == [
        "the source as it is: nearest class mean",
        "frozen features, best linear head",
        "fine-tuned",
        "same network, images seen and seed, from random weights",
    ]
    flat = " ".join(text.split())
    assert "after beats before by 30.01 points" in flat and "fine-tuning helps" in flat
    assert "no difference shown between after and scratch" in flat
    assert flat.endswith("on mnist itself: 99.53 % before, 50.00 % after")


def test_rows_that_were_not_asked_for_are_left_out():
    results = {"before": None, "linear_probe": None, "after": result(1, 2), "scratch": None}
    comparisons = {"after_vs_before": None, "after_vs_scratch": None}
    parts = report_tables(adapt_report(results=results, comparisons=comparisons, retention=None))
    assert len(parts) == 1 and [row[0] for row in cells(drawn(parts[0]))[1:]] == ["after"]
    pretrain = adapt_report(results={"test": result(1, 2)}, comparisons={}, retention=None)
    row = ["test", "1 / 2", "50.00 % (9.45 to 90.55)", "trained from scratch"]
    assert cells(drawn(report_tables(pretrain)[0]))[1:] == [row]


SCORES = {
    "good": {"correct": 1999, "total": 2000, "accuracy": 0.9995},
    "[/bad]": {"correct": 0, "total": 3, "accuracy": 0.0},
    "none here": {"correct": 0, "total": 0, "accuracy": None},
    "a class with a name much longer than a column of any table should be" * 2: {
        "correct": 1,
        "total": 2,
        "accuracy": 0.5,
    },
}


@pytest.mark.parametrize("width", [80, 120])
def test_classes_are_worst_first_and_uncut(width):
    text = drawn(class_table(result(1, 2, per_class=SCORES)), width)
    assert "…" not in text
    rows = cells(text)[1:]
    assert rows[0] == ["[/bad]", "0", "3", "0.00 %"] and rows[-1] == ["good", "1,999", "2,000", "99.95 %"]
    assert "50.00 %" in rows[1] and "none here" not in text


def test_confusion_lines_are_the_most_frequent_mistakes():
    matrix = [[90, 7, 0], [1, 80, 12], [0, 1, 99]]
    assert confusion_lines(Confusion.of_rows(matrix), ["a", "b", "[c]"]) == [
        "b taken for [c]: 12 images",
        "a taken for b: 7 images",
        "b taken for a: 1 image",
        "[c] taken for b: 1 image",
    ]
    assert len(confusion_lines(Confusion.of_rows([[1] * 4] * 4), "abcd")) == 5
    assert confusion_lines(Confusion.of_rows([[5, 0], [0, 5]]), "ab") == []


def test_an_evaluation_says_whether_it_is_what_the_checkpoint_claims():
    found = result(3, 4, per_class=SCORES, confusion=Confusion.of_rows([[2, 1], [0, 1]]))

    def said(claimed):
        return "".join(drawn(part) for part in evaluation_parts(found, "[digits]", ["a", "b"], claimed))

    assert said(None).startswith("[digits]: 3 of 4 right, 75.00 % (30.06 to 95.44)\n")
    assert "a taken for b: 1 image" in said(None) and "the checkpoint says" not in said(None)
    assert "the checkpoint says 75.00 % on these images: the same" in said(0.75)
    assert "the checkpoint says 75.00 % on these images: NOT the same" in said(0.7500001)


PHASE = {
    "name": "head",
    "trains": ["head"],
    "trainable_parameters": 1290,
    "learning_rates": {"head": 0.01},
    "l2_sp": None,
    "frozen": ["conv1", "conv2", "fc1"],
    "norms": "hold",
    "augmented": False,
    "cached": True,
    "cache": {"says": "2.1 MB of activations behind fc1, in memory"},
    "steps": 2110,
    "batch_size": 128,
    "seconds": 12.34,
    "memory": {"weights": 4_000_000, "gradients": 1_000_000, "optimizer": 1_000_000, "activations": 17_000_000},
}
WHOLE = {
    **PHASE,
    "name": "all",
    "trains": ["conv1", "conv2", "fc1", "head"],
    "trainable_parameters": 421_642,
    "learning_rates": {"conv1": 0.00343, "conv2": 0.0049, "fc1": 0.007, "head": 0.01},
    "l2_sp": 0.003,
    "frozen": [],
    "augmented": True,
    "cached": False,
    "cache": {"says": "nothing is frozen"},
}


@pytest.mark.parametrize("width", [80, 120])
def test_a_plan_shows_all_of_each_phase_uncut(width):
    plan = {"kind": "adapt", "model": "cnn", "data": "kmnist", "train": 54_000, "validation": 0, "test": 10_000}
    plan |= {"power": [], "calibration": {"says": ["calibrated on 1,000 validation images"]}}
    text = drawn(Group(*plan_parts({**plan, "phases": [PHASE, {**PHASE, "name": "top"}, WHOLE]})), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert "calibrated on 1,000 validation images" in text
    assert " ".join(text.split()).startswith("adapt of cnn on kmnist: 54,000 to learn from, 0 to validate")
    assert cells(text) == [
        ["phase", "head", "top", "all"],
        ["trains", "head", "head", "conv1, conv2, fc1, head"],
        ["parameters", "1,290", "1,290", "421,642"],
        ["learning rate", "head 0.01", "head 0.01", "conv1 0.00343 conv2 0.0049 fc1 0.007 head 0.01"],
        ["pull to source", "none", "none", "0.003"],
        ["frozen", "conv1, conv2, fc1", "conv1, conv2, fc1", "none"],
        ["norms", "hold", "hold", "train"],
        ["augmented", "no", "no", "yes"],
        ["cached", "yes", "yes", "no"],
        ["steps", "2,110 of 128", "2,110 of 128", "2,110 of 128"],
        ["about", "12.3 s", "12.3 s", "12.3 s"],
        ["memory", "23.0 MB", "23.0 MB", "23.0 MB"],
    ]
    words = " ".join(text.split())
    assert words.endswith(
        "in memory top: 2.1 MB of activations behind fc1, in memory calibrated on 1,000 validation images"
    )


def test_small_texts():
    assert percent(0.99534) == "99.53 %" and percent(1) == "100.00 %"
    assert mapping_lines({"a": 1234, "long": [2, "x"]}) == ["a     1,234", "long  2, x"] and mapping_lines({}) == []
    nested = {"a": True, "phases": [{"b": None}, {"c": {"d": []}}]}
    assert mapping_lines(nested) == ["a  yes", "phases 1", "  b  none", "phases 2", "  c", "    d  none"]
