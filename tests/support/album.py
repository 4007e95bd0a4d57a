"""Small pictures on disk for the tests of folders and tables."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(name: object, side: int = 8, channels: int = 3) -> np.ndarray:
    """Random pixels that depend on the name alone."""
    seed = int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "big")
    shape = (side, side, channels) if channels > 1 else (side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def put(path: Path, name: object = None, **more: int) -> Path:
    """Writes a picture; another name gives other pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(path.as_posix() if name is None else name, **more)).save(path)
    return path


def album(root: Path, **counts: int | dict[str, int]) -> Path:
    """ROOT/CLASS/0.png ... for `cat=3`, and ROOT/train/CLASS/0.png ... for `train={"cat": 3}`."""
    for name, count in counts.items():
        for label, number in (count if isinstance(count, dict) else {name: count}).items():
            place = root / name / label if isinstance(count, dict) else root / name
            place.mkdir(parents=True, exist_ok=True)
            for index in range(number):
                put(place / f"{index}.png", f"{name} {label} {index}")
    return root


def scene(label: str, name: object, channels: int = 3, noise: int = 300) -> np.ndarray:
    """A picture, 36 by 44, of a coarse pattern that is its class's, under noise that depends on the name."""
    pattern = pixels(f"pattern of {label}", side=4, channels=channels).astype(int)
    tall = np.kron(pattern, np.ones((9, 11, 1) if channels > 1 else (9, 11), int))
    seed = int.from_bytes(hashlib.blake2b(f"{label} {name}".encode(), digest_size=8).digest(), "big")
    return (tall + np.random.default_rng(seed).integers(-noise, noise, tall.shape)).clip(0, 255).astype(np.uint8)


def scenes(root: Path, channels: int = 3, noise: int = 300, **parts: dict[str, int]) -> Path:
    """ROOT/train/CLASS/0.png ... for `train={"cat": 3}`: pictures from which the classes can be learnt."""
    for part, counts in parts.items():
        for label, number in counts.items():
            place = root / part / label
            place.mkdir(parents=True, exist_ok=True)
            for index in range(number):
                Image.fromarray(scene(label, f"{part} {index}", channels, noise)).save(place / f"{index}.png")
    return root
