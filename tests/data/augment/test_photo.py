"""Changes of photographs: each against a property or a reference of its own, and all of them by image alone."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as reference

from finetune.data.augment import photo
from finetune.data.augment.affine import Augment, augment_affine
from finetune.data.augment.photo import (
    AREA,
    BRIGHTNESS,
    CHUNK,
    CONTRAST,
    ERASING,
    FLIP,
    LEFT,
    SATURATION,
    TOP,
    augment_photo,
    color_jitter,
    erase_masks,
    random_crops,
)
from finetune.data.loader import Batches, keyed_generator
from finetune.data.normalize import Normalizer
from finetune.recipe.schema import PRESETS, AugmentSettings

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
WHOLE = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)  # scale and offset that leave 0..255 as it is


def pictures(count=9, channels=3, side=24, seed=0):
    """Smooth colours of 0..255."""
    coarse = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True).to(torch.uint8)


def middle(augment, count=9, **fixed):
    """0.5 throughout, and 1 for the coins, which is no change, but for what is given by name."""
    found = torch.full((count, augment.numbers), 0.5)
    own = found[:, augment.first_photo_number :]
    own[:, FLIP] = own[:, ERASING] = 1.0
    own[:, AREA] = 0.0
    for name, value in fixed.items():
        own[:, getattr(photo, name)] = value
    return found


def changed(pixels, numbers, augment, size=None):
    size = size or tuple(pixels.shape[-2:])
    return augment_photo(pixels, numbers, augment, size, *(t[: pixels.shape[1]] for t in WHOLE))


def draws(augment, count, seed=0):
    return torch.rand(count, augment.numbers, generator=torch.Generator().manual_seed(seed))


# --- the whole --------------------------------------------------------------------------------------------------------

ALL = Augment(crop=0.3, flip=True, colour=0.4, erasing=0.5, shift=2, rotate=15, scale=0.1, shear=5, elastic=1, erase=3)
EACH = [
    Augment(crop=0.3),
    Augment(flip=True),
    Augment(colour=0.4),
    Augment(erasing=1.0),
    Augment(flip=True, shift=2, erase=4),
    Augment(flip=True, rotate=20, elastic=1),
    ALL,
]


def test_photo_numbers_come_after_those_there_were():
    assert Augment(shift=1).numbers == 8 and Augment(shift=1, flip=True).numbers == 21
    assert Augment(elastic=1, elastic_grid=3, crop=0.5).numbers == 8 + 18 + 13
    assert not Augment(mixup=0.2).numbers and Augment(mixup=0.2).changes and Augment(cutmix=1).mixes
    assert not Augment().changes and not Augment(flip=True).mixes


@pytest.mark.parametrize("augment", [a for a in EACH if not (a.erase or a.crop)])
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_that_mean_nothing_change_nothing(augment, channels):
    pixels = pictures(channels=channels)
    torch.testing.assert_close(changed(pixels, middle(augment), augment), pixels.float(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("augment", EACH)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0.0, 1 - 2**-24, "random"])
def test_every_corner_is_finite_in_range_and_of_the_size_asked_for(augment, channels, value):
    pixels = pictures(channels=channels)
    size = (20, 16) if augment.crop else (24, 24)
    numbers = draws(augment, 9) if value == "random" else torch.full((9, augment.numbers), value)
    before = pixels.clone()
    found = changed(pixels, numbers, augment, size)
    assert found.shape == (9, channels, *size) and found.dtype == torch.float32
    assert bool((found >= -1e-3).all() and (found <= 255.001).all()) and torch.equal(pixels, before)


@pytest.mark.parametrize("augment", EACH)
def test_an_image_does_not_depend_on_its_place_or_its_neighbours(augment):
    pixels, numbers = pictures(2 * CHUNK + 1), draws(augment, 2 * CHUNK + 1)
    size = (20, 20) if augment.crop else (24, 24)
    whole = changed(pixels, numbers, augment, size)
    for index in (0, CHUNK, 2 * CHUNK):
        alone = changed(pixels[index : index + 1], numbers[index : index + 1], augment, size)
        assert torch.equal(alone[0], whole[index])
    assert torch.equal(changed(pixels.flip(0), numbers.flip(0), augment, size).flip(0), whole)


@pytest.mark.parametrize("warp", [{"rotate": 20, "scale": 0.2, "shear": 5, "shift": 3}, {"elastic": 2.0, "rotate": 5}])
def test_a_warp_is_the_same_with_and_without_photo_fields(warp):
    """Up to the flip, which the numbers decide against: two ways to build one grid."""
    plain, photo = Augment(**warp), Augment(**warp, flip=True)
    pixels, numbers = pictures(), draws(photo, 9)
    numbers[:, photo.first_photo_number + FLIP] = 1.0
    expected = augment_affine(pixels.float(), numbers[:, : plain.numbers], plain, torch.zeros(3, 1, 1))
    torch.testing.assert_close(changed(pixels, numbers, photo), expected, rtol=0, atol=1e-2)


# --- flip and crop ----------------------------------------------------------------------------------------------------


def test_a_flip_is_the_mirror_image_and_two_are_none():
    augment, pixels = Augment(flip=True), pictures()
    found = changed(pixels, middle(augment, FLIP=0.0), augment)
    assert torch.equal(found, pixels.flip(-1).float())
    assert torch.equal(changed(found, middle(augment, FLIP=0.0), augment), pixels.float())
    coins = draws(augment, 2000)
    marked = torch.zeros(2000, 1, 1, 2, dtype=torch.uint8)
    marked[..., 0] = 1
    assert 0.46 < changed(marked, coins, augment)[:, 0, 0, 1].mean() < 0.54


def test_flipping_with_a_crop_mirrors_the_result():
    augment, pixels = Augment(crop=0.3, flip=True), pictures()
    numbers = draws(augment, 9)
    both = []
    for coin in (0.0, 1.0):
        numbers[:, augment.first_photo_number + FLIP] = coin
        both.append(changed(pixels, numbers, augment, (16, 16)))
    torch.testing.assert_close(both[0].flip(-1), both[1], rtol=0, atol=1e-2)


def test_a_crop_of_the_whole_area_is_the_view():
    augment, pixels = Augment(crop=1.0), pictures()
    found = changed(pixels, draws(augment, 9), augment)
    torch.testing.assert_close(found, pixels.float(), rtol=0, atol=1e-2)
    larger = changed(pixels, draws(augment, 9), augment, (48, 48))
    expected = F.interpolate(pixels.float(), size=(48, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger, expected, rtol=0, atol=1e-2)


def test_crops_are_inside_of_the_area_asked_for_and_everywhere():
    own = torch.rand(4000, 13, generator=torch.Generator().manual_seed(0))
    centre, half = random_crops(own, 0.35)
    area, aspect = half.prod(1), half[:, 0] / half[:, 1]
    assert bool(((centre.abs() + half) <= 1 + 1e-6).all())
    assert 0.35 <= area.min() < 0.36 and 0.99 < area.max() <= 1 and abs(area.mean() - 0.675) < 0.02
    assert 3 / 4 - 1e-5 <= aspect.min() < 0.77 and 1.3 < aspect.max() <= 4 / 3 + 1e-5
    assert abs(aspect.log().mean()) < 0.01 and (centre.mean(0).abs() < 0.02).all()
    torch.testing.assert_close(area, 1 - 0.65 * own[:, AREA])
    corner = own.clone()
    corner[:, [LEFT, TOP]] = 0.0
    centre, half = random_crops(corner, 0.35)
    torch.testing.assert_close(centre - half, torch.full_like(centre, -1.0))
    assert torch.equal(random_crops(own, 0.35)[1][:, 0], random_crops(corner, 0.35)[1][:, 0])


def test_a_crop_is_torchvisions_resized_crop():
    augment = Augment(crop=0.1)
    pixels = pictures(1, side=32)
    # A square of half the side, at the left and three quarters down of the way there is.
    numbers = middle(augment, 1, AREA=(1 - 0.25) / 0.9, ASPECT=0.5, LEFT=0.0, TOP=0.75)
    found = changed(pixels, numbers, augment, (32, 32))
    expected = reference.resized_crop(pixels.float(), 12, 0, 16, 16, [32, 32], antialias=False)
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=0, atol=1e-2)


def test_what_a_shift_brings_into_a_crop_is_the_mirror_image_not_black():
    augment = Augment(crop=1.0, shift=6, rotate=1e-9)
    bright = torch.full((9, 3, 24, 24), 200, dtype=torch.uint8)
    torch.testing.assert_close(changed(bright, draws(augment, 9), augment), bright.float(), rtol=0, atol=1e-2)


def test_within_a_crop_the_elastic_field_is_in_pixels_of_the_result():
    """All nodes pull two pixels to the right: a ramp read at half its extent rises by half a step per pixel."""
    augment = Augment(crop=0.1, elastic=2.0)
    ramp = torch.arange(0, 128, 4).expand(1, 1, 32, 32).to(torch.uint8)
    still = middle(augment, 1, AREA=(1 - 0.25) / 0.9, ASPECT=0.5)
    pulled = still.clone()
    pulled[:, 8 : 8 + 16] = 1.0
    by = changed(ramp, pulled, augment, (32, 32)) - changed(ramp, still, augment, (32, 32))
    torch.testing.assert_close(by, torch.full_like(by, 2 * 4 * 0.5), rtol=0, atol=1e-2)


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [BRIGHTNESS, CONTRAST, SATURATION])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_contrast_and_saturation_are_torchvisions(number, value, channels):
    pixels, own = pictures(channels=channels).float(), torch.full((9, 13), 0.5)
    own[:, number] = value
    names = {BRIGHTNESS: "brightness", CONTRAST: "contrast", SATURATION: "saturation"}
    adjust = getattr(reference, f"adjust_{names[number]}")
    expected = adjust(pixels / 255, 1 + (2 * value - 1) * 0.6) * 255
    torch.testing.assert_close(color_jitter(pixels, own, 0.6), expected, rtol=0, atol=0.05)


def test_the_three_follow_each_other():
    pixels, own = 100 + pictures().float() / 8, torch.rand(9, 13, generator=torch.Generator().manual_seed(0))
    found = color_jitter(pixels, own, 0.3)
    for image, numbers, got in zip(pixels / 255, own, found / 255, strict=True):
        bright, contrast, saturation = (1 + (2 * numbers[[BRIGHTNESS, CONTRAST, SATURATION]] - 1) * 0.3).tolist()
        expected = reference.adjust_contrast(reference.adjust_brightness(image, bright), contrast)
        expected = reference.adjust_saturation(expected, saturation)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_no_colour_change_is_none_and_grey_stays_grey():
    pixels = pictures()
    own = torch.rand(9, 13)
    torch.testing.assert_close(color_jitter(pixels.float(), own, 0.0), pixels.float(), rtol=0, atol=1e-3)
    grey = pictures(channels=1).float()
    found = color_jitter(grey.expand(9, 3, 24, 24).clone(), own, 0.5)
    torch.testing.assert_close(found, color_jitter(grey, own, 0.5).expand_as(found), rtol=0, atol=1e-2)
    assert (found - grey).abs().amax((1, 2, 3)).min() > 0.5


# --- erasing ----------------------------------------------------------------------------------------------------------


def test_erasing_paints_one_rectangle_of_the_areas_it_says():
    own = torch.rand(3000, 13, generator=torch.Generator().manual_seed(0))
    masks = erase_masks(own, 1.0, 40, 40)
    assert torch.equal(masks, masks.any(2, keepdim=True) & masks.any(1, keepdim=True)), "rectangles"
    area = masks.float().mean((1, 2))
    assert 0.015 < area.min() < 0.03 and 0.31 < area.max() < 0.35 and abs(area.mean() - 0.175) < 0.01
    heights, widths = masks.any(2).sum(1), masks.any(1).sum(1)
    assert (widths / heights).max() > 2.5 and (heights / widths).max() > 2.5
    assert masks.float().mean(0).min() > 0, "every pixel is reached"
    for often in (0.0, 0.25, 1.0):
        found = erase_masks(own, often, 40, 40).any(2).any(1).float().mean()
        assert abs(found - often) < 0.03


def test_what_is_erased_has_the_mean_colour():
    augment = Augment(erasing=1.0)
    normalize = Normalizer(MEAN, STD, CPU)
    pixels = pictures()
    found = augment_photo(pixels, draws(augment, 9), augment, (24, 24), normalize.scale, normalize.offset)
    masks = erase_masks(draws(augment, 9)[:, 8:], 1.0, 24, 24)
    assert torch.equal(found, normalize(pixels).masked_fill(masks[:, None], 0.0))
    mean = normalize.denormalize(torch.zeros(1, 3, 1, 1)).flatten().tolist()
    assert all(abs(got - 255 * wanted) <= 0.51 for got, wanted in zip(mean, MEAN, strict=True))


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_fields_of_the_recipe_and_of_augment(name):
    settings = AugmentSettings.model_validate(PRESETS[name])
    augment = Augment(**settings.model_dump())
    assert augment == Augment(**PRESETS[name]) and augment.changes == (name != "none")


def test_recipe_and_augment_have_the_same_fields_and_defaults():
    assert AugmentSettings().model_dump() == vars(Augment())


# --- what there was before --------------------------------------------------------------------------------------------

# Of the code before there were photo fields: sha256 of what only copies pixels (exact on any machine), and means of
# what interpolates, plain and weighted by the place.
BEFORE = {
    (1, "shift"): "86905f10878a5f7b",
    (1, "erase"): "8d9a1afcfa793db5",
    (1, "both"): "6474173c4ba423a6",
    (1, "none"): "499fd926c2338bbd",
    (3, "shift"): "55f4bb7683511454",
    (3, "erase"): "792fb11b1e8b19b7",
    (3, "both"): "94945d41e0a6f1fe",
    (3, "none"): "6c76962ba1e5e407",
    (1, "warp"): (120.4782282800286, 5779.156929598328),
    (1, "all"): (96.19184153244046, 4622.754363126493),
    (1, "grid"): (110.27613430040155, 5287.9766170952735),
    (3, "warp"): (121.11061805987822, 5797.8008561439465),
    (3, "all"): (97.06736080639173, 4657.380611382793),
    (3, "grid"): (111.59751606612434, 5352.730246778415),
}
SETTINGS = {
    "shift": {"shift": 2},
    "erase": {"erase": 3},
    "both": {"shift": 3, "erase": 4},
    "none": {},
    "warp": {"rotate": 8, "scale": 0.1},
    "all": {"shift": 2, "rotate": 15, "scale": 0.1, "shear": 5, "elastic": 1.5, "erase": 3},
    "grid": {"elastic": 2.0, "elastic_grid": 5},
}


@pytest.mark.parametrize(("channels", "name"), BEFORE)
def test_what_there_was_before_is_as_it_was(channels, name):
    """A change here changes every checkpoint that was ever trained from a recipe; then say so in the CHANGELOG."""
    pixels = torch.randint(0, 256, (150, channels, 12, 12), generator=keyed_generator("pixels"), dtype=torch.uint8)
    as_they_are = Normalizer((0.0,) * channels, (1 / 255,) * channels, CPU)
    augment = Augment(**SETTINGS[name])
    given = Batches(pixels, torch.arange(150), batch_size=64, seed=3, normalize=as_they_are, augment=augment)
    found = torch.cat([inputs for inputs, _ in given.epoch(1)])
    expected = BEFORE[channels, name]
    if isinstance(expected, str):
        assert hashlib.sha256(found.contiguous().numpy().tobytes()).hexdigest()[:16] == expected
    else:
        places = torch.arange(found.numel()).reshape(found.shape).remainder(97)
        sums = (found.double().mean().item(), (found.double() * places).mean().item())
        assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(sums, expected, strict=True))
