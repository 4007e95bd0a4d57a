"""How often a JPEG goes over its picture. A progressive one may do so thousands of times, in 100 bytes each."""

from __future__ import annotations

import re

MOST_SCANS = 100  # a progressive JPEG has about 10
MOST_SEGMENTS = 20_000  # a long video or depth map kept in a picture has hundreds

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what ends a scan's bytes; the others are part of them
_START, _END, _SCAN = b"\xff\xd8", 0xD9, 0xDA
_MARKED, _BEGINS = b"\xff", bytes((0xFF, _SCAN))  # as often in a file as it has segments and scans, or oftener


def is_endless(content: bytes) -> bool:
    """Whether these bytes are a JPEG of more scans or segments than MOST_SCANS, MOST_SEGMENTS.

    Only the picture itself counts: not what a segment holds, such as a thumbnail, nor what follows its end.
    """
    place, scans = len(_START), 0
    few = content.count(_MARKED) <= MOST_SEGMENTS and content.count(_BEGINS) <= MOST_SCANS
    if few or not content.startswith(_START):
        return False
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(content, place)
        if found is None:
            return False
        marker, place = content[found.start() + 1], found.end()
        if marker == _END:
            return False
        if marker == _SCAN:
            scans += 1
            if scans > MOST_SCANS:
                return True
        place += int.from_bytes(content[place : place + 2])
    return True
