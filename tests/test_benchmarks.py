"""The benchmarks' machinery, without a peer: the registry is sound, rows become the right page, failures cost a row."""

import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import machine
import pytest
from bench import in_turn
from contest import Contestant, Race
from environments import ENVIRONMENTS, OURS
from judging import Claim, apart, each, mean, ratio, rounds_of
from page import BEGIN, END, UNITS, Result, claim_row, middle_and_range, rewrite, speed_part
from PIL import Image
from races import RACES
from running import Ground, run

from finetune.run.setup import open_recipe

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
CONTESTANTS = [(race, contestant) for race in RACES.values() for contestant in race.contestants]
ABOUT = {
    "date": "2026-11-23",
    "threads": 2,
    "machine": "a machine",
    "python": "3.11.7",
    "commit": "abc",
    "command": "python benchmarks/bench.py",
}


def named(value):
    return value.name if isinstance(value, (Race, Contestant)) else str(value)


@pytest.mark.parametrize(("race", "contestant"), CONTESTANTS, ids=named)
def test_a_contestant_has_its_script_its_environment_and_its_recipe(race, contestant):
    assert (BENCHMARKS / "contestants" / contestant.script).is_file()
    assert contestant.environment in {OURS, *ENVIRONMENTS}
    for argument in contestant.arguments:
        if argument.endswith(".yaml"):
            assert (ROOT / argument).is_file()


@pytest.mark.parametrize("race", RACES.values(), ids=named)
def test_a_race_names_each_contestant_once_and_asks_in_known_units(race):
    names = [contestant.name for contestant in race.contestants]
    assert len(names) == len(set(names))
    assert race.claims
    assert all(claim.unit in UNITS for claim in race.claims)


@pytest.mark.parametrize("recipe", sorted((BENCHMARKS / "recipes").glob("*.yaml")), ids=lambda file: file.name)
def test_the_recipes_of_the_races_hold(recipe):
    assert open_recipe(recipe, []).phases


def test_what_is_watched_is_there_under_that_name():
    places = {a.partition("=")[2] for _, c in CONTESTANTS for a in c.arguments if a.count(":") == 1 and "=" in a}
    assert places
    for place in places:
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=lambda e: e.requirements.name)
def test_every_requirement_is_pinned_exactly(environment):
    lines = environment.requirements.read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted
    for line in wanted:
        assert re.fullmatch(r"-r torch\.txt|[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+]*", line), line
    assert ("-r torch.txt" in wanted) == (environment.on == "torch")


def row(contestant, number, failure=None, **figures):
    return {
        "contestant": contestant,
        "round": number,
        "figures": figures,
        "versions": {"torch": "2"},
        "failure": failure,
    }


def race(*names, claims=()):
    contestants = tuple(Contestant(name, "x.py", OURS) for name in names)
    return Race("race", "A race", "What is done.", contestants, claims)


def test_a_ratio_is_taken_round_by_round_and_its_median_is_held_against_the_bound():
    rows = [row("ours", i, seconds=s) for i, s in enumerate((1.0, 2.0, 1.0))]
    rows += [row("peer", i, seconds=s) for i, s in enumerate((4.0, 4.0, 3.0))]
    values, rounds = ratio("peer", "ours", "seconds"), rounds_of(rows)
    assert values(rounds) == [4, 2, 3]
    assert Claim("x", values, "times", at_least=3).reached(rounds) is True
    assert Claim("x", values, "times", at_least=3.01).reached(rounds) is False
    assert Claim("x", values, "times", at_most=3).reached(rounds) is True
    assert Claim("x", values, "times", at_most=2.99).reached(rounds) is False


def test_the_quickest_of_those_that_finished_counts():
    rows = [row("ours", 0, seconds=1.0, speed=10.0), row("a", 0, seconds=4.0, speed=3.0), row("b", 0, "broke")]
    rows += [row("ours", 1, seconds=1.0, speed=10.0), row("a", 1, seconds=4.0, speed=3.0)]
    rows += [row("b", 1, seconds=2.0, speed=5.0)]
    rounds = rounds_of(rows)
    assert ratio(("a", "b"), "ours", "seconds")(rounds) == [4, 2]
    assert ratio("ours", ("a", "b"), "speed", max)(rounds) == [10 / 3, 2]


def test_nothing_is_said_of_what_did_not_run():
    rounds = rounds_of([row("ours", 0, seconds=1.0), row("peer", 0, "broke")])
    assert Claim("x", ratio("peer", "ours", "seconds"), "times", at_least=1).reached(rounds) is None
    assert mean("peer", "accuracy")(rounds) == []


def test_precisions_differ_by_a_part_of_their_spread():
    rows = [row("float32", i, accuracy=a) for i, a in enumerate((0.990, 0.994))]
    rows += [row("bfloat16", i, accuracy=a) for i, a in enumerate((0.990, 0.992))]
    assert apart("float32", "bfloat16", "accuracy")(rounds_of(rows)) == [pytest.approx(0.25)]
    assert apart("float32", "bfloat16", "accuracy")(rounds_of(rows[:1])) == []


def test_a_claim_has_exactly_one_bound():
    for bounds in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(AssertionError, match="one bound"):
            Claim("x", each(lambda one: 1), "times", **bounds)


def test_the_page_has_medians_ranges_failures_and_circumstances():
    rows = [row("ours", i, seconds=s, peak_bytes=5e8) for i, s in enumerate((3.0, 1.0, 2.0))]
    rows += [row("peer", 0, seconds=8.0), row("peer", 1, "exit code 1: no"), row("peer", 2, seconds=10.0)]
    claim = Claim("the peer takes", ratio("peer", "ours", "seconds"), "times as long", at_least=4)
    part = speed_part([Result(race("ours", "peer", "third", claims=(claim,)), ABOUT, rows)])
    assert "| the peer takes: at least 4.0 times as long | 3.8 times as long (2.7 times as long to 5.0" in part
    assert part.splitlines()[4].endswith("| no |")
    assert "| ours | 2.0 (1.0 to 3.0) | 500 (500 to 500) |" in part
    assert "| peer | 9.0 (8.0 to 10.0) | – |" in part
    assert "peer: failed in 1 of 3 rounds (exit code 1: no)." in part
    assert "third: did not run." in part
    assert "3 rounds on 2026-11-23, 2 threads; a machine; Python 3.11.7, torch 2; commit abc; `python" in part


def test_one_value_has_no_range():
    assert middle_and_range([2.0], str) == "2.0"
    assert claim_row(Claim("x", mean("a", "b"), "%", at_least=0.9), Result(race("a"), ABOUT, [])).endswith(
        "| – | not measured |"
    )


def test_the_page_is_rewritten_between_its_markers_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\nafter\n")
    for _ in range(2):
        rewrite(page, "new")
        assert page.read_text() == f"before\n\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    for broken in ("before", f"before {END}\n", f"before {BEGIN}\n", f"{END} {BEGIN}"):
        page.write_text(broken)
        with pytest.raises(ValueError, match="expected two lines"):
            rewrite(page, "new")
        assert page.read_text() == broken


def test_the_page_of_the_project_has_both_markers_once():
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


def test_in_as_many_rounds_everyone_is_first_once():
    names = ["a", "b", "c"]
    contestants = [Contestant(name, "x.py", OURS) for name in names]
    orders = [[c.name for c in in_turn(contestants, number)] for number in range(3)]
    assert [order[0] for order in orders] == names
    assert all(sorted(order) == names for order in orders)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ('print(\'{"share": 0.5, "versions": {}}\')', None),
        ("print('chatter'); print(3)", "its last line is not a JSON object of figures: chatter | 3"),
        ("pass", "its last line is not a JSON object of figures: nothing was printed"),
        ("raise SystemExit('no images')", "exit code 1: no images"),
        ("import time; time.sleep(60)", "not done after 1 s"),
    ],
)
def test_a_run_gives_a_row_whatever_happens(tmp_path, text, failure):
    script = tmp_path / "contestant.py"
    script.write_text(text)
    found = run(Contestant("x", str(script), OURS), Ground(tmp_path, tmp_path, 1), 0, 1 if "sleep" in text else 60)
    assert found["failure"] == failure
    assert ("seconds" in found["figures"]) == (failure is None)


def test_a_contestant_ends_with_the_one_who_runs_it(tmp_path):
    script, told = tmp_path / "contestant.py", tmp_path / "pid"
    script.write_text(
        f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    code = (
        "from pathlib import Path; import bench; from contest import Contestant; bench.end_together();"
        f"bench.run(Contestant('x', {str(script)!r}, 'ours'), bench.Ground(Path('.'), Path('.'), 1), 0, 60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=BENCHMARKS) as runner:
        until = time.monotonic() + 30
        while not (told.exists() and told.read_text()):
            assert runner.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        runner.terminate()
        assert runner.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:  # it is killed, and then somebody's to wait for
            os.kill(int(told.read_text()), 0)
            time.sleep(0.02)


def test_a_run_measures_the_memory_of_the_process_alone(tmp_path):
    script = tmp_path / "contestant.py"
    script.write_text("kept = bytearray(b'x' * 200_000_000); print('{\"versions\": {}}')")
    code = (
        "from pathlib import Path; from contest import Contestant; from running import Ground, run;"
        f"found = run(Contestant('x', {str(script)!r}, 'ours'), Ground(Path('.'), Path('.'), 1), 0, 60);"
        "print(found['figures']['peak_bytes'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert 200e6 < float(done.stdout) < 450e6


def test_the_runner_itself_is_small():
    # Its memory would be in the peak of every contestant.
    code = "import sys, bench; sys.exit(bool({'torch', 'numpy', 'PIL', 'finetune'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, check=False).returncode == 0


def test_the_photographs_are_the_same_each_time_and_of_both_parts(tmp_path):
    from photographs import crops

    for part in ("train", "val"):
        for name in ("ants", "bees"):
            folder = tmp_path / "hymenoptera" / part / name
            folder.mkdir(parents=True)
            Image.effect_noise((90, 120), 64).save(folder / "one.jpg")
    for copy in ("a", "b"):
        crops(tmp_path, "train", 5, tmp_path / copy)
    files = sorted((tmp_path / "a").rglob("*.jpg"))
    assert [file.parent.name for file in files] == ["ants"] * 3 + ["bees"] * 2
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
        with Image.open(file) as picture:
            assert picture.size == (64, 64)


def test_the_command_runs_a_race():
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--smoke", "--races", "start-up", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "`finetune --help` above `python -c pass`: at most 0.150 s |" in done.stdout


@pytest.mark.parametrize("given", [("--races", "none"), ("--races", "start-up", "--contestants", "nobody")])
def test_an_unknown_name_is_answered_with_what_there_is(given):
    done = subprocess.run([sys.executable, "bench.py", *given], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 1
    assert "; there are " in done.stderr


def test_a_commit_is_marked_where_what_runs_differs_and_not_for_new_results(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(machine, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "benchmarks/bench.py")])
    for name in ("finetune/a.py", "benchmarks/results/epoch.jsonl", "docs/benchmarks.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    for name in ("benchmarks/results/epoch.jsonl", "docs/benchmarks.md"):
        (tmp_path / name).write_text("after")
    commit = machine.circumstances(1)["commit"]
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    (tmp_path / "finetune/new.py").write_text("x = 1")
    assert machine.circumstances(1)["commit"] == f"{commit}-dirty"
