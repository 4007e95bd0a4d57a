"""Held-out splits and few-shot subsets chosen by a hash of each image or of its group, never by its position.

Shuffling a data set leaves an image in the split where it was; equal images, and those of one group, cannot be trained
on and tested on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from finetune.data.image_dataset import Images, ImageSet, chunks
from finetune.errors import DataError
from finetune.text import listed

Integers = npt.NDArray[np.int64]


def image_hashes(images: Images, salt: str) -> npt.NDArray[np.uint64]:
    """Hashes each image to 64 bits of BLAKE2b over the salt, the image's shape C×H×W and its bytes.

    images: uint8, N×C×H×W. Returns N values, equal for equal images wherever they lie. Two different images among a
    million share a number with a chance of about 3 in 100 million. 60,000 images of 28×28 take about 0.1 s.
    """
    return np.concatenate([array_hashes(pixels, salt) for pixels in chunks(images)])


def array_hashes(images: npt.NDArray[np.uint8], salt: str) -> npt.NDArray[np.uint64]:
    """`image_hashes` of an array."""
    _, *shape = images.shape
    start = hashlib.blake2b(f"{len(salt)}:{salt}:{'x'.join(map(str, shape))}:".encode(), digest_size=8)
    pixels, size = memoryview(np.ascontiguousarray(images).reshape(-1).data), math.prod(shape)
    digests = []
    for begin in range(0, len(pixels), size or 1):
        digest = start.copy()
        digest.update(pixels[begin : begin + size])
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def name_hashes(names: Iterable[str], salt: str) -> npt.NDArray[np.uint64]:
    """Hashes each text to 64 bits of BLAKE2b over the salt and the text; equal texts are hashed once."""
    start, known = hashlib.blake2b(f"{len(salt)}:{salt}:".encode(), digest_size=8), dict[str, int]()
    keys = []
    for name in names:
        if name not in known:
            digest = start.copy()
            digest.update(name.encode("utf-8", "surrogateescape"))
            known[name] = int.from_bytes(digest.digest(), "little")
        keys.append(known[name])
    return np.array(keys, dtype=np.uint64)


def inseparable(hashes: npt.NDArray[np.uint64], groups: Integers | None) -> Integers:
    """The number, from 0, of the set of images (int64, N) that each image cannot be separated from.

    Images are inseparable when their pixels are equal, by `hashes`, when they are of one group, or through a third.
    """
    _, equal = np.unique(hashes, return_inverse=True)
    if groups is None or not len(hashes):
        return equal.astype(np.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(equal.max()) + 1 + int(groups.max()) + 1  # equal pixels and groups are the nodes, images the edges
    edges = (np.ones(len(groups), dtype=np.int8), (equal, int(equal.max()) + 1 + groups))
    _, component = connected_components(coo_array(edges, shape=(size, size)), directed=False)
    _, found = np.unique(component[equal], return_inverse=True)
    return found.astype(np.int64)


def hold_out(data: ImageSet, amount: int | float, *, salt: str = "validation") -> tuple[ImageSet, ImageSet]:
    """Splits `data` into (rest, held out), each in its original order.

    amount: a number of images (int), or a fraction of them (float, 0 ≤ amount < 1). It is spread over the classes in
    proportion to their images, by largest remainder; within a class the images of smallest hash are held out. A
    fraction asks for no class's last image. 0 gives back `data` itself and a set of no images.

    Equal images and groups stay together, on the side of the lowest label among them. A class whose images are repeated
    may thus hold out a few more or fewer than its share, and the total may fall short where no whole set of equals
    fits; of groups as many are held out as come nearest to the share.

    Raises DataError where the amount makes no sense or leaves a class that has images without one to train on.
    """
    wanted = _number_of_images(data, amount)
    if wanted == 0:
        return data, data.subset([])
    labels: Integers = data.labels.cpu().numpy()
    hashes, groups = image_hashes(data.images, salt), data.group_indices()
    if groups is None:
        sizes, fill = np.bincount(labels, minlength=len(data.class_names)), _fill
        keys = hashes
    else:
        sets = inseparable(hashes, groups)
        keys = _set_keys(np.where(_in_group(data), name_hashes(data.groups, salt), hashes), sets)
        sizes, fill = np.bincount(_home(sets, labels)[sets], minlength=len(data.class_names)), _fill_nearest
    shares = _in_proportion(sizes, wanted)
    if isinstance(amount, float):
        shares = np.minimum(shares, np.maximum(sizes - 1, 0))
    out = _choose_sets(keys, labels, lambda label, sizes: fill(sizes, int(shares[label])))
    emptied = np.bincount(labels[~out], minlength=len(shares)) < np.minimum(
        np.bincount(labels, minlength=len(shares)), 1
    )
    if emptied.any():
        of = "groups" if groups is not None else "images"
        raise DataError(
            f"{data.origin}: holding out {amount} of {len(data):,} images leaves no image to train on for class "
            f"{listed(data.class_names[c] for c in np.flatnonzero(emptied))}; hold out fewer {of}, or leave the "
            "class out"
        )
    return data.subset(np.flatnonzero(~out)), data.subset(np.flatnonzero(out))


def choose_test(
    keys: npt.NDArray[np.uint64], sets: Integers, labels: Integers, fraction: float
) -> npt.NDArray[np.bool_]:
    """Chooses the test images of a data set without a test split: those whose key is in the lowest `fraction` of all.

    keys: one number an image, a hash of what it is or of its group. sets: `inseparable` images, which have the highest
    key among them. So an image stays where it is when others come; one that turns out equal to one to learn from is
    learnt from. Returns N values.

    A class of two sets or more has an image to learn from, as its highest key is not tested, and a test image, as its
    lowest is tested, unless that set has images of another class too. So an image that a class had to learn from
    alone, or beside none but images of another class too, may become a test image once the class has more.
    """
    keys = _set_keys(keys, sets)
    chosen = keys < np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    count = np.bincount(labels)
    left = np.bincount(labels[~chosen], minlength=len(count))
    _, set_of, sizes = np.unique(keys, return_inverse=True, return_counts=True)  # sets in the order of their keys
    last = np.zeros(len(count), dtype=np.int64)
    np.maximum.at(last, labels, set_of)
    chosen &= ~np.isin(set_of, last[(left == 0) & (count > 0)])
    left = np.bincount(labels[~chosen], minlength=len(count))
    untested = np.flatnonzero((left == count) & (count > 0))
    first = _home(labels, set_of)[untested]
    alone = (_home(set_of, labels)[first] == untested) & (_home(set_of, -labels)[first] == -untested)
    return chosen | np.isin(set_of, first[alone & (sizes[first] < count[untested])])


def _in_group(data: ImageSet) -> npt.NDArray[np.bool_]:
    return np.array([bool(group) for group in data.groups], dtype=bool)


def _set_keys(keys: npt.NDArray[np.uint64], sets: Integers) -> npt.NDArray[np.uint64]:
    """Each image's key becomes the highest of its set (uint64, N)."""
    highest = np.zeros(int(sets.max(initial=-1)) + 1, dtype=np.uint64)
    np.maximum.at(highest, sets, keys)
    return highest[sets]


def _home(sets: Integers, labels: Integers) -> Integers:
    """The lowest label of each set (int64), or of whatever else is numbered from 0."""
    home = np.full(int(sets.max(initial=-1)) + 1, np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(home, sets, labels)
    return home


def _choose_sets(
    keys: npt.NDArray[np.uint64], labels: Integers, choose: Callable[[int, Integers], list[int]]
) -> npt.NDArray[np.bool_]:
    """Chooses sets of images with equal keys, which belong to the lowest label among them. Returns N values.

    choose: called with each label and the sizes of its sets in the order of their keys; returns indices of sets.
    """
    _, set_of, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    home = _home(set_of, labels)
    chosen = np.zeros(len(sizes), dtype=bool)
    for own in _by_value(home):
        chosen[own[choose(int(home[own[0]]), sizes[own])]] = True
    return chosen[set_of]


def _by_value(values: Integers) -> list[Integers]:
    """The indices of the values that are equal, in their order, of the lowest value first."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if len(order) else []


def take_shots(data: ImageSet, shots: int, *, seed: int) -> ImageSet:
    """Keeps `shots` images of every class, those of smallest hash salted with `seed`, in their original order.

    With groups, no second image of a group is taken before each has given one. With the same seed fewer shots are part
    of more. Of a class with fewer images all are kept. DataError where shots is below 1.
    """
    if shots < 1:
        raise DataError(f"{data.origin}: expected at least 1 shot a class, found {shots}")
    salt = f"shots {seed}"
    labels: Integers = data.labels.cpu().numpy()
    keys, groups = image_hashes(data.images, salt), data.group_indices()
    order = np.lexsort((keys, labels))
    if groups is not None:
        within = np.lexsort((keys, groups, labels))
        turn = np.empty(len(labels), dtype=np.int64)
        turn[within] = _places(labels[within] * (int(groups.max()) + 1) + groups[within])
        group_keys = np.where(_in_group(data), name_hashes(data.groups, salt), keys)
        order = np.lexsort((group_keys, turn, labels))
    return data.subset(np.sort(order[_places(labels[order]) < shots]))


def _places(values: Integers) -> Integers:
    """The place, from 0, of each value among its equals, which lie beside each other."""
    starts = np.diff(values, prepend=-1) != 0
    places: Integers = np.arange(len(values)) - np.flatnonzero(starts)[np.cumsum(starts) - 1]
    return places


def _number_of_images(data: ImageSet, amount: int | float) -> int:
    """Converts `amount` to a number of images. DataError where that is out of range."""
    if isinstance(amount, int) and not isinstance(amount, bool) and 0 <= amount <= len(data):
        return amount
    if isinstance(amount, float) and 0 <= amount < 1:
        return round(amount * len(data))
    raise DataError(
        f"{data.origin}: expected a number of images to hold out from 0 to {len(data):,}, or a fraction from 0 to "
        f"below 1, found {amount!r}"
    )


def _in_proportion(sizes: Integers, total: int) -> Integers:
    """Spreads `total` over classes of these sizes by largest remainder; ties go to the lower label."""
    exact = sizes * total  # over sizes.sum(): whole numbers, so ties are ties
    shares: Integers = exact // sizes.sum()
    by_remainder = np.argsort(-(exact % sizes.sum()), kind="stable")
    shares[by_remainder[: total - int(shares.sum())]] += 1
    return shares


def _fill(sizes: Integers, room: int) -> list[int]:
    """Takes the indices of groups in order, each that still fits; together at most `room` images."""
    taken = []
    for index, size in enumerate(sizes.tolist()):
        if room == 0:
            break
        if size <= room:
            taken.append(index)
            room -= size
    return taken


def _fill_nearest(sizes: Integers, room: int) -> list[int]:
    """Takes the indices of groups in order, each that brings their sum nearer to `room` images."""
    taken = []
    for index, size in enumerate(sizes.tolist()):
        if abs(room - size) < abs(room):
            taken.append(index)
            room -= size
    return taken
