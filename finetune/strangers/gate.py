"""A limit on what all threads together take at one time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """`share(n)` waits until n of `most` are free. What is larger than `most` goes through alone."""

    def __init__(self, most: int) -> None:
        self.most, self.taken, self.changed = most, 0, threading.Condition()

    @contextmanager
    def share(self, amount: int) -> Iterator[None]:
        """Has `amount` for as long as the block runs."""
        amount = min(amount, self.most)
        with self.changed:
            self.changed.wait_for(lambda: self.taken + amount <= self.most)
            self.taken += amount
        try:
            yield
        finally:
            with self.changed:
                self.taken -= amount
                self.changed.notify_all()
