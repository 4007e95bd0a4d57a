"""docs/concepts.md is right: its code blocks are run and compared with torch and with this project's own code."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune.models.cnn import ArticleCNN
from finetune.models.novelty import NoveltyScore
from finetune.report import statistics as metrics
from finetune.report.comparison import compare, sentence
from finetune.report.confidence import with_temperature
from finetune.report.cross_validation import FoldSpread
from finetune.report.crossed import crossed_difference
from finetune.report.metrics import Answers
from finetune.train.abstention import find_threshold, images_needed
from finetune.train.interpolation import mixed_state
from finetune.train.novelty import fit_novelty, reference_layer
from finetune.train.optim import SourcePull, WeightAverage, make_schedule, stage_groups

PAGE = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
NAMESPACE: dict[str, Any] = {}
for block in BLOCKS:
    exec(compile(block, "docs/concepts.md", "exec"), NAMESPACE)  # the asserts on the page run here
page = SimpleNamespace(**NAMESPACE)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# --- the page itself


def test_every_function_of_the_page_is_tested_here() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    functions = re.findall(r"^def (\w+)", "\n".join(BLOCKS), re.MULTILINE)
    assert len(functions) == len(set(functions)) >= 20
    assert [name for name in functions if f"page.{name}(" not in here] == []


def test_every_section_with_a_formula_has_code() -> None:
    sections = re.split(r"^#+ ", PAGE, flags=re.MULTILINE)
    bare = [section.splitlines()[0] for section in sections if "\n$$\n" in section and "```python" not in section]
    assert bare == []


def test_the_formulas_survive_githubs_markdown() -> None:
    """Displays stand alone on their lines, and hold no backslash that Markdown would take for its own."""
    assert PAGE.count("$$") == 2 * len(re.findall(r"^\$\$\n(?:[^$\n]+\n)+\$\$$", PAGE, re.MULTILINE))
    assert re.findall(r"\\[^a-z\s]", PAGE) == []
    assert [line for line in PAGE.splitlines() if line.count("$") % 2] == []  # nothing broken over two lines


def test_the_contents_point_at_headings() -> None:
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)}
    links = re.findall(r"\(#([^)]+)\)", PAGE)
    assert links
    assert set(links) <= anchors


# --- the network


@pytest.mark.parametrize("seed", range(24))
def test_convolution_is_torchs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels, outputs, k, stride, dilation = (int(rng.integers(1, high)) for high in (4, 4, 4, 4, 3))
    padding = int(rng.integers(0, 4))
    rows, columns = (int(size) for size in rng.integers(dilation * (k - 1) + 1, 10, size=2))
    x, w, b = normal(channels, rows, columns), normal(outputs, channels, k, k), normal(outputs)
    expected = F.conv2d(*map(torch.from_numpy, (x[None], w, b)), stride, padding, dilation)[0].numpy()
    y = page.convolve(x, w, b, stride, padding, dilation)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_the_example_drawn_on_the_page_is_the_one_computed() -> None:
    drawing = re.search(r"```text\nimage +kernel +result\n(.*?)```", PAGE, re.DOTALL)
    assert drawing is not None
    columns = [[line[a:b].split() for line in drawing[1].splitlines()] for a, b in ((0, 11), (11, 22), (22, None))]
    image, kernel, result = (np.array([row for row in column if row], dtype=int) for column in columns)
    np.testing.assert_array_equal(page.image, image[None])
    np.testing.assert_array_equal(page.kernel, kernel[None, None])
    np.testing.assert_array_equal(page.convolve(page.image, page.kernel, [1]), result[None])


def test_output_size_is_torchs() -> None:
    image = torch.zeros(1, 1, 11, 14)
    for k in (1, 2, 3, 5):
        for stride in (1, 2, 3):
            for padding in (0, 1, 2):
                for dilation in (1, 2):
                    out = F.conv2d(image, torch.zeros(1, 1, k, k), None, stride, padding, dilation)
                    sizes = [page.output_size(size, k, stride, padding, dilation) for size in (11, 14)]
                    assert sizes == list(out.shape[2:])


@pytest.mark.parametrize(("a", "b", "k"), [(1, 32, 3), (32, 64, 3), (3, 5, 1), (4, 2, 7)])
def test_parameter_counts_are_torchs(a: int, b: int, k: int) -> None:
    assert page.conv_parameters(a, b, k) == sum(p.numel() for p in nn.Conv2d(a, b, k).parameters())
    assert page.linear_parameters(a, b) == sum(p.numel() for p in nn.Linear(a, b).parameters())


def test_relu_and_max_pooling_are_torchs() -> None:
    x = normal(3, 9, 8)
    np.testing.assert_array_equal(page.relu(x), F.relu(torch.from_numpy(x)).numpy())
    for k in (2, 3):
        np.testing.assert_array_equal(page.max_pool(x, k), F.max_pool2d(torch.from_numpy(x), k).numpy())


def test_relu_and_max_pooling_commute_with_their_gradients() -> None:
    values = np.random.default_rng(1).integers(-3, 4, (50, 4, 6, 6)).astype(np.float32)  # many ties and zeros
    weights = torch.randn(50, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    outputs, gradients = [], []
    for order in (lambda x: F.max_pool2d(F.relu(x), 2), lambda x: F.relu(F.max_pool2d(x, 2))):
        x = torch.from_numpy(values).requires_grad_()
        y = order(x)
        (y * weights).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)
    np.testing.assert_array_equal(page.relu(page.max_pool(values[0])), page.max_pool(page.relu(values[0])))


def test_the_table_of_layers_is_the_network() -> None:
    model = ArticleCNN(classes=10)
    rows = re.findall(r"^\| (?:`(\w+)`)? ?\| (.+?) \| (.*?) ?\| \**([\d,]+)\** \|$", PAGE, re.MULTILINE)
    *layers, (_, _, _, together) = [(stage, layer, out, int(n.replace(",", ""))) for stage, layer, out, n in rows]
    assert together == sum(p.numel() for p in model.parameters())
    assert [stage for stage, *_ in layers if stage] == list(model.stages)
    x = torch.randn(2, 1, 28, 28)
    for stage, layer, output, parameters in layers:
        if stage:
            module = model.get_submodule(stage)
            assert parameters == sum(p.numel() for p in module.parameters())
            x = module(x.flatten(1) if isinstance(module, nn.Linear) else x)
        else:
            assert parameters == 0
            x = F.relu(x) if layer == "ReLU" else F.max_pool2d(x, 2)
        assert output == "×".join(map(str, x.shape[1:])), layer
    assert len(layers) == 9


def test_the_table_in_that_order_gives_what_the_network_gives() -> None:
    torch.manual_seed(0)
    model, x = ArticleCNN(classes=10).eval(), torch.randn(2, 1, 28, 28)
    by_hand = F.max_pool2d(F.relu(model.conv1(x)), 2)
    by_hand = F.max_pool2d(F.relu(model.conv2(by_hand)), 2)
    by_hand = model.head(F.relu(model.fc1(by_hand.flatten(1))))
    assert torch.equal(model(x), by_hand)


def test_normalising_is_torchvisions() -> None:
    from torchvision.transforms.functional import normalize

    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    expected = normalize(torch.from_numpy(pixels).double() / 255, [0.1307], [0.3081])
    np.testing.assert_allclose(page.normalize(pixels), expected.numpy(), atol=1e-12)


# --- training


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    logits, labels = 5 * normal(20, 7), np.random.default_rng(0).integers(0, 7, 20)
    ours = [page.cross_entropy(z, t, smoothing) for z, t in zip(logits, labels, strict=True)]
    expected = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=smoothing)
    assert np.mean(ours) == pytest.approx(expected.item(), rel=1e-12)


def run_torch(make: Any, start: np.ndarray, gradients: np.ndarray, rates: list[float]) -> np.ndarray:
    """Where a torch optimizer goes, given these gradients and these learning rates."""
    w = torch.from_numpy(start.copy()).requires_grad_()
    optimizer = make([w])
    for gradient, rate in zip(gradients, rates, strict=True):
        w.grad = torch.from_numpy(gradient.copy())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return w.detach().numpy()


RATES = [0.1, 0.2, 0.05, 0.3, 0.01, 0.02]  # uneven, so that a rate inside the velocity would show


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_sgd_is_torchs(nesterov: bool, decay: float) -> None:
    start, gradients = normal(5), normal(6, 5)
    w, v = start, np.zeros(5)
    for g, lr in zip(gradients, RATES, strict=True):
        w, v = page.sgd_step(w, g, v, lr, momentum=0.8, weight_decay=decay, nesterov=nesterov)
    settings: dict[str, Any] = {"lr": 1.0, "momentum": 0.8, "weight_decay": decay, "nesterov": nesterov}
    expected = run_torch(lambda params: torch.optim.SGD(params, **settings), start, gradients, RATES)
    np.testing.assert_allclose(w, expected, rtol=1e-12)


def test_a_steady_gradient_moves_ten_times_as_far() -> None:
    w, v = np.zeros(1), np.zeros(1)
    for _ in range(300):
        before, (w, v) = w, page.sgd_step(w, np.ones(1), v, lr=0.5)
    assert before - w == pytest.approx([10 * 0.5])


def test_adamw_is_torchs() -> None:
    start, gradients = normal(5), normal(6, 5)
    w, m, s = start, np.zeros(5), np.zeros(5)
    for t, (g, lr) in enumerate(zip(gradients, RATES, strict=True), start=1):
        w, m, s = page.adamw_step(w, g, m, s, t, lr, 0.8, 0.95, epsilon=1e-3, weight_decay=0.07)
    settings: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.07}
    expected = run_torch(lambda params: torch.optim.AdamW(params, **settings), start, gradients, RATES)
    np.testing.assert_allclose(w, expected, rtol=1e-12)


def test_adamws_defaults_are_torchs() -> None:
    start, gradients = normal(5), normal(1, 5)
    w, _, _ = page.adamw_step(start, gradients[0], np.zeros(5), np.zeros(5), 1, 0.1)
    np.testing.assert_allclose(w, run_torch(torch.optim.AdamW, start, gradients, [0.1]), rtol=1e-12)


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.2), (37, 0.3), (10, 0.5), (250, 0.05)])
def test_one_cycle_is_torchs_curve_with_the_peak_and_the_end_one_step_later(steps: int, warmup: float) -> None:
    expected = torch_schedule(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=steps,
            pct_start=warmup,
            cycle_momentum=False,
            div_factor=25,
            final_div_factor=float("inf"),
        ),
        steps,
    )
    peak, end = warmup * steps - 1, steps - 1
    for k, rate in enumerate(expected):
        rising, falling = warmup * k / peak, warmup + (1 - warmup) * (k - peak) / (end - peak)
        assert page.one_cycle(rising if k < peak else falling, warmup) == pytest.approx(rate, abs=1e-12)
    assert expected[-1] == 0


def test_cosine_is_torchs() -> None:
    expected = torch_schedule(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40), 40)
    assert [page.cosine(k / 40, warmup=0) for k in range(40)] == pytest.approx(expected, abs=1e-9)


def torch_schedule(make: Any, steps: int) -> list[float]:
    """The rates of so many steps under one of torch's schedules, at a top rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 0.5])
def test_the_schedules_are_the_projects(warmup: float) -> None:
    parts = np.linspace(0, 1, 41).tolist()
    for name in ("cosine", "one_cycle"):
        ours = [getattr(page, name)(r, warmup) for r in parts]
        assert ours == pytest.approx([make_schedule(name, warmup=warmup)(r) for r in parts], abs=1e-12)


def test_ease_goes_from_one_end_to_the_other() -> None:
    assert [page.ease(2.0, 5.0, x) for x in (0, 0.5, 1)] == pytest.approx([2.0, 3.5, 5.0])
    assert page.one_cycle(0, 0.3) == pytest.approx(1 / 25)
    assert page.cosine(0.1, 0.2) == pytest.approx(0.52)


def test_averaged_weights_are_the_projects() -> None:
    assert page.ema_decay(1, 0.99) == 2 / 11
    assert page.ema_decay(889, 0.99) < 0.99 == page.ema_decay(890, 0.99) == page.ema_decay(10**6, 0.99)
    weights = normal(30, 4)
    parameter = nn.Parameter(torch.from_numpy(weights[0].copy()))
    average, ours = WeightAverage([parameter], 0.7), weights[0]
    for k, w in enumerate(weights[1:], start=1):
        parameter.data.copy_(torch.from_numpy(w))
        average.update()
        ours = page.ema_step(ours, w, k, 0.7)
    np.testing.assert_allclose(ours, average.values[0].numpy(), rtol=1e-12)


# --- fine-tuning


def test_layer_rates_and_the_numbers_beside_them() -> None:
    rates = page.layer_rates(ArticleCNN.stages, 0.01, 0.7)
    said = re.search(r"With \$\\eta = 0.01\$ and \$d = 0.7\$ the rates are (.+?)\. With", " ".join(PAGE.split()))
    assert said is not None
    spoken = {stage: float(rate) for rate, stage in re.findall(r"([\d.]+) for `(\w+)`", said[1])}
    assert rates == pytest.approx(spoken)
    assert rates == pytest.approx({group.stage: group.lr for group in stage_groups(ArticleCNN(10), 0.01, 0.7)})
    assert page.layer_rates(["a", "b", "head"], 1.0, 0) == {"a": 0, "b": 0, "head": 1}


def test_a_held_batch_norm_is_torchs_in_evaluation() -> None:
    layer = nn.BatchNorm2d(3).double()
    for seed, tensor in enumerate((layer.weight.data, layer.bias.data, layer.running_mean)):
        tensor.copy_(torch.from_numpy(normal(3, seed=seed)))
    layer.running_var.copy_(torch.tensor([0.5, 1.0, 2.0]))
    layer.eval()
    x = torch.from_numpy(normal(4, 3, 5, 5))
    expected = layer(x).detach().numpy()
    for c in range(3):
        numbers = (t[c].item() for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias))
        np.testing.assert_allclose(page.batch_norm_held(x[:, c].numpy(), *numbers), expected[:, c], rtol=1e-10)


def test_the_class_mean_head_names_the_nearest_mean() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(200) % 6)
    features = normal(200, 8) + 0.7 * normal(6, 8, seed=1)[labels]
    weights, biases = page.class_mean_head(features, labels, 6)
    means = torch.stack([torch.from_numpy(features[labels == c]).mean(0) for c in range(6)])
    new = torch.from_numpy(normal(500, 8, seed=2))
    nearest = torch.cdist(new, means).argmin(1)
    assert torch.equal(F.linear(new, torch.from_numpy(weights), torch.from_numpy(biases)).argmax(1), nearest)


def test_a_mix_and_a_pull_are_the_projects() -> None:
    source, tuned = (torch.from_numpy(normal(4, 3, seed=seed)) for seed in (1, 2))
    for a in (0.0, 0.3, 1.0):
        found = mixed_state({"w": source}, {"w": tuned}, a, head=())
        np.testing.assert_allclose(page.mix(source.numpy(), tuned.numpy(), a), found["w"].numpy(), rtol=1e-12)
    weight = nn.Parameter(tuned.clone())
    weight.grad = torch.zeros_like(weight)
    SourcePull([weight], [source], 0.3).add_gradient()
    penalty, gradient = page.pull(tuned.numpy(), source.numpy(), 0.3)
    np.testing.assert_allclose(weight.grad.numpy(), gradient, rtol=1e-12)
    assert penalty == pytest.approx(0.15 * float((tuned - source).square().sum()))


# --- the verdict


def test_the_pages_statistics_are_the_projects() -> None:
    span = range(5)
    for e, f, g, h in [(e, f, g, h) for e in span for f in span for g in span for h in span if e + f + g + h]:
        counts = [e, f, g, h]
        first, second = np.repeat([True, False, True, False], counts), np.repeat([True, True, False, False], counts)
        pair = metrics.paired_difference(first, second)
        assert page.newcombe(e, f, g, h) == pytest.approx(pair.ci95, abs=1e-12)
        assert page.mcnemar(f, g) == pytest.approx(pair.mid_p, rel=1e-12)
        assert page.wilson(e + f, sum(counts)) == pytest.approx(metrics.wilson(e + f, sum(counts)), abs=1e-12)


@pytest.mark.parametrize(("seeds", "images"), [(2, 5), (3, 60), (5, 200)])
def test_the_pages_interval_over_seeds_is_the_projects(seeds: int, images: int) -> None:
    first, second = normal(seeds, images) < 0.5, normal(seeds, images, seed=1) < 0.9
    assert page.crossed(first, second) == pytest.approx(crossed_difference(first, second).ci95, abs=1e-12)


def test_the_pages_interval_over_folds_is_the_projects() -> None:
    results = [0.9, 0.95, 0.925, 0.85]
    spread = FoldSpread.of(results, [40] * 4)
    expected = (spread.mean - spread.half_width, spread.mean + spread.half_width)
    assert page.over_folds(results) == pytest.approx(expected, abs=1e-12)


def test_a_perfect_score_on_ten_images_is_as_the_page_says() -> None:
    assert "somewhere from 72 %" in " ".join(PAGE.split())
    assert round(100 * page.wilson(10, 10)[0]) == 72


@pytest.mark.parametrize("counts", [(9000, 500, 190, 310), (350, 14, 9, 27)])
def test_the_sentences_on_the_page_are_the_ones_on_the_screen(counts: tuple[int, ...]) -> None:
    first, second = np.repeat([True, False, True, False], counts), np.repeat([True, True, False, False], counts)
    assert f"```text\n{sentence(compare(first, second), 'after', 'scratch')}\n```" in PAGE


# --- how sure it is


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_pages_temperature_is_the_projects(temperature: float) -> None:
    logits = 4 * normal(20, 5)
    ours = np.stack([page.at_temperature(z, temperature) for z in logits])
    own = Answers.of(np.zeros(20, np.int64), F.softmax(torch.from_numpy(logits), 1).numpy())
    found = with_temperature(own, temperature)
    assert found is not None
    np.testing.assert_allclose(ours, found.probabilities, rtol=1e-9)
    np.testing.assert_array_equal(ours.argmax(1), logits.argmax(1))


def test_the_page_needs_as_many_answers_as_the_project() -> None:
    from scipy.stats import binom

    for wrong, max_error in ((0, 0.01), (1, 0.01), (3, 0.1)):
        assert page.answers_needed(max_error, wrong) == images_needed(max_error, wrong)
        assert page.chance_of_so_few(wrong, 40, max_error) == pytest.approx(binom.cdf(wrong, 40, max_error))


@pytest.mark.parametrize("images", [50, 90, 400])
def test_the_pages_promise_is_the_projects(images: int) -> None:
    thresholds = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        probability = rng.beta(6, 1, images).round(2)  # with ties
        right = rng.random(images) < probability**0.3
        found = find_threshold(probability, right, 0.05)
        assert page.promised_threshold(probability, right, 0.05) == (None if found is None else found.probability)
        thresholds.append(found)
    surest, none_wrong = np.linspace(1, 0.5, 100), np.zeros(100, int)
    assert page.one_sequence(surest, none_wrong, 0.05, 0.05, 0.7) == surest[-1]
    assert page.one_sequence(surest[:58], none_wrong[:58], 0.05, 0.05, 0.7) is None, "59 are needed"
    assert all(found is None for found in thresholds) if images == 50 else any(thresholds)


def test_the_pages_novelty_is_the_projects() -> None:
    features, known = [normal(6, 8), normal(6, 5)], [normal(9, 8, seed=1), normal(9, 5)]
    layers = [reference_layer(cut, torch.from_numpy(own)) for cut, own in enumerate(known, 1)]
    record = fit_novelty(layers, torch.from_numpy(np.abs(normal(30, 2))))
    assert record is not None
    score = NoveltyScore.of(record)
    expected = score.scores([torch.from_numpy(own).float() for own in features])
    numbers = [[getattr(layer, key) for layer in record.layers] for key in ("mean", "std")]
    references = [own.numpy() for own in score.references]
    ours = [page.novelty([own[k] for own in features], references, *numbers) for k in range(6)]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_grouped_images_are_worth_as_many_as_in_the_report() -> None:
    groups = np.repeat(np.arange(30), np.arange(1, 31))
    right = normal(30)[groups] + normal(len(groups)) < 1.5
    assert page.worth(right.astype(float), groups) == pytest.approx(metrics.effective_images(right, groups))
