"""Each system call that a run makes on its files fails once: one message or none, and the next attempt ends well."""

import hashlib
import shutil
from pathlib import Path

import pytest
from system_calls import CALLS, ERRORS, Calls
from tiny import finetune, phase, pretrain_recipe

RUN = ("pretrain", "--recipe", "small.yaml", "--snapshot-every", "0", "--html")
KEPT = ("safetensors", "predictions.csv")  # the report has times


@pytest.fixture(scope="module")
def before(tmp_path_factory, data):
    """A folder with another run of that name, which is to be moved aside, and the recipe of ours."""
    place = tmp_path_factory.mktemp("before")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("FINETUNE_DATA_ROOT", str(data))
        for more in ("seed: 1\n", ""):
            Path("small.yaml").write_text(pretrain_recipe(phase(length="epochs: 1", batch=100), more=more))
            if more:
                assert finetune(*RUN).code == 0
    return place


@pytest.fixture
def anew(before, folder):
    """Makes the folder what it was before the run."""

    def restore():
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(before, folder, dirs_exist_ok=True)

    restore()
    return restore


def digests():
    paths = [Path(f"checkpoints/small.{ending}") for ending in KEPT]
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None for path in paths]


def listed_and_done():
    """The calls of a run to which nothing happens, and what it wrote."""
    with Calls().watched() as calls:
        assert finetune(*RUN).code == 0
    return list(calls.seen), digests()


def survives(site, code, right):
    with Calls(site, code).watched() as calls:
        done = finetune(*RUN)
    assert site in calls.seen and done.code in (0, 1, 2) and "Traceback" not in done.err, done
    said = done.err.count("\nfinetune: ") + done.err.startswith("finetune: ")
    assert said == (done.code != 0) and "Errno" not in done.err, done.err
    assert done.code != 0 or digests() == right
    again = finetune(*RUN, "--resume")
    if "holds a different run" in again.err:  # it is still there: ours did not get so far
        again = finetune(*RUN)
    assert again.code == 0 and digests() == right, again.err


def test_the_calls_are_those_of_the_table(anew):
    found: dict[str, list[str]] = {}
    for name, where in listed_and_done()[0]:
        found.setdefault(where, []).append(name)
    assert {where: " ".join(names) for where, names in found.items()} == CALLS


@pytest.mark.slow
def test_each_fails_once_with_each_error_in_turn(anew):
    sites, right = listed_and_done()
    for number, site in enumerate(sites):
        anew()
        survives(site, ERRORS[number % len(ERRORS)], right)


@pytest.mark.slow
def test_one_of_them_fails(anew):
    right = listed_and_done()[1]
    anew()
    survives(("unlink", "runs/small/finished.json"), ERRORS[0], right)
