"""Each augmentation against an independent reference, and all of them at their limits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from finetune.data.augment.affine import (
    ERASE_X,
    ERASE_Y,
    HEIGHT,
    ROTATE,
    SHEAR,
    SHIFT_X,
    SHIFT_Y,
    WIDTH,
    Augment,
    affine_grid,
    augment_affine,
)

BLACK = torch.tensor([-0.4, -2.0, 0.3]).reshape(3, 1, 1)
ALL = Augment(shift=2, rotate=15, scale=0.1, shear=5, elastic=1.5, erase=3)
EACH = [
    Augment(shift=3),
    Augment(rotate=30),
    Augment(scale=0.3),
    Augment(shear=20),
    Augment(elastic=2.0),
    Augment(elastic=2.0, elastic_grid=2),
    Augment(erase=4),
    ALL,
]
TOP = 1 - 2**-24  # the largest number that torch.rand gives


def noise(count=5, channels=3, side=16, seed=0):
    """Normalised images; smooth, so that two ways of interpolation agree, and black at the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=(side - 8, side - 8), mode="bicubic", align_corners=True)
    return F.pad(smooth, (4, 4, 4, 4)) + BLACK[:channels]


def numbers(augment, count=5, **fixed):
    """0.5 throughout, which is no change, but for what is given by column."""
    found = torch.full((count, augment.numbers), 0.5)
    for column, value in fixed.items():
        found[:, int(column[1:])] = value
    return found


def at(column, value):
    return {f"c{column}": value}


def test_the_limits_say_how_many_numbers_are_needed():
    assert Augment().numbers == 0 and not Augment().warps
    assert Augment(elastic_grid=9).numbers == 0
    assert Augment(shift=1).numbers == Augment(erase=1).numbers == Augment(rotate=1).numbers == 8
    assert Augment(elastic=1, elastic_grid=3).numbers == 8 + 18
    assert [a.warps for a in (Augment(shift=1), Augment(erase=1))] == [False, False]
    assert all(Augment(**{name: 0.1}).warps for name in ("rotate", "scale", "shear", "elastic"))


@pytest.mark.parametrize("augment", [a for a in EACH if not a.erase])
def test_the_middle_of_every_range_changes_nothing(augment):
    images = noise()
    torch.testing.assert_close(augment_affine(images, numbers(augment), augment, BLACK), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("augment", EACH)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0.0, TOP, "random"])
def test_shape_type_and_finiteness_at_every_corner(augment, channels, value):
    images, background = noise(channels=channels), BLACK[:channels]
    before = images.clone()
    drawn = torch.rand(5, augment.numbers) if value == "random" else torch.full((5, augment.numbers), value)
    found = augment_affine(images, drawn, augment, background)
    assert found.shape == images.shape and found.dtype == torch.float32 and bool(found.isfinite().all())
    assert torch.equal(images, before)
    # Interpolation and black can only bring values from between black and the brightest.
    assert bool((found >= torch.minimum(images.amin((0, 2, 3)), background[:, 0, 0]).reshape(-1, 1, 1) - 1e-5).all())
    assert bool((found <= images.amax((0, 2, 3)).reshape(-1, 1, 1) + 1e-5).all())


@pytest.mark.parametrize("augment", EACH)
def test_every_amount_moves_something(augment):
    drawn = torch.rand(5, augment.numbers, generator=torch.Generator().manual_seed(0))
    bright = noise() + 1
    assert ((augment_affine(bright, drawn, augment, BLACK) - bright).abs().amax((1, 2, 3)) > 1e-3).all()


# --- shift ------------------------------------------------------------------------------------------------------------


def moved(image, down, right):
    """The slice-and-paste reference: the image moved by whole pixels over black."""
    found = BLACK.expand_as(image).clone()
    height, width = image.shape[-2:]
    found[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return found


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_every_whole_shift_occurs_equally_often_and_is_the_slice(limit):
    image, augment, places = torch.rand(3, 9, 11), Augment(shift=limit), 2 * limit + 1
    steps = (torch.arange(places) + 0.5) / places
    drawn = numbers(augment, places * places)
    drawn[:, SHIFT_Y], drawn[:, SHIFT_X] = steps.repeat_interleave(places), steps.repeat(places)
    found = augment_affine(image.expand(places**2, 3, 9, 11), drawn, augment, BLACK)
    expected = [moved(image, -down, -right) for down in range(-limit, limit + 1) for right in range(-limit, limit + 1)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)


def test_the_borders_between_shifts_are_even():
    """Numbers on a fine even grid give each of the 2·limit+1 shifts the same share."""
    limit, count = 3, 700
    augment, ramp = Augment(shift=limit), torch.arange(20.0).expand(count, 1, 20, 20) + 1
    drawn = numbers(augment, count, **at(SHIFT_X, (torch.arange(count) + 0.5) / count))
    by = augment_affine(ramp, drawn, augment, torch.zeros(1, 1, 1))[:, 0, 10, 10] - 11
    values, counts = by.round().unique(return_counts=True)
    assert values.tolist() == list(range(-limit, limit + 1)) and counts.tolist() == [100] * 7


@pytest.mark.parametrize("value", [0.0, TOP])
def test_extreme_numbers_stay_inside(value):
    for limit in (1, 2, 3, 7, 12, 40):
        augment = Augment(shift=limit)
        drawn = numbers(augment, 1, **at(SHIFT_X, value), **at(SHIFT_Y, value))
        image = torch.rand(1, 3, 12, 12)
        by = limit if value == 0.0 else -limit
        expected = moved(image[0], by, by) if limit < 12 else BLACK.expand(3, 12, 12)
        torch.testing.assert_close(augment_affine(image, drawn, augment, BLACK)[0], expected, rtol=0, atol=1e-6)


def test_with_a_warp_the_shift_is_in_pixels_too():
    augment, image = Augment(shift=3, rotate=1e-9), torch.rand(1, 3, 12, 12)
    for x, y in ((0.0, 0.5), (1.0, 0.5), (0.5, 0.0), (0.5, 1.0), (1.0, 0.0)):
        found = augment_affine(image, numbers(augment, 1, **at(SHIFT_X, x), **at(SHIFT_Y, y)), augment, BLACK)
        expected = moved(image[0], round(-(2 * y - 1) * 3), round(-(2 * x - 1) * 3))
        torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-4)


# --- rotation, shear, scale: torchvision and scipy --------------------------------------------------------------------


def turned(images, angle=0.0, shear=0.0):
    given = images - BLACK
    kept = affine(given, angle, [0, 0], 1.0, [shear, 0.0], interpolation=InterpolationMode.BILINEAR, fill=0.0)
    return kept + BLACK


def test_quarter_turns_are_exact():
    image, augment = torch.rand(1, 3, 8, 8), Augment(rotate=90)
    found = augment_affine(image, numbers(augment, 1, **at(ROTATE, 1.0)), augment, BLACK)
    assert any(torch.allclose(found, torch.rot90(image, k, (2, 3)), atol=1e-5) for k in (1, 3))
    back = augment_affine(image, numbers(augment, 1, **at(ROTATE, 0.0)), augment, BLACK)
    torch.testing.assert_close(torch.rot90(back, 2, (2, 3)), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.2, 0.8, 1.0])
@pytest.mark.parametrize("limit", [10, 45])
def test_rotation_is_torchvisions(value, limit):
    augment, images = Augment(rotate=limit), noise()
    found = augment_affine(images, numbers(augment, **at(ROTATE, value)), augment, BLACK)
    expected = turned(images, angle=-(2 * value - 1) * limit)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_shear_is_torchvisions(value):
    augment, images = Augment(shear=20), noise()
    found = augment_affine(images, numbers(augment, **at(SHEAR, value)), augment, BLACK)
    sign = 2 * value - 1
    torch.testing.assert_close(found, turned(images, shear=sign * 20), rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("axis", ["wide", "high"])
def test_scale_stretches_one_axis_about_the_centre_as_scipy_does(value, axis):
    augment, images = Augment(scale=0.25), noise(side=20)
    found = augment_affine(images, numbers(augment, **at(WIDTH if axis == "wide" else HEIGHT, value)), augment, BLACK)
    factor = 1 + (2 * value - 1) * 0.25
    matrix = np.array([1.0, 1.0, factor, 1.0] if axis == "high" else [1.0, 1.0, 1.0, factor])
    centre = np.array([0, 0, 9.5, 9.5])
    expected = ndimage.affine_transform(
        (images - BLACK).numpy(), matrix, centre - matrix * centre, order=1, mode="grid-constant"
    )
    torch.testing.assert_close(found, torch.from_numpy(expected) + BLACK, rtol=0, atol=1e-4)


def test_the_whole_warp_is_one_affine_map():
    """Rotation after shear after scale, then the shift: against scipy with the matrix written out by hand."""
    augment, images = Augment(shift=2, rotate=30, scale=0.2, shear=15), noise(side=20)
    drawn = torch.rand(5, 8, generator=torch.Generator().manual_seed(1))
    found = augment_affine(images, drawn, augment, BLACK)
    for image, row, got in zip((images - BLACK).numpy(), (drawn * 2 - 1).tolist(), found, strict=True):
        angle, slant = math.radians(30 * row[ROTATE]), row[SHEAR] * math.tan(math.radians(15))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = turn @ np.array([[1, slant], [0, 1]]) @ np.diag([1 + 0.2 * row[WIDTH], 1 + 0.2 * row[HEIGHT]])
        matrix = matrix[::-1, ::-1]  # scipy counts rows first
        offset = np.full(2, 9.5) - matrix @ np.full(2, 9.5) + 2 * np.array([row[SHIFT_Y], row[SHIFT_X]])
        expected = [ndimage.affine_transform(c, matrix, offset, order=1, mode="grid-constant") for c in image]
        torch.testing.assert_close(got, torch.from_numpy(np.stack(expected)) + BLACK, rtol=0, atol=2e-4)


# --- elastic ----------------------------------------------------------------------------------------------------------


def displacement(augment, drawn, side=24):
    """Where each pixel's value came from, less where it is, in pixels (N×2×side×side; x, y): read off two ramps.

    Pixels within the amplitude of the border are left out, where black comes in.
    """
    ramp = torch.arange(side, dtype=torch.float32)
    images = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)]).expand(len(drawn), 2, side, side)
    found = augment_affine(images, drawn, augment, torch.zeros(2, 1, 1)) - images
    edge = math.ceil(2 * augment.elastic) + 1
    return found[:, :, edge:-edge, edge:-edge]


@pytest.mark.parametrize("grid", [2, 3, 4, 6])
def test_elastic_is_bounded_smooth_and_as_large_as_it_says(grid):
    augment = Augment(elastic=2.0, elastic_grid=grid)
    drawn = torch.rand(50, augment.numbers, generator=torch.Generator().manual_seed(0))
    by = displacement(augment, drawn)
    # Nodes are within the amplitude; bicubic interpolation may overshoot between them, by 1.375 per axis at most.
    assert 1.0 < by.abs().max() <= 2.0 * 1.375**2
    assert by.abs().mean() < 1.2
    steps = max(by.diff(dim=2).abs().max(), by.diff(dim=3).abs().max())
    assert steps < 2 * 2.0 * 1.375 * 1.5 * (grid - 1) / 23
    assert (by.mean((0, 2, 3)).abs() < 0.4).all()


def test_elastic_moves_across_and_along_by_its_own_halves():
    augment = Augment(elastic=1.5, elastic_grid=3)
    for half, axis in ((slice(8, 17), 0), (slice(17, 26), 1)):
        drawn = numbers(augment, 1)
        drawn[:, half] = 1.0
        by = displacement(augment, drawn)[0]
        torch.testing.assert_close(by[axis], torch.full_like(by[axis], 1.5), rtol=0, atol=1e-4)
        torch.testing.assert_close(by[1 - axis], torch.zeros_like(by[axis]), rtol=0, atol=1e-4)


def test_a_single_node_moves_its_own_corner_most():
    augment = Augment(elastic=1.0, elastic_grid=4)
    drawn = numbers(augment, 1)
    drawn[:, 8 + 4 * 1 + 2] = 1.0  # row 1, column 2 of the field across
    by = displacement(augment, drawn)[0, 0]
    row, column = divmod(int(by.argmax()), by.shape[1])
    assert abs(row + 3 - 23 / 3) <= 1 and abs(column + 3 - 2 * 23 / 3) <= 1
    assert by.max() > 0.9


# --- erase ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_erase_paints_one_square_with_the_background(side):
    augment, images = Augment(erase=side), torch.rand(200, 3, 14, 10) + 5
    drawn = torch.rand(200, 8, generator=torch.Generator().manual_seed(0))
    painted = augment_affine(images, drawn, augment, BLACK) != images
    found = augment_affine(images, drawn, augment, BLACK)
    assert torch.equal(found, torch.where(painted, BLACK, images))
    for mask, row in zip(painted, drawn.tolist(), strict=True):
        assert bool((mask == mask[0]).all()), "the same in every channel"
        rows, columns = mask[0].any(1).nonzero().flatten(), mask[0].any(0).nonzero().flatten()
        top, left = (round(row[k] * size - side / 2) for k, size in ((ERASE_Y, 14), (ERASE_X, 10)))
        assert rows.tolist() == list(range(max(top, 0), min(top + side, 14)))
        assert columns.tolist() == list(range(max(left, 0), min(left + side, 10)))
        assert int(mask[0].sum()) == len(rows) * len(columns)


def test_erase_reaches_every_pixel_and_corners_are_clipped():
    augment, images = Augment(erase=4), torch.ones(900, 1, 8, 8)
    steps = (torch.arange(30) + 0.5) / 30
    drawn = numbers(augment, 900)
    drawn[:, ERASE_X], drawn[:, ERASE_Y] = steps.repeat(30), steps.repeat_interleave(30)
    found = augment_affine(images, drawn, augment, torch.zeros(1, 1, 1)) == 0
    assert bool(found.any(0).all())
    sizes = found.sum((1, 2, 3))
    assert sizes.max() == 16 and sizes.min() == 4  # a quarter of the square is inside when its middle is at a corner


def test_erase_paints_over_what_was_warped():
    augment = Augment(rotate=30, erase=6)
    drawn = numbers(augment, **at(ROTATE, 1.0))
    found = augment_affine(noise(), drawn, augment, BLACK)
    assert torch.equal(found[:, :, 5:11, 5:11], BLACK.expand(5, 3, 6, 6))
    assert not torch.equal(found, augment_affine(noise(), drawn, Augment(erase=6), BLACK))


@pytest.mark.parametrize("augment", EACH)
def test_a_black_image_stays_black_in_every_colour(augment):
    black = BLACK.expand(20, 3, 12, 12)
    found = augment_affine(black, torch.rand(20, augment.numbers), augment, BLACK)
    torch.testing.assert_close(found, black, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(28, 28), (5, 9)])
def test_the_grid_is_torchs(size):
    matrix = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = F.affine_grid(matrix, [6, 1, *size], align_corners=False)
    assert torch.allclose(affine_grid(matrix, *size), expected, atol=1e-6)
