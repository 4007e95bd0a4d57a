"""The `cache` part of a recipe: how much may be kept of what frozen stages make of the images."""

from __future__ import annotations

from pydantic import Field

from finetune.recipe.settings import Settings


class CacheSettings(Settings):
    """What frozen stages make of the images is kept meanwhile, so that they need to run only once.

    Where both are too small, less of it or nothing is kept: that costs time and changes no result, but for the last
    bits. `finetune plan` tells.
    """

    memory: float = Field(
        default=2.0,
        ge=0,
        le=1e6,
        description="Most memory it may take, in GB (1,000,000,000 bytes), in each process; the GPU's where that "
        "trains. 0: none.",
    )
    disk: float = Field(
        default=20.0,
        ge=0,
        le=1e6,
        description="Most room on the disk for what does not fit into memory, in GB, in each process; in the folder "
        "FINETUNE_CACHE, else ~/.cache/finetune, where 1 GB is left free. 0: none.",
    )
