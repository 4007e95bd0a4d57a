"""mixup and cutmix: shares, boxes and targets agree, and the batch size changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from finetune.data.augment.affine import Augment
from finetune.data.augment.mixup import BOX_X, BOX_Y, CUT, STAYS, apply_mix, sample_mix
from finetune.data.loader import Batches, keyed_generator
from finetune.data.normalize import Normalizer

CPU = torch.device("cpu")
AS_IT_IS = Normalizer((0.0,), (1 / 255,), CPU)
COUNT, CLASSES = 23, 5
KINDS = [Augment(mixup=0.4), Augment(cutmix=1.0), Augment(mixup=0.4, cutmix=1.0)]


def batches(augment, batch_size=8, count=COUNT, **options):
    """Image k is of brightness k throughout, so that an image shows what it is mixed of."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 10, 10).contiguous()
    labels = torch.arange(count) % CLASSES
    options = {"seed": 3, "normalize": AS_IT_IS, "augment": augment, "classes": CLASSES, **options}
    return Batches(pixels, labels, batch_size=batch_size, **options)


def whole(given, epoch=0):
    parts = list(given.epoch(epoch))
    return torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 4.0])
def test_the_share_is_beta_distributed(alpha):
    shares = sample_mix(4000, Augment(mixup=alpha), keyed_generator("mix", alpha))[:, STAYS]
    assert abs(shares.mean() - 0.5) < 0.03 and shares.min() >= 0 and shares.max() <= 1
    assert stats.kstest(shares.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_a_coin_decides_between_the_two_and_each_has_its_own_alpha():
    found = sample_mix(4000, Augment(mixup=8.0, cutmix=0.1), keyed_generator("coin"))
    cut = found[:, CUT] > 0
    assert abs(cut.float().mean() - 0.5) < 0.03
    assert found[~cut, STAYS].std() < 0.15 and found[cut, STAYS].std() > 0.4
    assert not sample_mix(50, Augment(mixup=1.0), keyed_generator(0))[:, CUT].any()
    assert sample_mix(50, Augment(cutmix=1.0), keyed_generator(0))[:, CUT].all()


@pytest.mark.parametrize("augment", KINDS)
def test_pixels_and_targets_say_the_same_and_targets_sum_to_1(augment):
    given = batches(augment)
    images, targets = whole(given)
    order = torch.randperm(COUNT, generator=keyed_generator(3, 0, "order"))
    first, second = order, order.roll(-1)
    assert targets.dtype == torch.float32 and targets.shape == (COUNT, CLASSES)
    torch.testing.assert_close(targets.sum(1), torch.ones(COUNT))
    # Brightness k is image k: the mean brightness gives the share that stayed, and so does the target.
    stays = (images.mean((1, 2, 3)) - second) / (first - second)
    assert bool(((stays > -1e-4) & (stays < 1 + 1e-4)).all()) and stays.std() > 0.1
    one, other = (F.one_hot(part % CLASSES, CLASSES).float() for part in (first, second))
    torch.testing.assert_close(targets, one * stays[:, None] + other * (1 - stays[:, None]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("augment", KINDS)
def test_the_batch_size_changes_nothing(augment):
    images, targets = whole(batches(augment, 8), epoch=2)
    for batch_size in (1, 7, 22, 23, 100):
        again = whole(batches(augment, batch_size), epoch=2)
        assert torch.equal(again[0], images) and torch.equal(again[1], targets)
    assert not torch.equal(whole(batches(augment), epoch=3)[1], targets)
    assert not torch.equal(whole(batches(augment, seed=4), epoch=2)[1], targets)


def test_mixing_comes_after_the_changes_of_each_image():
    fields = {"flip": True, "colour": 0.3, "shift": 2}
    plain, _ = whole(batches(Augment(**fields)))
    both, _ = whole(batches(Augment(**fields, mixup=0.4)))
    stays = sample_mix(COUNT, Augment(mixup=0.4), keyed_generator(3, 0, "mix"))[:, STAYS]
    stays = stays[torch.randperm(COUNT, generator=keyed_generator(3, 0, "order"))][:, None, None, None]
    torch.testing.assert_close(both, plain * stays + plain.roll(-1, 0) * (1 - stays), rtol=0, atol=1e-3)


def test_a_box_is_of_the_images_shape_and_cut_at_the_border():
    how = torch.zeros(2, 4)
    how[:, CUT], how[:, STAYS] = 1.0, 0.75  # half of each side
    how[0, [BOX_X, BOX_Y]] = 0.5
    images, others = torch.zeros(2, 1, 40, 80), torch.ones(2, 1, 40, 80)
    found, targets = apply_mix(images, others, (torch.tensor([0, 0]), torch.tensor([1, 1])), how, 2)
    expected = torch.zeros(2, 1, 40, 80)
    expected[0, :, 10:30, 20:60] = 1
    expected[1, :, :10, :20] = 1
    assert torch.equal(found, expected)
    torch.testing.assert_close(targets, torch.tensor([[0.75, 0.25], [1 - 1 / 16, 1 / 16]]))


def test_one_image_is_mixed_with_itself():
    images, targets = whole(batches(KINDS[0], count=1))
    assert torch.equal(images, torch.zeros(1, 1, 10, 10)) and targets.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]
