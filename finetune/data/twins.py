"""Finds twins: pictures that show the same, though shifted, mirrored, brighter, noisier or compressed.

Two steps, on grey thumbnails. Descriptors that neither shifts nor mirror images change much name a few candidates for
each picture; then each candidate is laid over the picture and judged by a likelihood ratio. What pictures of the set
have in common, as all trousers have their outline, is no evidence: the likelihoods are of the set's own covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.data.image_dataset import Images

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

SIDE = 32  # of a thumbnail, in pixels, at most
NOISE = 15.0  # grey values of 255 by which twins may differ, as a standard deviation
EVIDENCE = 0.95  # of that of typical twins, from which on a pair is named
NEIGHBOURS = 5  # candidates of each picture
NEAR = 0.45  # cosine of two descriptors, below which two pictures are no candidates: twins have 0.6 to 1
REACH = 8  # a shift of up to 1/8 of the side is undone
WIDTH = 96  # numbers of a descriptor
DIRECTIONS = 256  # of the covariance that are kept; the others count together
TYPICAL_COUNT = 20  # pictures of a class that count as much as all others for its variance
FAR = 45.0  # grey values; pictures further apart than that are not looked at more closely
LEAST = 25.0  # nats of evidence that typical twins must give, which plain pictures do not
FITTED = 3_000  # pictures that the set's covariance is estimated from, at most
READ = 8 << 20  # pixels of full size held at once
CHANGED = 500  # pictures that are changed to see what that does to descriptors
BLOCK = 2_000  # pictures or pairs worked on at once
CELLS = 50_000_000  # cosines held at once


@dataclass(frozen=True)
class TwinPairs:
    """Pairs of pictures (int64, P×2), each smaller index first, and the evidence (float32, P) that they are twins."""

    pairs: Integers
    evidence: Floats

    def __len__(self) -> int:
        return len(self.pairs)


def thumbnails(images: Images, indices: Integers | None = None) -> Tensor:
    """Grey thumbnails of the images (uint8, N×C×H×W) at these indices, or of all: float32, N×S×S, values of 0 to 255.

    S is at most SIDE. Images that lie on disk are read a few at a time.
    """
    side = min(SIDE, *images.shape[-2:])
    chosen = torch.arange(len(images)) if indices is None else torch.from_numpy(indices)
    made = [torch.empty(0, side, side)]
    for part in torch.split(chosen, max(1, READ // max(1, images.shape[1:].numel()))):
        grey = images[part].cpu().float().mean(1, keepdim=True)
        if grey.shape[-2:] != (side, side):
            size = (side, side)
            grey = torch.nn.functional.interpolate(grey, size=size, mode="bilinear", antialias=True)
        made.append(grey[:, 0])
    return torch.cat(made)


def standardize(thumbs: Tensor) -> Tensor:
    """Thumbnails (N×S×S) without their mean, of length 1: what a change of brightness or contrast leaves alone."""
    found: Tensor = (thumbs - thumbs.mean((1, 2), keepdim=True)) / lengths(thumbs)[:, None, None]
    return found


def lengths(thumbs: Tensor) -> Tensor:
    """The Euclidean length of each thumbnail (N×S×S) without its mean, at least 1."""
    found: Tensor = (thumbs - thumbs.mean((1, 2), keepdim=True)).flatten(1).norm(dim=1).clamp_min(1)
    return found


def descriptors(thumbs: Tensor) -> Tensor:
    """Vectors of length 1 (float32, N×D) that shifts and mirror images change little; near ones may be twins.

    They are the logarithms of the amplitudes of the Fourier transform, the same for (x, y) and (-x, y), along the
    principal axes of the set, each weighted by how far it tells pictures apart above what noise and a shift do to some
    of the set's own pictures.
    """
    floor = thumbs.shape[-1] * NOISE / float(lengths(thumbs).median())  # what noise alone would give
    amplitudes = torch.cat([_log_amplitudes(part, floor) for part in torch.split(thumbs, BLOCK)])
    sample = amplitudes[:: max(1, len(thumbs) // FITTED)]
    mean = sample.mean(0)
    values, vectors = torch.linalg.eigh((sample - mean).T @ (sample - mean) / len(sample))
    values, vectors = values[-WIDTH:].clamp_min(0), vectors[:, -WIDTH:]
    some = slice(0, len(thumbs), max(1, len(thumbs) // CHANGED))
    noise = NOISE / 2**0.5 * torch.randn(thumbs[some].shape, generator=torch.Generator().manual_seed(0))
    changed = torch.roll(thumbs[some] + noise, (1, 1), (1, 2))
    moved = ((_log_amplitudes(changed, floor) - amplitudes[some]) @ vectors).square().mean(0)
    found = (amplitudes - mean) @ (vectors * values.sqrt() / (values + moved).clamp_min(1e-9))
    normed: Tensor = torch.nn.functional.normalize(found)
    return normed


def _log_amplitudes(thumbs: Tensor, floor: float) -> Tensor:
    spectrum = torch.fft.rfft2(_taper(standardize(thumbs))).abs()
    both = spectrum + torch.roll(spectrum.flip(1), 1, 1)  # the amplitude at (-ky, kx) is that of the mirror image
    found: Tensor = (both[:, : thumbs.shape[-1] // 2 + 1].flatten(1) + floor).log()
    return found


def _taper(thumbs: Tensor) -> Tensor:
    """Fades the edges out, where a shift brings in something else."""
    side = thumbs.shape[-1]
    ramp = torch.ones(side)
    width = max(1, side // 8)
    ramp[:width] = torch.sin((torch.arange(width) + 0.5) / width * math.pi / 2).square()
    ramp[-width:] = ramp[:width].flip(0)
    return thumbs * ramp[:, None] * ramp


def nearest(vectors: Tensor, queries: Integers, pool: Integers, count: int = NEIGHBOURS) -> Integers:
    """Pairs (int64, P×2, the smaller index first, each once) of each query and its nearest vectors of the pool.

    vectors: float, N×D, of length 1. queries, pool: indices. Blockwise: CELLS cosines at once.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    others, places = vectors[torch.from_numpy(pool)], torch.from_numpy(pool)
    count = min(count + 1, len(pool))  # a picture may be its own nearest
    for own in torch.split(torch.from_numpy(queries), max(1, CELLS // max(1, len(pool)))) if count else ():
        near = (vectors[own] @ others.T).topk(count, sorted=False)
        pairs = torch.stack([own[:, None].expand_as(near.indices), places[near.indices]], -1)
        pairs = pairs[(near.values > NEAR) & (pairs[..., 0] != pairs[..., 1])]
        found.append(pairs.sort(1).values.numpy())
    return np.unique(np.concatenate(found), axis=0)


@dataclass(frozen=True)
class TwinModel:
    """What pictures of a set have in common. power: the mean power spectrum. means: of each class (C×S²).

    vectors: directions (S²×K) about the class means. values: the variance of each class along them, and in the last
    column the mean variance of all other directions (C×(K+1)).
    """

    power: Tensor
    means: Tensor
    vectors: Tensor
    values: Tensor


def fit_model(thumbs: Tensor, labels: Tensor) -> TwinModel:
    """The model of thumbnails (N×S×S) with labels (int64, N); of many a sample, every k-th.

    A class of few pictures gets a variance that is drawn to that of all.
    """
    step = max(1, len(thumbs) // FITTED)
    sample, own = standardize(thumbs[::step]), labels[::step]
    flat, classes = sample.flatten(1), int(labels.max()) + 1
    means, counts = _class_means(flat, own, classes)
    rest = flat - means[own]
    covariance, share = _shrunk_covariance(rest)
    vectors = torch.linalg.eigh(covariance).eigenvectors[:, -DIRECTIONS:]
    along = (rest @ vectors).square()
    left = (rest.square().sum(1) - along.sum(1)).clamp_min(0) / max(1, flat.shape[1] - vectors.shape[1])
    squares = torch.cat([along, left[:, None]], 1)
    floor = share * squares.sum() / len(squares) / flat.shape[1]
    whole = (1 - share) * squares.mean(0) + floor
    each, _ = _class_means(squares, own, classes)
    weight = (counts / (counts + TYPICAL_COUNT))[:, None]
    power = torch.fft.rfft2(_taper(sample)).abs().square().mean(0)
    return TwinModel(power, means, vectors, weight * each + (1 - weight) * whole)


def _class_means(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The mean of the values (N×D) of each class (C×D), and the number of its pictures."""
    counts = torch.bincount(labels, minlength=classes)
    sums = torch.zeros(classes, values.shape[1]).index_add_(0, labels, values)
    return sums / counts.clamp_min(1)[:, None], counts


def _shrunk_covariance(rest: Tensor) -> tuple[Tensor, float]:
    """The covariance (D×D) of centred vectors (N×D), and by which share it was drawn to a multiple of the identity.

    Source: Y. Chen, A. Wiesel, Y. Eldar and A. Hero, Shrinkage algorithms for MMSE covariance estimation, 2010 (OAS).
    """
    covariance, size = rest.T @ rest / len(rest), rest.shape[1]
    trace, square = float(covariance.trace()), float(covariance.square().sum())
    above = (1 - 2 / size) * square + trace**2
    below = (len(rest) + 1 - 2 / size) * (square - trace**2 / size)
    share = min(1.0, above / below) if below > 0 else 1.0
    return (1 - share) * covariance + share * trace / size * torch.eye(size), share


def judge(thumbs: Tensor, labels: Tensor, pairs: Integers, model: TwinModel) -> Floats:
    """The evidence (float32, P) that each of these pairs (int64, P×2) is of one picture: about 1 for twins.

    It is the log likelihood ratio of "one picture, twice, with noise of NOISE" to "two pictures of this class", over
    what it is on average for such twins (probabilistic linear discriminant analysis: Prince and Elder 2007). -inf
    where the two are too far apart, or too plain to be told from others.
    """
    found = [np.empty(0, dtype=np.float32)]
    for start in range(0, len(pairs), BLOCK):
        part = torch.from_numpy(pairs[start : start + BLOCK])
        one, other, gap = _overlay(thumbs[part[:, 0]], thumbs[part[:, 1]], model.power)
        near = torch.nonzero(gap < FAR).flatten()
        evidence = torch.full((len(part),), -math.inf)
        noise = NOISE / torch.minimum(*(lengths(thumbs[part[near, side]]) for side in (0, 1)))
        own = labels[part[near, 0]]
        evidence[near] = _evidence(one[near], other[near], noise.square(), own, model)
        found.append(evidence.numpy())
    return np.concatenate(found)


def _evidence(one: Tensor, other: Tensor, noise: Tensor, labels: Tensor, model: TwinModel) -> Tensor:
    """What `judge` gives, of pictures laid over each other (P×S×S, NaN where one is missing) and their noise (P)."""
    values, rest = model.values[labels], one.shape[1:].numel() - model.vectors.shape[1]
    times = torch.ones(values.shape[1])
    times[-1] = rest
    noise = noise[:, None]
    spread, twins = values + noise, 2 * values + noise
    typical = (times * (spread.square() / (twins * noise)).log()).sum(1)
    a, b = (torch.nan_to_num(x.flatten(1) - model.means[labels]) for x in (one, other))
    sums, gaps = (_squares_along(x, model.vectors) for x in (a + b, a - b))
    against = sums / 2 * (1 / twins - 1 / spread) + gaps / 2 * (1 / noise - 1 / spread)
    return torch.where(typical > LEAST, (typical - against.sum(1)) / typical, -math.inf)


def _squares_along(rows: Tensor, vectors: Tensor) -> Tensor:
    """The squares of rows (P×S²) along each vector, and in the last column what is left of their sum (P×(K+1))."""
    along = (rows @ vectors).square()
    left = (rows.square().sum(1) - along.sum(1)).clamp_min(0)
    return torch.cat([along, left[:, None]], 1)


def _overlay(one: Tensor, other: Tensor, power: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lays `other` over `one` (P×S×S), mirrored and shifted as it fits best: both, standardised, and how far apart.

    The fit is the correlation of the two, whitened by the mean power spectrum. `other` gets the mean and contrast of
    `one` where both are; elsewhere both are NaN. The distance (P) is in grey values, a root of mean squares.
    """
    side = one.shape[-1]
    mirrored, down, right = _best_fit(standardize(one), other, power)
    turned = torch.where(mirrored[:, None, None], other.flip(-1), other)
    place = torch.arange(side)
    rows, columns = place - down[:, None], place - right[:, None]
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None]
    rows, columns = rows.clamp(0, side - 1), columns.clamp(0, side - 1)
    moved = turned[torch.arange(len(other))[:, None, None], rows[:, :, None], columns[:, None, :]]
    count = inside.sum((1, 2))

    def centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = (x * inside).sum((1, 2)) / count
        rest = (x - mean[:, None, None]) * inside
        return rest, mean, (rest.square().sum((1, 2)) / count).sqrt().clamp_min(0.1)

    a, mean, deviation = centred(one)
    b, _, own = centred(moved)
    b = b * (deviation / own)[:, None, None]
    gap = ((a - b).square().sum((1, 2)) / count).sqrt() * torch.minimum(own / deviation, torch.ones(1))
    back = (mean - one.mean((1, 2)))[:, None, None]
    scale = lengths(one)[:, None, None]
    a, b = (torch.where(inside, (x + back) / scale, torch.nan) for x in (a, b))
    return a, b, gap


def _best_fit(one: Tensor, other: Tensor, power: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether `other` is to be mirrored to fit `one` (standardised, P×S×S), and by how much moved down and right."""
    side = one.shape[-1]
    reach = side // REACH
    target = torch.fft.rfft2(_taper(one)) / (power + 0.1 * power.mean())
    places = torch.arange(-reach, reach + 1) % side
    fits = []
    for turned in (other, other.flip(-1)):
        spectrum = torch.fft.rfft2(_taper(standardize(turned)))
        correlation = torch.fft.irfft2(target * spectrum.conj(), s=(side, side))
        fits.append(correlation[:, places][:, :, places].flatten(1))
    best = torch.cat(fits, 1).argmax(1)
    shift = best % len(places) ** 2
    return best >= len(places) ** 2, shift // len(places) - reach, shift % len(places) - reach


def find_twins(
    thumbs: Tensor, labels: Tensor, vectors: Tensor, queries: Integers, pool: Integers, model: TwinModel
) -> TwinPairs:
    """Near twins of each query in the pool (indices), the surest first, among thumbnails (N×S×S) and descriptors (N×D).

    labels: int64, N; of each pair only that of the smaller index is used.
    """
    pairs = nearest(vectors, queries, pool)
    evidence = judge(thumbs, labels, pairs, model)
    named = evidence >= EVIDENCE
    order = np.argsort(-evidence[named], kind="stable")
    return TwinPairs(pairs[named][order], evidence[named][order])
