"""How many batches an epoch has."""

from __future__ import annotations


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Batches in an epoch of so many images. A last one of a single image joins the one before.

    Batch normalisation cannot train on one image where it sees a single value of each channel.
    """
    full, rest = divmod(images, batch_size)
    return full if rest == 1 and full and batch_size > 1 else full + (rest > 0)
