"""Reports as tables for a terminal. Accuracies are percentages here, and only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from finetune.report.comparison import ACCURACY, CROSSED, SIGNIFICANT, Score, groups_line, is_told, sentences
from finetune.report.confidence import ConfidenceSummary, confidence_lines
from finetune.report.metrics import METRICS, PLAIN, MetricValue
from finetune.report.report import Interpolation, Report, Result, TestSetUse
from finetune.report.rows import INTERPOLATED, row_of
from finetune.report.stage_answer import stage_parts
from finetune.report.statistics import Confusion, wilson
from finetune.text import amount, listed

BALANCED = "balanced_accuracy"
CALIBRATION = ("network's own", "with its temperature")  # probabilities before and after
MAX_CONFUSED = 5
MAX_CLASSES = 40  # of the table by class, on the screen
UNEVEN = 2  # times as many test images of one class as of another
TUNED_FROM = 2  # other choices tried on the same test images, from which on a sentence is due
MAX_FAULTS = 20  # of one check, on the screen


def percent(fraction: float) -> str:
    """As in '99.53 %'."""
    return f"{100 * fraction:.2f} %"


def with_interval(score: Score) -> str:
    """As in '99.53 % (99.38 to 99.65)'."""
    low, high = score.ci95
    return f"{percent(score.accuracy)} ({100 * low:.2f} to {100 * high:.2f})"


def report_tables(report: Report) -> list[RenderableType]:
    """The tables and lines at the end of a run: results, comparisons, retention."""
    target, several = report.target, len(report.seeds) > 1
    counts = _counts(target.train, target.validation, target.test)
    if report.folds is not None:
        counts = f"{target.test:,} images in {report.folds} folds, each tested once"
    title = f"{target.name}: {len(target.classes)} classes; {counts}"
    if several:
        title += f"; {len(report.seeds)} seeds"
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    counted = "range over seeds" if several else "right / total"
    counted = "range over folds" if report.folds is not None else counted
    metric = next((c.metric for c in report.comparisons.values() if c is not None and c.metric != ACCURACY), None)
    if metric is None and _uneven_classes(report) is not None:
        metric = BALANCED
    chosen = [] if metric is None else [f"{METRICS[metric].title} (95 % interval)"]
    for column in (counted, "accuracy (95 % interval)", *chosen):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("how", overflow="fold")
    for name, result in report.results.items():
        if result is not None:
            row = row_of(name)
            how = f"{row.how}: {result.method}" if result.method is not None else row.how
            shown = [] if metric is None else [_metric_with_interval(metric, (result.metrics or {}).get(metric))]
            table.add_row(row.title, _counted(result), with_interval(result), *shown, how)
    found: list[RenderableType] = [table]
    found += [Text(line) for line in verdict_lines(report)]
    found += [Text(line) for line in _without_twins_lines(report)]
    if report.retention is not None:
        kept, whose = report.retention, ", the first seed" if several else ""
        mixed = "" if kept.interpolated is None else f", {percent(kept.interpolated)} interpolated"
        found.append(
            Text(f"on {kept.dataset} itself: {percent(kept.before)} before, {percent(kept.after)} after{mixed}{whose}")
        )
    if report.interpolation is not None:
        found += interpolation_parts(report.interpolation)
        if report.own_row == INTERPOLATED:
            first = " of the first seed" if several else ""
            found.append(Text(f"the checkpoint has the interpolated weights{first}, which its confidence is about"))
    lines = [*_group_lines(report), *_fold_lines(report), *_uneven_lines(report), *test_set_lines(report.test_set)]
    return [*found, *map(Text, lines), *where_parts(report), *confidence_parts(report.confidence)]


def confidence_parts(found: ConfidenceSummary | None) -> list[RenderableType]:
    """What is known of a network's confidence: a table of what calibration brought, and sentences."""
    if found is None:
        return []
    parts: list[RenderableType] = []
    if found.after:
        table = Table(title="calibration on the test images", title_justify="left")
        table.add_column("metric", overflow="fold")
        for column in CALIBRATION:
            table.add_column(f"{column} (95 % interval)", justify="right", overflow="fold")
        for name, own in found.after.items():
            values = (_metric_with_interval(name, value) for value in (found.before.get(name), own))
            table.add_row(METRICS[name].title if name in METRICS else name, *values)
        parts.append(table)
    return [*parts, *map(Text, confidence_lines(found))]


def where_parts(report: Report) -> list[RenderableType]:
    """The table of what `train: auto` came to; of several trainings, whose it is."""
    if report.where is None:
        return []
    several = len(report.seeds) > 1 or report.folds is not None
    whose = [Text("train: auto, in the training whose weights are kept:")] if several else []
    return [*whose, *stage_parts(asdict(report.where))]


def interpolation_parts(found: Interpolation) -> list[RenderableType]:
    """How the mix of source and fine-tuned weights was chosen, and all mixes that it was chosen from."""
    table = Table(title=f"mixes, on {found.images:,} validation images", title_justify="left")
    source = [] if found.source_images is None else [f"on {found.source_images:,} images of the source's data"]
    for column in ("fine-tuned", "accuracy", "log loss", *source):
        table.add_column(column, justify="right", overflow="fold")
    for point in found.frontier:
        kept = [] if point.source_accuracy is None else [percent(point.source_accuracy)]
        chosen = " *" if point.weight == found.weight else ""
        table.add_row(f"{point.weight:.1f}{chosen}", percent(point.accuracy), f"{point.log_loss:.4f}", *kept)
    lines = [f"interpolated: {found.sentence}"]
    if found.note is not None and found.retain is None:
        lines.append(f"what mixes keep of the source's task is not known: {found.note}")
    if len(found.weights) > 1:
        each = ", ".join(f"{weight:g} ({name})" for name, weight in found.weights.items())
        lines.append(f"of the fine-tuned, in each training: {each}; the table is of the first")
    return [*map(Text, lines), table]


def _group_lines(report: Report) -> list[str]:
    """That the intervals are by groups of images, where they are; what the images are worth, of the last row."""
    results = [result for result in report.results.values() if result is not None]
    line = groups_line(report.target.test, results[-1].groups, results[-1].effective_images) if results else None
    return [] if line is None else [line]


def verdict_lines(report: Report) -> list[str]:
    """What the comparisons show; and where accuracy shows nothing beyond the commonest class, what another metric does.

    A classifier that tells rare classes apart may be right less often than one that never names them.
    """
    majority = report.results.get("majority")
    own = report.results.get(report.own_row or "")
    lines = sentences(report.comparisons, majority.method if majority is not None else None)
    floor = next((c for key, c in report.comparisons.items() if key.endswith("_vs_majority")), None)
    if floor is None or not is_told(floor, "majority") or floor.metric != ACCURACY or own is None or majority is None:
        return lines
    values = [(result.metrics or {}).get(BALANCED) for result in (own, majority)]
    if values[0] is None or values[1] is None or values[0].ci95 is None or values[1].value is None:
        return lines
    if values[0].ci95[0] <= values[1].value or _uneven_classes(report) is None:  # then the two say the same
        return lines
    shown = _metric_with_interval(BALANCED, values[0])
    learnt = sentences(report.comparisons, majority.method, learnt=True)
    return [
        *learnt,
        f"it has learnt something all the same: balanced accuracy {shown}, against {percent(values[1].value)}",
    ]


def _uneven_classes(report: Report) -> tuple[str, int, str, int] | None:
    """The class with the most test images and that with the fewest, and how many; None where they are about even."""
    counted = next((result.per_class for result in report.results.values() if result and result.per_class), None)
    seeds = max(1, len(report.seeds))  # over which counts are summed
    images = {name: score["total"] // seeds for name, score in (counted or {}).items() if score["total"]}
    if not images or max(images.values()) < UNEVEN * min(images.values()):
        return None
    most, least = max(images, key=images.__getitem__), min(images, key=images.__getitem__)
    return most, images[most], least, images[least]


def _without_twins_lines(report: Report) -> list[str]:
    """Each row's accuracy on the test images that have no twin among those to learn from."""
    apart = {row_of(name).title: own.without_twins for name, own in report.results.items() if own and own.without_twins}
    if not apart:
        return []
    images = next(iter(apart.values())).images
    if not images:
        return ["every test image looked at has a twin among those to learn from: only a split by group can tell more"]
    said = ", ".join(
        f"{title} {percent(own.accuracy)} ({100 * own.ci95[0]:.2f} to {100 * own.ci95[1]:.2f})"
        for title, own in apart.items()
        if own.accuracy is not None and own.ci95 is not None
    )
    return [f"without twins, on {images:,} test images: {said}"]


def _fold_lines(report: Report) -> list[str]:
    """What a cross-validation measured, and what it says of the weights that are written."""
    after = report.results.get("after")
    if report.folds is None or after is None:
        return []
    learnt = report.target.train + report.target.validation
    share = f"{report.folds - 1} of {report.folds} folds"
    shots = report.recipe["data"].get("shots") is not None
    where, left = (f"as few images of {share}", "") if shots else (share, "; no image is left to test it on")
    return [
        "intervals are over folds, widened since their trainings share images (Nadeau and Bengio), and no narrower "
        "than over images",
        f"the checkpoint is one more training, on {learnt:,} images of all folds: expect {percent(after.accuracy)} of "
        f"it on new images, as measured with trainings on {where}{left}",
    ]


def _uneven_lines(report: Report) -> list[str]:
    """Offers balanced accuracy where the test images of the classes are uneven in number."""
    compared = {comparison.metric for comparison in report.comparisons.values() if comparison is not None}
    found = _uneven_classes(report)
    if found is None or compared - {ACCURACY}:
        return []
    most, images, least, fewest = found
    return [
        f"the classes are uneven: {images:,} test images of {most}, {fewest:,} of {least}; "
        "--metric balanced_accuracy counts every class alike"
    ]


def test_set_lines(use: TestSetUse | None) -> list[str]:
    """What opening the same test images again and again does to p-values, where it looks like tuning."""
    if use is None or use.other_choices < TUNED_FROM:
        return []
    tried = use.other_choices + 1
    return [
        f"these test images have been opened {use.opened_before} times before, and {use.other_choices} other choices "
        f"were tried on them: the best of {tried} has p below 0.05 by chance in up to {100 * (1 - 0.95**tried):.0f} % "
        f"of cases; choose by validation images, or count only p below {0.05 / tried:.2g}"
    ]


def _metric_with_interval(name: str, found: MetricValue | None) -> str:
    if found is None or found.value is None:
        return "not defined"
    if found.ci95 is None:
        return metric_text(name, found.value)
    low, high = (metric_text(name, end).removesuffix(" %") for end in found.ci95)
    return f"{metric_text(name, found.value)} ({low} to {high})"


def _counted(result: Result) -> str:
    """As in '1,864 / 2,000', or, over seeds or folds, '92.10 to 93.20 %'."""
    each = [own.accuracy for own in result.per_fold or result.per_seed or []]
    if len(each) < 2:
        return f"{result.correct:,} / {result.total:,}"
    low, high = (round(100 * end, 2) for end in (min(each), max(each)))
    return f"{low:.2f} to {high:.2f} %" if low < high else f"{low:.2f} %"


def _counts(train: int, validation: int, test: int) -> str:
    return f"{train:,} to learn from, {validation:,} to validate, {test:,} to test"


def class_table(result: Result) -> Table:
    """Accuracy for each class that has images, worst first; of many classes the worst only."""
    scores = {name: score for name, score in (result.per_class or {}).items() if score["total"]}
    every = sorted(scores.items(), key=lambda item: item[1]["accuracy"])
    title = "per class, worst first"
    if len(every) > MAX_CLASSES:
        title += f": the first {MAX_CLASSES} of {len(every):,}; --json has all"
    table = Table(title=title, title_justify="left")
    for column in ("class", "right", "total", "accuracy"):
        table.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    for name, score in every[:MAX_CLASSES]:
        table.add_row(name, f"{score['correct']:,}", f"{score['total']:,}", percent(score["accuracy"]))
    return table


def confusion_lines(confusion: Confusion, classes: Sequence[str]) -> list[str]:
    """The most frequent mistakes, as in '4 taken for 9: 12 images'."""
    return [
        f"{classes[true]} taken for {classes[taken]}: {count} {'image' if count == 1 else 'images'}"
        for true, taken, count in confusion.mistakes(MAX_CONFUSED)
    ]


def mapping_lines(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """JSON values for a person: a line per key, keys padded to one width, what is nested indented below its key."""
    width = max((len(key) for key, value in values.items() if not _nested(value)), default=0)
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}", *mapping_lines(value, indent + "  ")]
        elif _nested(value):
            for number, item in enumerate(value, 1):
                lines += [f"{indent}{key} {number}", *mapping_lines(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_plain(value)}".rstrip())
    return lines


def _nested(value: Any) -> bool:
    """Whether a value takes lines of its own: a mapping, or a list of mappings."""
    listed = isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
    return bool(value) and (isinstance(value, Mapping) or listed)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return listed(_plain(item) for item in value) or "none"
    if value is None or value == {}:
        return "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def evaluation_parts(
    result: Result,
    data: str,
    classes: Sequence[str],
    claimed: float | None,
    left_out: int = 0,
    not_offered: Sequence[str] = (),
    learnt: str | None = None,
) -> list[RenderableType]:
    """What `finetune evaluate` shows.

    left_out, not_offered: what the checkpoint and the data set do not share. learnt: why it is no fair test.
    """
    parts: list[RenderableType] = [
        Text(f"{data}: {result.correct:,} of {result.total:,} right, {with_interval(result)}")
    ]
    if learnt is not None:
        parts.append(Text(learnt))
    if (line := groups_line(result.total, result.groups, result.effective_images)) is not None:
        low, high = (100 * end for end in wilson(result.correct, result.total))
        parts.append(Text(f"{line}; as single images it would be {low:.2f} to {high:.2f}"))
    if left_out:
        parts.append(Text(f"{left_out:,} test images of classes that the checkpoint does not know are left out"))
    if not_offered:
        parts.append(Text(f"classes of the checkpoint that {data} does not have were no choice: {listed(not_offered)}"))
    if claimed is not None:
        same = "the same" if abs(claimed - result.accuracy) < 1e-12 else "NOT the same"
        parts.append(Text(f"the checkpoint says {percent(claimed)} on these images: {same}"))
    if result.metrics:
        parts.append(metrics_table(result.metrics))
    parts.append(class_table(result))
    if result.confusion is not None:
        parts += [Text(line) for line in confusion_lines(result.confusion, classes)]
    return parts


def metric_text(name: str, value: float | None, *, signed: bool = False) -> str:
    """A metric as shown: accuracies and the like in percent, AUROC and log loss as numbers."""
    if value is None:
        return "not defined"
    sign = "+" if signed else ""
    if name in PLAIN:
        return f"{round(value, 4) + 0.0:{sign}.4f}"
    return f"{round(100 * value, 2) + 0.0:{sign}.2f}" + ("" if signed else " %")


def metrics_table(metrics: Mapping[str, MetricValue]) -> Table:
    """Each metric with its 95 % interval."""
    table = Table(title="metrics", title_justify="left")
    table.add_column("metric", overflow="fold")
    table.add_column("value (95 % interval)", justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for name, found in metrics.items():
        title = METRICS[name].title if name in METRICS else name
        table.add_row(title, _metric_with_interval(name, found), found.note or "")
    return table


def comparison_parts(found: Mapping[str, Any], titles: Sequence[str]) -> list[RenderableType]:
    """What `finetune compare` shows; `titles` say what A, the first, and B, the second, are."""
    parts: list[RenderableType] = []
    for letter, title, side in zip("AB", titles, (found["first"], found["second"]), strict=True):
        low, high = side["ci95"]
        parts.append(
            Text(f"{letter}: {title}: {percent(side['accuracy'])} ({100 * low:.2f} to {100 * high:.2f}) right")
        )
    kind = "images" if found.get("groups") is None else f"images in {found['groups']:,} groups, by which intervals are"
    kind += ", a mean over trainings" if found["comparison"]["design"] == CROSSED else ""
    counts = ", ".join(
        f"only {x} is right on {found[key]:,g}" for x, key in (("A", "only_first"), ("B", "only_second"))
    )
    parts += [Text(f"of {found['images']:,} {kind}, {counts}"), Text(found["sentence"])]
    if found["metric"] != "accuracy":
        parts.append(Text(_metric_line(found["metric"], found["metrics"][found["metric"]])))
    table = Table(title="B minus A", title_justify="left")
    table.add_column("metric", overflow="fold")
    for column in ("A", "B", "difference (95 % interval)", "p"):
        table.add_column(column, justify="right", overflow="fold")
    for name, metric in found["metrics"].items():
        title = METRICS[name].title + ("" if metric["higher_is_better"] else ", lower is better")
        sides = (metric_text(name, metric[key]) for key in ("first", "second"))
        p_value = "" if metric["p_value"] is None else _p_value_text(metric["p_value"])
        table.add_row(title, *sides, _difference_text(name, metric), p_value)
    parts.append(table)
    if found["note"] is not None:
        parts.append(Text(found["note"]))
    if found["positive"] is not None:
        parts.append(Text(f"sensitivity is about class {found['positive']}"))
    return parts


def _difference_text(name: str, metric: Mapping[str, Any]) -> str:
    if metric["difference"] is None:
        return "not defined"
    if metric["ci95"] is None:
        return metric_text(name, metric["difference"], signed=True)
    value, low, high = (metric_text(name, x, signed=True) for x in (metric["difference"], *metric["ci95"]))
    return f"{value} ({low} to {high})"


def _p_value_text(p_value: float, equals: str = "") -> str:
    return "< 0.0001" if p_value < 0.0001 else f"{equals}{p_value:.4g}"


def _metric_line(name: str, metric: Mapping[str, Any]) -> str:
    """The difference of a metric in words."""
    title = METRICS[name].title
    if metric["difference"] is None or metric["p_value"] is None:
        return f"{title}: not to be compared on these images"
    shown = f"{_difference_text(name, metric)}, p {_p_value_text(metric['p_value'], '= ')}"
    if metric["p_value"] >= SIGNIFICANT:
        return f"{title}: no difference shown between B and A: {shown}"
    better = (metric["difference"] > 0) == metric["higher_is_better"]
    return f"{title}: B is {'better' if better else 'worse'} than A: {shown}"


def verification_lines(found: Mapping[str, Any]) -> list[str]:
    """What `finetune verify` shows: a line for each claim, and what it comes to. What failed is listed."""
    shown = {"ok": "ok", "failed": "FAILED", "not checked": "not checked"}
    width = max(len(check["check"]) for check in found["checks"])
    lines = [f"{found['checkpoint']}, sha256 {found['sha256'][:12]}…"]
    for check in found["checks"]:
        lines.append(f"  {check['check']:<{width}}  {shown[check['state']]:<11}  {check['says']}")
        if check["state"] == "failed" and check["details"] != [check["says"]]:
            indent = " " * (width + 17)
            lines += [indent + detail for detail in check["details"][:MAX_FAULTS]]
            if more := len(check["details"]) - MAX_FAULTS:
                lines += [f"{indent}and {more} more"] if more > 0 else []
    count = {state: sum(check["state"] == state for check in found["checks"]) for state in shown}
    lines.append(f"{count['ok']} ok, {count['failed']} FAILED, {count['not checked']} not checked")
    return lines


def sight_line(
    file: str,
    top: Sequence[tuple[str, float]],
    error: str | None = None,
    *,
    unsure: bool = False,
    unlike: bool = False,
) -> str:
    """What `finetune predict` shows for one picture: tab between the parts, as in 'a.jpg<tab>bee 97.10 %'.

    unsure: the best class is a guess, as in 'a.jpg<tab>unsure, best guess bee 61.20 %'. unlike: the picture is unlike
    those trained on.
    """
    found = [f"error: {error}"] if error is not None else [f"{label} {percent(value)}" for label, value in top]
    if unsure:
        found[0] = f"unsure, best guess {found[0]}"
    return "\t".join([file, *found, *(["unlike those trained on"] if unlike else [])])


def plan_parts(plan: Mapping[str, Any]) -> list[RenderableType]:
    """What `finetune plan` shows: a table with one column per phase, in 80 characters, and a line on each cache."""
    counts = _counts(plan["train"], plan["validation"], plan["test"])
    title = Text(f"{plan['kind']} of {plan['model']} on {plan['data']}: {counts}")
    table = Table()
    phases = plan["phases"]
    table.add_column("phase", no_wrap=True)
    for phase in phases:
        table.add_column(phase["name"], overflow="fold")
    rates = ["\n".join(f"{stage} {rate:.3g}" for stage, rate in p["learning_rates"].items()) for p in phases]
    table.add_row("trains", *(", ".join(p["trains"]) for p in phases))
    table.add_row("parameters", *(f"{p['trainable_parameters']:,}" for p in phases))
    table.add_row("learning rate", *rates)
    if any(p["l2_sp"] is not None for p in phases):
        table.add_row("pull to source", *("none" if p["l2_sp"] is None else f"{p['l2_sp']:g}" for p in phases))
    table.add_row("frozen", *(", ".join(p["frozen"]) or "none" for p in phases))
    table.add_row("norms", *(p["norms"] if p["frozen"] or p["norms"] == "hold_all" else "train" for p in phases))
    table.add_row("augmented", *("yes" if p["augmented"] else "no" for p in phases))
    table.add_row("cached", *("yes" if p["cached"] else "no" for p in phases))
    table.add_row("steps", *(f"{p['steps']:,} of {p['batch_size']}" if p["steps"] else "solved" for p in phases))
    table.add_row("about", *(f"{p['seconds']:.1f} s" for p in phases))
    table.add_row("memory", *(amount(sum(p["memory"].values())) for p in phases))
    caches = [Text(f"{p['name']}: {p['cache']['says']}") for p in phases if p["frozen"]]
    mixes = [] if plan.get("mixes") is None else [Text(f"interpolated: {plan['mixes']}")]
    auto = [] if plan.get("where") is None else stage_parts(plan["where"])
    calibration = map(Text, plan["calibration"]["says"])
    return [
        title,
        *auto,
        table,
        *caches,
        *mixes,
        *calibration,
        *map(Text, _power_lines(plan["test"], plan["power"], plan.get("groups"))),
    ]


def _power_lines(images: int, power: Sequence[Mapping[str, Any]], groups: int | None = None) -> list[str]:
    """What the test images can show, before anything is trained."""
    if not power:
        return []
    shown = [
        f"{100 * row['detectable']:.1f} points where they differ on {100 * row['differing']:.0f} % of the images"
        for row in power
        if row["detectable"] is not None
    ]
    if not shown:
        return [f"{images:,} test images show no difference between two trainings, however large"]
    most = power[-1]
    grouped = f"they are in {groups} groups, and show less the more a group is answered alike"
    return [
        f"what {images:,} test images show of one training against another, 4 times in 5: a difference of "
        f"{', '.join(shown)}; 1 point takes {power[0]['images_for_one_point']:,} to "
        f"{most['images_for_one_point']:,} test images",
        "training again moves results too: a verdict about the weights takes several seeds (adapt --seeds 5)",
        *([] if groups is None else [grouped]),
    ]
