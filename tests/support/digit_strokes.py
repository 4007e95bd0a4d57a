"""Strokes of the digits 0 to 9, as a hand with a mouse makes them: points x, y from 0 to 1, y down."""

from __future__ import annotations

import math

Point = tuple[float, float]


def arc(centre: Point, radii: Point, start: float, end: float, points: int = 24) -> list[Point]:
    """Part of an ellipse, from one angle to another in degrees: 0 is to the right, 90 is down."""
    angles = [math.radians(start + (end - start) * i / points) for i in range(points + 1)]
    return [(centre[0] + radii[0] * math.cos(a), centre[1] + radii[1] * math.sin(a)) for a in angles]


DIGITS: dict[str, list[list[Point]]] = {
    "0": [arc((0.5, 0.5), (0.22, 0.33), -80, 285)],
    "1": [[(0.53, 0.16), (0.5, 0.5), (0.48, 0.84)]],
    "2": [[*arc((0.5, 0.35), (0.2, 0.18), 190, 390), (0.5, 0.6), (0.3, 0.82), (0.5, 0.81), (0.74, 0.82)]],
    "3": [[*arc((0.47, 0.32), (0.18, 0.16), 200, 440), *arc((0.47, 0.66), (0.21, 0.18), -80, 150)]],
    "4": [[(0.36, 0.16), (0.3, 0.5), (0.72, 0.5)], [(0.64, 0.2), (0.62, 0.5), (0.6, 0.86)]],
    "5": [
        [(0.36, 0.18), (0.33, 0.46), *arc((0.46, 0.62), (0.2, 0.19), 240, 500)],
        [(0.36, 0.18), (0.7, 0.17)],
    ],
    "6": [[(0.62, 0.14), (0.45, 0.3), *arc((0.5, 0.66), (0.17, 0.18), 200, 560)]],
    "7": [[(0.28, 0.2), (0.5, 0.19), (0.72, 0.2), (0.58, 0.5), (0.46, 0.84)]],
    "8": [[*arc((0.5, 0.33), (0.15, 0.15), 90, 450), *arc((0.5, 0.66), (0.18, 0.18), -90, 270)]],
    "9": [[*arc((0.5, 0.36), (0.17, 0.17), -10, -360), (0.66, 0.5), (0.62, 0.84)]],
}
