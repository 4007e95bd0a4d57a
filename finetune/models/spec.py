"""What a network takes (InputSpec) and how one is built (ModelSpec)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from finetune.data.image_io import CropSpec
    from finetune.data.normalize import Normalizer
    from finetune.models.staged import StagedNetwork

TIMM = "timm/"  # what the names of timm's models begin with here


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes a network's input.

    `size` is the side of the square input in pixels; `mean` and `std` are per channel, for values scaled to 0..1.
    `resize` says how a picture becomes square: "squash" its two sides, or keep its shape and bring the "shorter_side"
    to `working` pixels. `crop` is the part of `working` that the network then sees, the centre. `decode` and `bits` say
    how the files that were trained on became pixels (see `image_io.Decoding`).
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop: float = 1.0
    resize: Literal["squash", "shorter_side"] = "squash"
    decode: Literal["exact", "scaled"] = "exact"
    bits: int = 16

    @property
    def working(self) -> int:
        """The side in pixels to which a picture is brought before its centre is cut out, as timm rounds it."""
        return int(self.size / self.crop)

    def crop_spec(self, channels: int | None) -> CropSpec:
        """How photographs are cropped for this input; `channels` None: grey if all of them are, else colour."""
        from finetune.data.image_io import CropSpec

        return CropSpec(channels, self.size, self.crop, self.resize, self.interpolation, self.decode, self.bits)

    def normalizer(self, device: torch.device) -> Normalizer:
        """Turns stored uint8 images into this input, on `device`."""
        from finetune.data.normalize import Normalizer

        return Normalizer(self.mean, self.std, device, size=self.size, working=self.working)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values, for a checkpoint; `decode` and `bits` only where they are not the default."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in plain.items() if k not in ("decode", "bits") or v != getattr(InputSpec, k)}


@dataclass(frozen=True)
class ModelSpec:
    """One kind of network. `build(classes, arguments)` makes it with random weights from torch's current generator.

    `check_size(size)` raises SettingError when images of size×size pixels do not fit. `arguments` are the names taken.
    `cost(classes)` is the number of parameters, and of multiply-adds for one image; None where torch has to count them.
    """

    title: str
    source: str
    stages: tuple[str, ...]
    input: InputSpec
    build: Callable[[int, Mapping[str, Any]], StagedNetwork]
    arguments: tuple[str, ...] = ()
    check_size: Callable[[int], None] | None = None
    cost: Callable[[int], tuple[int, int]] | None = None
