"""Reading ahead: what comes next is fetched while the present is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Key = TypeVar("Key")
Found = TypeVar("Found")

AHEAD = 3  # results that wait, at most
THREADS = 2


def read_ahead(read: Callable[[Key], Found], keys: Iterable[Key]) -> Generator[Found, None, None]:
    """`read(key)` for every key, in the order of the keys, a few of them ahead in threads.

    An error of `read` comes where its result would have come. When the caller stops early, nothing more is begun.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")
    try:
        waiting = iter(keys)
        begun: deque[Future[Found]] = deque(pool.submit(read, key) for key in islice(waiting, AHEAD))
        while begun:
            found = begun.popleft().result()
            begun.extend(pool.submit(read, key) for key in islice(waiting, 1))
            yield found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
