"""Counts batches, and the images in them."""

from __future__ import annotations


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Batches in an epoch of so many images. A last one of a single image joins the one before.

    Batch normalisation cannot train on one image where it sees a single value of each channel.
    """
    full, rest = divmod(images, batch_size)
    return full if rest == 1 and full and batch_size > 1 else full + (rest > 0)


def images_in_steps(steps: int, images: int, batch_size: int) -> int:
    """How many images so many steps see, each of the `images` as often as it comes."""
    epochs, rest = divmod(steps, batches_per_epoch(images, batch_size))
    return epochs * images + rest * batch_size


def steps_to_see(seen: int, images: int, batch_size: int) -> int:
    """The steps, at least one, in which about so many images are seen, each of the `images` as often as it comes."""
    epochs, rest = divmod(seen, images)
    return max(1, epochs * batches_per_epoch(images, batch_size) + round(rest / batch_size))
