"""Breaks the package in random places, one at a time, and counts how often the tests of that room notice.

    python benchmarks/mutants.py [N] [--seed 0] [--jobs 2] [--limit 900] [--results FILE]

for example `python benchmarks/mutants.py 200 --results mutants.jsonl`. Each of N mutants changes one thing in a line
drawn uniformly from the lines of finetune/train, finetune/report, data/split.py and data/loader.py that hold something
to change: a comparison, an operator, a number, a condition, a returned value, a statement, `and` and `or`, a default.
It is made in a copy of the project, where the tests of the module's own room run until one fails or --limit seconds are
over; either counts as killed. A line is printed for each mutant, and at the end the share killed.

First the tests run on an unchanged copy, where they must pass. With --results every outcome is added to FILE, and what
is there already is not run again, so that a run can be stopped and continued; an edited file has new mutants.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path

PROJECT = Path(__file__).parents[1]
COPIED = {"finetune", "tests", "benchmarks", "recipes", "checkpoints", "docs", "pyproject.toml", "README.md"}
TESTS = {  # of each module, by how its path starts
    "finetune/train/": "tests/train",
    "finetune/report/": "tests/report",
    "finetune/data/split.py": "tests/data/test_split.py",
    "finetune/data/loader.py": "tests/data/test_loader.py",
}
PAIRS = "Lt GtE, Gt LtE, Eq NotEq, Is IsNot, In NotIn, Add Sub, Pow Mult, Mult Div, Mod FloorDiv, BitOr BitAnd, And Or"
OTHER = {getattr(ast, a): getattr(ast, b) for pair in PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
DELETED = (ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete, ast.Raise, ast.Continue, ast.Break)
SILENT = (ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Pass, ast.Assert)  # an assert holds anyway
ALIAS = re.compile(r"(\w+\.)?([A-Z]\w*[a-z]\w*|dict|list|tuple|set)\[.*\]|TypeVar\(.*")
FIELDS = ("file", "version", "number", "line", "change", "outcome", "ended", "seconds")  # of a row of the results
Mutant = tuple[str, str, int]  # a file, the hash of its bytes, and the number of a change in it
Change = tuple[ast.AST, str, Callable[[], object]]  # what is changed, into what ("" is what it then reads), and how


def silent(node: ast.AST) -> bool:
    """Whether a change in this node is no change of behaviour."""
    match node:
        case ast.Assign([ast.Name("__slots__")]) | ast.AnnAssign(value=None) | ast.Expr(ast.Constant()):
            return True  # the last is a docstring, or `...`
        case ast.Assign():
            return bool(ALIAS.fullmatch(ast.unparse(node.value)))
        case ast.If():
            return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, SILENT)


def changes(node: ast.AST) -> Iterator[Change]:
    """What may be changed in this node itself."""
    for block in filter(lambda value: isinstance(value, list), map(vars(node).get, ("body", "orelse", "finalbody"))):
        for place, statement in enumerate(block):
            if isinstance(statement, DELETED) and not silent(statement):
                yield statement, "deleted", partial(block.__setitem__, place, ast.Pass())
    match node:
        case ast.Compare():
            for place, op in enumerate(node.ops):
                yield node, "", partial(node.ops.__setitem__, place, OTHER[type(op)]())
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in OTHER:
            yield node, "", partial(setattr, node, "op", OTHER[type(node.op)]())
        case ast.Constant(int(value) | float(value)):
            yield node, "", partial(setattr, node, "value", not value if isinstance(value, bool) else value + 1)
        case ast.UnaryOp(ast.Not()):
            yield node, "", partial(setattr, node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.If() | ast.While() | ast.IfExp():
            negated = ast.UnaryOp(ast.Not(), node.test)
            yield node.test, ast.unparse(negated), partial(setattr, node, "test", negated)
        case ast.Return(ast.expr()) if ast.unparse(node.value) not in ("None", "False"):
            yield node, "", partial(setattr, node, "value", ast.Constant(None))
        case ast.arguments():
            for values in (node.defaults, node.kw_defaults):
                for place, value in enumerate(values):
                    if value is not None and not isinstance(getattr(value, "value", None), (int, float)):
                        new = ast.Constant(None if ast.unparse(value) != "None" else 0)
                        yield value, f"default {new.value}", partial(values.__setitem__, place, new)


def all_changes(node: ast.AST) -> Iterator[Change]:
    """Those in this node and below, but for annotations and decorators."""
    if silent(node):
        return
    yield from changes(node)
    apart = [getattr(node, "annotation", None), getattr(node, "returns", None), *getattr(node, "decorator_list", [])]
    for child in ast.iter_child_nodes(node):
        if child not in apart:
            yield from all_changes(child)


def changed(text: str, number: int) -> tuple[str, int, str]:
    """The text of a module with its change of that number, its line, and what is changed into what."""
    tree = ast.parse(text)
    what, into, how = next(islice(all_changes(tree), number, None))
    before = ast.unparse(what)
    how()
    short = [re.sub(r"(.{69}).{2,}", r"\1…", " ".join(code.split())) for code in (before, into or ast.unparse(what))]
    return ast.unparse(ast.fix_missing_locations(tree)), what.lineno, "  ->  ".join(short)


def drawn(count: int, seed: int) -> list[Mutant]:
    """Lines uniformly, without putting back, and in each one of its changes."""
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for path in sorted((PROJECT / "finetune").rglob("*.py")):
        file, content = path.relative_to(PROJECT).as_posix(), path.read_bytes()
        if file.startswith(tuple(TESTS)):
            version = hashlib.sha256(content).hexdigest()[:12]
            for number, (what, _, _) in enumerate(all_changes(ast.parse(content))):
                lines.setdefault((file, what.lineno), []).append((file, version, number))
    rng = random.Random(seed)
    return [rng.choice(lines[place]) for place in rng.sample(sorted(lines), min(count, len(lines)))]


def tested(copy: Path, file: str, limit: float) -> str:
    """How the tests of a module end in this copy: "passed", "failed", or "timeout" after `limit` seconds."""
    tests = next(tests for start, tests in TESTS.items() if file.startswith(start))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={copy}-tmp", tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    with (copy / "output.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=copy, env=environment, stdout=log, stderr=log, process_group=0)
    try:
        return "failed" if process.wait(limit) else "passed"
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what its tests have started
        process.wait()


def judged(mutant: Mutant, copies: queue.Queue[Path], limit: float) -> dict[str, object]:
    """A row of the results file."""
    copy, began = copies.get(), time.monotonic()
    path = copy / mutant[0]
    text = path.read_text(encoding="utf-8")
    source, line, change = changed(text, mutant[2])
    path.write_text(source, encoding="utf-8")
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)  # whose age is known in seconds only
    ended = tested(copy, mutant[0], limit)
    path.write_text(text, encoding="utf-8")
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    copies.put(copy)
    facts = (line, change, "survived" if ended == "passed" else "killed", ended, round(time.monotonic() - began))
    return dict(zip(FIELDS, mutant + facts, strict=True))


def all_judged(mutants: list[Mutant], jobs: int, limit: float) -> Iterator[dict[str, object]]:
    """Rows as they come, from so many copies of the project at once. SystemExit if the tests fail unchanged."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            copies.put(copy := Path(folder, str(number)))
            shutil.copytree(PROJECT, copy, ignore=lambda at, names: {*names} - COPIED if Path(at) == PROJECT else ())
        for start in (start for start in TESTS if any(file.startswith(start) for file, _, _ in mutants)):
            if (ended := tested(copy, start, limit)) != "passed":
                sys.exit(f"{ended} unchanged:\n{(copy / 'output.txt').read_text(errors='replace')[-3000:]}")
        waited = [pool.submit(judged, mutant, copies, limit) for mutant in mutants]
        yield from (done.result() for done in as_completed(waited))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=200)
    for name, default in (("--seed", 0), ("--jobs", 2), ("--limit", 900)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--results", type=Path, default=Path(os.devnull))
    options = parser.parse_args()
    there = map(json.loads, options.results.read_text().splitlines() if options.results.exists() else ())
    known, mutants = {tuple(map(row.get, FIELDS[:3])): row for row in there}, drawn(options.count, options.seed)
    rows = [known[mutant] for mutant in mutants if mutant in known]
    for row in all_judged([mutant for mutant in mutants if mutant not in known], options.jobs, options.limit):
        rows.append(row)
        print("{outcome:8} {file}:{line}  {change}  ({ended}, {seconds} s)".format(**row), flush=True)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    survived = [row for row in rows if row["outcome"] == "survived"]
    print(f"killed {len(rows) - len(survived)} of {len(rows)} ({1 - len(survived) / max(1, len(rows)):.1%}); survived:")
    print(*("{file}:{line}  {change}".format(**row) for row in survived), sep="\n")


if __name__ == "__main__":
    main()
