"""Temperature, the threshold of a promise, and the novelty score, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from finetune.models.novelty import NoveltyScore, channel_means, decoded, nearest_distance
from finetune.train.abstention import find_threshold, images_needed, images_that_would_do
from finetune.train.novelty import distances, fit_novelty, reference_layer
from finetune.train.temperature import fit_temperature


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_the_temperature_undoes_a_factor_of_the_logits(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]  # so that 1 is right
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.08)


def test_the_temperature_has_the_lowest_log_loss_of_a_grid() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(300, 4, generator=generator), torch.randint(0, 4, (300,), generator=generator)
    logits[torch.arange(200), labels[:200]] += 2

    def loss(temperature: float) -> float:
        chances = (logits.double() / temperature).softmax(1)
        entropy = torch.nn.functional.nll_loss(chances.log(), labels)
        return float(entropy - (1 - chances.amax(1)).log().mean() / 300)

    found = fit_temperature(logits, labels)
    assert loss(found) <= min(loss(own) for own in np.geomspace(0.06, 19, 200)) + 1e-7
    assert found == float(f"{found:.4g}")


def test_answers_that_are_all_right_are_not_certain() -> None:
    labels = torch.arange(50) % 5
    found = (5 * torch.eye(5)[labels] / fit_temperature(5 * torch.eye(5)[labels], labels)).softmax(1)
    assert found.amax(1).numpy() == pytest.approx(50 / 51, abs=0.001)


@pytest.mark.parametrize(("max_error", "mistakes"), [(0.01, 0), (0.01, 1), (0.05, 3), (0.5, 0)])
def test_the_images_needed_are_the_fewest_that_prove_it(max_error: float, mistakes: int) -> None:
    count = images_needed(max_error, mistakes)
    assert binom.cdf(mistakes, count, max_error) <= 0.05 < binom.cdf(mistakes, count - 1, max_error)


def ranked(wrong: list[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Falling probabilities, with mistakes at these places."""
    right = np.ones(count, bool)
    right[wrong] = False
    return np.linspace(1, 0.2, count), right


def fails(right: np.ndarray, start: int, level: float) -> int:
    """The first number of answers, from `start` on, whose mistakes do not prove an error of 1 %."""
    counts = range(start, len(right) + 1)
    return next((n for n in counts if binom.cdf(int((~right[:n]).sum()), n, 0.01) > level), len(right) + 1)


def test_a_threshold_is_the_last_before_the_first_that_is_not_proven() -> None:
    probability, right = ranked([100, 600, 601, 602], 700)  # too few for two sequences; it starts where one is allowed
    found = find_threshold(probability, right, 0.01)
    assert found is not None and found.answered == fails(right, 473, 0.05) - 1 == 600 and found.wrong == 1
    assert found.probability == probability[found.answered - 1]
    shuffled = np.random.default_rng(0).permutation(700)
    assert find_threshold(probability[shuffled], right[shuffled], 0.01) == found


def test_a_second_sequence_starts_where_the_first_has_ended() -> None:
    probability, right = ranked([100, 985, 990], 1000)  # no mistake is allowed among the surer half, but one is there
    assert fails(right, 368, 0.025) == 368
    found = find_threshold(probability, right, 0.01)
    assert found is not None and found.answered == fails(right, 874, 0.025) - 1 > 900


def test_images_of_one_probability_are_answered_together() -> None:
    probability, right = np.repeat([0.9, 0.5], [400, 100]), np.ones(500, bool)
    assert find_threshold(probability[:420], right[:420], 0.01).answered == 420  # type: ignore[union-attr]
    right[450:] = False
    found = find_threshold(probability, right, 0.01)
    assert found is not None and found.answered == 400, "with the 100 less probable ones 50 would be wrong"


def test_too_few_or_too_many_mistakes_promise_nothing() -> None:
    probability, right = ranked([], 298)
    assert find_threshold(probability, right, 0.01) is None
    assert images_that_would_do(probability, right, 0.01) is not None
    probability, right = ranked(list(range(0, 1000, 10)), 1000)
    assert find_threshold(probability, right, 0.01) is None and images_that_would_do(probability, right, 0.01) is None


def test_a_promise_is_broken_no_more_often_than_it_says() -> None:
    """Of promises made on one draw, the true error is above 3 % in at most 5 % (and some for chance) of 300."""
    generator, broken, made = np.random.default_rng(0), 0, 0
    for _ in range(300):
        probability = generator.uniform(0.5, 1, 400)
        right = generator.uniform(size=400) < 1 - (1 - probability) ** 2.5
        found = find_threshold(probability, right, 0.03)
        if found is not None:
            made += 1
            rest = np.linspace(found.probability, 1, 1000)
            broken += float(((1 - rest) ** 2.5).mean()) > 0.03
    assert made > 150 and broken / 300 <= 0.08


def test_reference_vectors_come_back_nearly_as_they_were() -> None:
    features = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    layer = reference_layer(3, features)
    unit = torch.nn.functional.normalize(features)
    assert float((decoded(layer) - unit).abs().max()) < 0.01 and (layer.count, layer.width, layer.cut) == (50, 20, 3)
    near = nearest_distance(features, decoded(layer))
    assert near.shape == (50,) and float(near.max()) < 0.03
    assert float(nearest_distance(-features[:1], unit[:1])[0]) == pytest.approx(2, abs=1e-5)


def test_one_picture_in_a_hundred_is_called_unlike() -> None:
    generator = torch.Generator().manual_seed(0)
    train, held, new = (torch.randn(n, 8, generator=generator) for n in (200, 300, 3000))
    layers = [reference_layer(1, train), reference_layer(2, train.square())]
    novelty = fit_novelty(layers, distances(layers, [held, held.square()]))
    assert novelty is not None and (novelty.images, novelty.share) == (300, 0.01)
    score = NoveltyScore.of(novelty)
    own = score.scores([held, held.square()])
    assert int((own > novelty.threshold).sum()) == 2  # the 298th of 300 is not above itself
    assert float((score.scores([new, new.square()]) > novelty.threshold).float().mean()) < 0.03
    assert abs(float(own.mean())) < 1e-4


def test_too_few_held_out_images_set_the_threshold_above_all_of_them() -> None:
    layers = [reference_layer(1, torch.eye(4))]
    held = distances(layers, [torch.rand(9, 4, generator=torch.Generator().manual_seed(0))])
    novelty = fit_novelty(layers, held)
    assert novelty is not None and novelty.share == pytest.approx(0.1)
    assert fit_novelty(layers, held[:1]) is None and fit_novelty([], held[:, :0]) is None


def test_channel_means_of_maps_tokens_and_features() -> None:
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert channel_means(maps).tolist() == [[5.5, 17.5]]
    assert channel_means(maps[0]).shape == (2, 4) and channel_means(maps[0, 0]).shape == (3, 4)
