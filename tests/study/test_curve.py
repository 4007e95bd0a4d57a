"""`finetune curve`: what labels are worth on curves whose worth is known, what is foretold, and the files it writes."""

import contextlib
import csv
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from scipy.special import expit, ndtr
from tiny import Impatient, adapt_recipe, files_under, phase, refused, worked

import finetune as toolkit
from finetune.errors import Interrupted, OutputError, SettingError
from finetune.report.comparison import compare_over_seeds
from finetune.report.console import Console
from finetune.report.curve_report import (
    CSV_COLUMNS,
    CurvePoint,
    CurveReport,
    catch_up_sentence,
    curve_parts,
    no_difference_from,
    sentences,
    worth_sentence,
)
from finetune.report.learning_curve import FORM, FORMS, LabelWorth, forecast, isotonic, label_worth, resampled_means
from finetune.report.report import Result, SeedScore, SourceSummary, TargetSummary
from finetune.run.output_paths import check_study_outputs
from finetune.study.curve import ENDINGS, foretell, label_counts, parse_shots, save_curve

QUIET = Console(quiet=True, results=False)
LABELS = np.array([5.0, 10, 20, 50, 100, 200])


def answers(accuracies, seeds=5, images=1_000, spread=0.01, seed=0):
    """Tables (seeds, images) of trainings whose true accuracies differ by `spread`; images are hard for all alike."""
    rng = np.random.default_rng(seed)
    hardness, own = rng.normal(size=images), rng.normal(size=(len(accuracies), seeds, images))
    easy = ndtr((hardness + own) / np.sqrt(2))  # uniform, correlated over trainings
    moved = np.asarray(accuracies)[:, None, None] + spread * rng.normal(size=(len(accuracies), seeds, 1))
    return list(easy < moved)


def curves(worth, seed=0, **how):
    """The answers of a start that is worth so many times as many labels, and from scratch, at LABELS."""
    scratch = ndtr(-1.2 + 0.55 * np.log(LABELS))
    after = ndtr(-1.2 + 0.55 * np.log(worth * LABELS))
    found = answers([*after, *scratch], seed=seed, **how)
    return found[: len(LABELS)], found[len(LABELS) :]


def worths(after, scratch, labels=LABELS):
    draws = np.split(resampled_means([*after, *scratch]), 2, axis=1)
    means = [np.array([table.mean() for table in arm]) for arm in (after, scratch)]
    return label_worth(labels, *means, tuple(draws))


# Which shots


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("5,10,all", (5, 10, None)),
        (" all , 20,3", (3, 20, None)),
        ([50, "all", 7], (7, 50, None)),
        ("4", (4,)),
    ],
)
def test_shots_are_read_and_sorted(given, found):
    assert parse_shots(given) == found


@pytest.mark.parametrize(
    "given", ["0", "5,0", "", "5,,6", "ten", "-3", "2.5", "5,5", "all,all", "9" * 30, [], [5, None]]
)
def test_bad_shots_are_one_error(given):
    with pytest.raises(SettingError, match="--shots"):
        parse_shots(given)


def test_shots_above_what_there_is_are_all_there_are_and_run_once():
    counts, notes = label_counts((5, 30, 40, 50, None), [30, 40])
    assert [(count.shots, count.images_per_class, count.labelled) for count in counts] == [
        (5, 5.0, 10),
        (30, 30.0, 60),
        (None, 35.0, 70),
    ]
    assert len(notes) == 1 and "--shots 40, 50: no class has more than 40 images" in notes[0]
    assert label_counts((5, 40), [40, 40])[1] == [], "just as many as there are"
    assert [count.labelled for count in label_counts((35,), [30, 40])[0]] == [65]


# What labels are worth


def test_isotonic_is_the_nearest_rising_curve():
    values = np.random.default_rng(0).normal(size=(20, 7))
    expected = [isotonic_regression(row).x for row in values]
    np.testing.assert_allclose(isotonic(values), expected)
    np.testing.assert_allclose(isotonic(np.sort(values)), np.sort(values))


def test_resampled_means_spread_as_seeds_and_images_do():
    tables = answers([0.7, 0.9], seeds=40, images=2_000, spread=0.03)
    draws = resampled_means(tables)
    means = np.array([table.mean() for table in tables])
    np.testing.assert_allclose(draws.mean(0), means, atol=0.003)
    assert (draws == resampled_means(tables)).all() and draws.shape == (2_000, 2)
    by_seed = tables[0].mean(1).std(ddof=1) / np.sqrt(40)
    by_image = tables[0].mean(0).std() / np.sqrt(2_000)
    assert draws[:, 0].std() == pytest.approx(np.hypot(by_seed, by_image), rel=0.1)
    few = resampled_means([table[:3] for table in tables])[:, 0]
    assert np.quantile(few, 0.975) - few.mean() > 3.5 * few[abs(few - np.median(few)) < 0.05].std() / 2, "heavy tails"


@pytest.mark.parametrize("worth", [1.0, 2.5])
def test_a_known_worth_is_found(worth):
    inside, held = 0, 0
    for seed in range(6):
        found = worths(*curves(worth, seed, images=500))
        inner = [one for one, labels in zip(found, LABELS, strict=True) if 10 < labels * worth < 150]
        assert all(one.times == pytest.approx(worth, rel=0.5) for one in inner)
        ends = [(one.lower or 0, one.upper or np.inf) for one in inner]
        held += sum(low <= worth <= high for low, high in ends)
        inside += len(inner)
    assert held / inside > 0.9


def test_what_was_not_measured_is_bounded():
    after, scratch = curves(100.0)
    last = worths(after, scratch)[-1]
    assert last == LabelWorth(None, 1.0, None, False, (5 / 200, 1.0))
    assert worths(after, scratch)[0].lower == 40.0, "200 of 5"
    first = worths(scratch, after)[0]
    assert first.times is None and first.reached and first.lower is None and first.upper == 1.0


def test_one_number_of_labels_and_one_seed_are_enough_to_run():
    after, scratch = curves(3.0, seeds=1)
    assert worths(after[:1], scratch[:1], LABELS[:1])[0].times is None
    assert all(one.times is None or one.times > 1 for one in worths(after, scratch))


@pytest.mark.parametrize("accuracy", [1.0, 0.9])
def test_where_nothing_is_gained_any_longer_the_worth_is_one_and_its_interval_says_how_little_is_known(accuracy):
    table = np.arange(50)[None].repeat(5, 0) < 50 * accuracy
    known = worths([table] * 3, [table] * 3, LABELS[:3])
    assert [one.times for one in known] == [1, 1, 1]
    if accuracy == 1:  # where other images would be answered alike
        assert [(one.lower, one.upper) for one in known] == [(1, 4), (0.5, 2), (0.25, 1)]
    flat, rising = np.array([0.9, 0.9, 0.95]), np.array([0.7, 0.9, 0.9])
    draws = np.tile(rising, (9, 1)), np.tile(flat, (9, 1))
    below, inside, above = label_worth(LABELS[:3], rising, flat, draws)
    assert below.times is None and (inside.times, inside.lower, inside.upper) == (1, 0.5, 1)
    assert above.times == 0.25, "with 20 a class, as 5 do"


# What more labels would bring


@pytest.mark.parametrize(
    ("form", "curve"),
    [
        ("probit", lambda n: ndtr(-1 + 0.5 * np.log(n))),
        ("logit", lambda n: expit(-1 + 0.7 * np.log(n))),
        ("power", lambda n: 1 - 0.03 - 1.2 * n**-0.65),
    ],
)
def test_each_form_finds_its_own_curve(form, curve):
    found = FORMS[form](LABELS, curve(LABELS)[None], np.array([400.0, 800.0]))[0]
    np.testing.assert_allclose(found, curve(np.array([400, 800])), atol=1e-6)


MEASURED = {  # kmnist from mnist, recipes/adapt.yaml, mean of three seeds: with 5, 10, 20, 50, 100, 200, 400 a class
    "after": (0.6318, 0.7450, 0.8185, 0.8993, 0.9392, 0.9673, 0.9808),
    "scratch": (0.5860, 0.6932, 0.7915, 0.8808, 0.9148, 0.9615, 0.9773),
}


@pytest.mark.parametrize("row", MEASURED)
def test_what_was_measured_is_foretold_within_a_point(row):
    known, later = np.array(MEASURED[row][:5]), np.array(MEASURED[row][5:])
    found = FORMS[FORM](LABELS[:5], known[None], np.array([200.0, 400.0]))[0]
    assert (abs(found - later) < 0.01).all()


def test_a_forecast_holds_the_truth_and_is_wider_farther_out():
    (tables, _) = curves(1.0)
    means = np.array([table.mean() for table in tables])
    near, far = forecast(LABELS, means, resampled_means(tables), (400.0, 3200.0), 1_000)
    for told in (near, far):
        truth = ndtr(-1.2 + 0.55 * np.log(told.images_per_class))
        assert told.ci95[0] < truth < told.ci95[1] and told.ci95[0] <= told.accuracy <= told.ci95[1]
    assert far.accuracy > near.accuracy
    wrong = [table[:, :] | True for table in tables]
    assert forecast(LABELS, np.ones(6), resampled_means(wrong), (400.0,), 1_000)[0].accuracy > 0.999
    full = np.ones((5, 50), dtype=bool)
    (told,) = forecast(LABELS, np.ones(6), resampled_means([full] * 6), (400.0,), 50)
    assert told.accuracy == 1 and told.ci95 == (pytest.approx(0.99), 1.0), "of 50 images all were right"
    (told,) = forecast(LABELS, np.zeros(6), resampled_means([~full] * 6), (400.0,), 50)
    assert told.accuracy == 0 and told.ci95 == (0.0, pytest.approx(0.01))
    assert forecast(LABELS[:2], means[:2], resampled_means(tables[:2]), (400.0,), 1_000) == []


# The report


def result(table):
    each = table.mean(1)
    scores = [SeedScore(s, int(row.sum()), row.size, float(row.mean())) for s, row in enumerate(table)]
    half = 2 * float(each.std()) + 0.01
    mean = float(each.mean())
    return Result(int(table.sum()), table.size, mean, (mean - half, mean + half), per_seed=scores)


def report(worth=2.5, seconds=1.0):
    after, scratch = curves(worth)
    found = worths(after, scratch)
    points = [
        CurvePoint(
            shots=int(labels) if labels < 200 else None,
            images_per_class=float(labels),
            labelled=int(labels) * 10,
            results={"after": result(one), "scratch": result(other)},
            comparison=compare_over_seeds(other, one),
            worth=worth,
        )
        for labels, one, other, worth in zip(LABELS, after, scratch, found, strict=True)
    ]
    means = {"after": np.array([t.mean() for t in after]), "scratch": np.array([t.mean() for t in scratch])}
    draws = {"after": resampled_means(after), "scratch": resampled_means(scratch)}
    return CurveReport(
        kind="curve",
        recipe={},
        seeds=[0, 1, 2, 3, 4],
        device="cpu",
        environment={},
        seconds=seconds,
        source=SourceSummary(path="a.safetensors", sha256="0", model="cnn", dataset=None, accuracy=None),
        target=TargetSummary("glyphs", ["a", "b"], 2_000, 0, 1_000),
        notes=[],
        points=points,
        no_difference_from=no_difference_from(points),
        form=FORM,
        forecasts=foretell(LABELS, means, draws, 1_000, 400.0),
    )


@pytest.fixture(scope="module")
def known():
    """The report of a start that is worth 2.5 times as many labels."""
    return report()


def test_sentences_say_what_the_curve_says(known):
    worth, catch_up, near, far = sentences(known)
    assert worth.startswith("with ") and " a class, these weights are worth 2." in worth and " to " in worth
    assert catch_up.startswith("within what was measured scratch does not catch up: with 200 a class")
    assert near.startswith("forecast for 400 a class, which there are: after 9")
    assert far.startswith("forecast for 800 a class, more than there are: after 9")
    assert len(curve_parts(known)) == 5


@pytest.mark.parametrize(
    ("worth", "said"),
    [
        (LabelWorth(2.4, 1.9, 3.1, True, (0.1, 4.0)), "2.4 (1.9 to 3.1) times as many labels: from scratch it takes"),
        (LabelWorth(2.4, None, None, True, (0.1, 4.0)), "2.4 (less than 0.10 to more than 4.0) times as many labels"),
        (
            LabelWorth(None, 1.9, None, False, (0.1, 4.0)),
            "more than 4.0 times as many labels (95 % interval from 1.9 on)",
        ),
        (
            LabelWorth(None, 4.0, None, False, (0.1, 4.0)),
            "more than 4.0 times as many labels: from scratch 200 a class",
        ),
        (LabelWorth(None, None, 0.3, True, (0.1, 4.0)), "less than 0.10 times as many labels: 5 from scratch"),
    ],
)
def test_the_worth_in_words(known, worth, said):
    point = replace(known.points[3], worth=worth)
    assert worth_sentence(point).startswith(f"with 50 a class, these weights are worth {said}")


def test_a_number_that_some_classes_lack_is_shown_with_its_mean(known):
    point = known.points[3]
    assert [point.title, replace(point, images_per_class=47.5).title] == ["50", "50, on average 47.5"]
    assert known.points[-1].title == "all, 200"


def test_from_where_on_no_difference_is_shown(known):
    def with_verdicts(*verdicts):
        points = [
            replace(point, comparison=replace(point.comparison, verdict=verdict))
            for point, verdict in zip(known.points, verdicts, strict=False)
        ]
        return replace(known, points=points, no_difference_from=no_difference_from(points))

    none = "no difference shown"
    assert with_verdicts("helps", none, "helps").no_difference_from is None
    assert with_verdicts("helps", none, "helps", none, none).no_difference_from == 50
    assert "no difference to scratch shown from 50 a class on" in catch_up_sentence(
        with_verdicts("helps", none, "helps", none)
    )
    assert "with any number measured" in catch_up_sentence(with_verdicts(none, none))


def test_the_csv_has_a_line_for_each_training(known):
    rows = list(csv.DictReader(known.to_csv().splitlines()))
    assert tuple(rows[0]) == CSV_COLUMNS and len(rows) == 6 * 2 * (5 + 1)
    first = known.points[0].results["after"].per_seed[0]
    assert rows[0] | {"correct": first.correct, "accuracy": first.accuracy} != rows[1]
    assert (int(rows[0]["correct"]), float(rows[0]["accuracy"])) == (first.correct, round(first.accuracy, 6))
    assert {row["shots"] for row in rows} == {"5", "10", "20", "50", "100", "all"}
    assert (
        [row["seed"] for row in rows[:6]] == ["0", "1", "2", "3", "4", "mean"]
        and rows[5]["lower"]
        and not rows[4]["lower"]
    )


@pytest.mark.slow
def test_files_are_the_same_bytes_and_older_ones_are_kept(known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = check_study_outputs("new/v1.2.curve.json", "", "curve", ENDINGS)
    names = {f"v1.2.curve.{ending}" for ending in ("json", *ENDINGS)}
    for name in names:
        (tmp_path / "new" / name).write_text(f"another {name}")
    save_curve(known, paths, QUIET)
    first = {name: (tmp_path / "new" / name).read_bytes() for name in names}
    asides = files_under(tmp_path / "new") - names
    assert {name.split(".curve.")[0] for name in asides} == {f"v1.2.was-{digest_of('another v1.2.curve.json')}"}
    assert {(tmp_path / "new" / name).read_text() for name in asides} == {f"another {name}" for name in names}
    save_curve(replace(known, seconds=7.0), paths, QUIET)
    assert files_under(tmp_path / "new") == names | asides, "only the time is another"
    again = {name: (tmp_path / "new" / name).read_bytes() for name in names}
    assert [name for name in names if again[name] != first[name]] == ["v1.2.curve.json"]
    assert b"dc:date" not in first["v1.2.curve.svg"]


def test_a_path_that_is_no_utf8_does_not_lose_the_report(known):
    source = replace(known.source, path="b\udcff ü.safetensors")
    text = replace(known, source=source).to_json().encode().decode()
    assert json.loads(text)["source"]["path"] == source.path and "b\\udcff ü" in text


def digest_of(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def test_places_that_cannot_be_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=r"ends in \.curve\.json"):
        check_study_outputs("a.json", "", "curve", ENDINGS)
    (tmp_path / "a.curve.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_study_outputs("a.curve.json", "", "curve", ENDINGS)
    assert check_study_outputs(None, "a-b", "curve", ENDINGS).report == Path("studies/a-b.curve.json")


# From end to end

SMALL = adapt_recipe(phase(length="steps: 2", batch=10), data="{name: digits, validation: 0}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, pretrained):
    """The folder of a curve that nobody stopped, and what it printed."""
    work = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(work):
        Path("small.yaml").write_text(SMALL)
        words = ("--from", pretrained, "--recipe", "small.yaml", "--shots", "3,1", "--seeds", "2")
        done = worked("curve", *words, "--data-root", data)
    return work, done


def test_a_curve_writes_four_files_and_says_what_it_found(whole):
    work, done = whole
    assert files_under(work / "studies") == {f"mnist-digits.curve.{ending}" for ending in ("json", *ENDINGS)}
    found = json.loads((work / "studies/mnist-digits.curve.json").read_text())
    assert [point["shots"] for point in found["points"]] == [1, 3]
    assert [point["labelled"] for point in found["points"]] == [10, 30]
    assert found["seeds"] == [0, 1] and set(found["points"][0]["results"]) == {"after", "scratch"}
    assert {point["comparison"]["seeds"] for point in found["points"]} == {2}
    assert found["forecasts"] == [] and "no forecast of what more labels would bring" in done.out
    assert "2 seeds say next to nothing" in done.err and "these weights are worth" in done.out
    assert not any("weights" in name for name in files_under(work / "runs")), "no weights are kept"


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_in_the_same_bytes(whole, data, pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = {"shots": [1, 3], "seeds": 2, "data_root": data}
    with pytest.raises(Interrupted, match="finished trials are kept"):
        toolkit.curve(pretrained, "digits", whole[0] / "small.yaml", console=Impatient("3/8"), **common)
    notes = Listening()
    found = toolkit.curve(pretrained, "digits", whole[0] / "small.yaml", console=notes, resume=True, **common)
    assert "3 of 8 trials have finished already" in notes.heard
    for ending in ENDINGS:
        name = f"studies/mnist-digits.curve.{ending}"
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes(), ending
    texts = [folder / "studies/mnist-digits.curve.json" for folder in (tmp_path, whole[0])]
    own, other = (re.sub(r'"seconds": .*', "", path.read_text()) for path in texts)
    assert own == other and found.to_json() == texts[0].read_text()


class Listening(Console):
    """Keeps every remark."""

    def __init__(self):
        super().__init__(quiet=True, results=False)
        self.heard = []

    def note(self, text):
        self.heard.append(text)


def test_what_is_wrong_is_one_message(folder, pretrained):
    Path("small.yaml").write_text(SMALL)
    words = ("curve", "--from", pretrained, "--recipe", "small.yaml", "--quiet")
    assert refused(*words, "--shots", "5,0").startswith("--shots 5,0: expected numbers of labelled images a class")
    assert refused(*words, "--shots", "1", "--seeds", "none").startswith("--seeds none")
    assert refused(*words, "--shots", "1", "--set", "seed=7").startswith("seed=7: a study's seeds are those of --seeds")
    with pytest.raises(SettingError, match="--seeds"):
        toolkit.curve(pretrained, "digits", "small.yaml", seed=0)
    assert refused(*words, "--shots", "1", "--out", "a.json").startswith(
        "--out a.json: expected a file name that ends in"
    )
    broken = ("--shots", "1", "--seeds", "1", "--set", "phases[0].optimizer.lr=1e30")
    said = refused(*words, *broken, code=1)
    assert said.startswith("trial after-shots-1-seed-0: ") and not Path("studies/mnist-digits.curve.json").exists()
