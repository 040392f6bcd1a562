"""A function of very many items in threads, with the results in the order of the items."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_ITEMS_AT_ONCE, _SIZE_AT_ONCE = 64, 1 << 17
_MOST_THREADS = 4  # the tokenizer alone runs beside Python: more threads only wait for each other


def usual_threads() -> int:
    """Give the number of threads that samples are made in."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, size: Callable[[_Item], int], threads: int
) -> Generator[tuple[_Item, _Result], None, None]:
    """Give each item with the function's result; ``size`` in characters bounds how many are held at once.

    The items are drawn in this thread, a little ahead. What the function raises is raised here. The first items need
    no thread, so that small data start none.
    """
    remaining = iter(items)
    for item in remaining if threads <= 1 else islice(remaining, _ITEMS_AT_ONCE):
        yield item, function(item)

    def each(chunk: list[_Item]) -> list[_Result]:
        return [function(item) for item in chunk]

    chunk = _chunk(remaining, size)
    if not chunk:
        return
    pending: deque[tuple[list[_Item], Future[list[_Result]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
    try:
        while chunk or pending:
            if chunk:
                pending.append((chunk, pool.submit(each, chunk)))
                chunk = _chunk(remaining, size)
            if len(pending) > 2 * threads or not chunk:
                done, results = pending.popleft()
                yield from zip(done, results.result(), strict=True)
    finally:  # also after Ctrl-C: nothing new is begun
        pool.shutdown(wait=True, cancel_futures=True)


def _chunk(items: Iterator[_Item], size: Callable[[_Item], int]) -> list[_Item]:
    chunk: list[_Item] = []
    left = _SIZE_AT_ONCE
    while left > 0 and len(chunk) < _ITEMS_AT_ONCE:
        found = list(islice(items, 1))
        if not found:
            break
        chunk += found
        left -= size(found[0])
    return chunk
