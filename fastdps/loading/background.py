"""Prepare the next thing in a thread while the last one is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def one_ahead(items: Iterator[T], prepare: Callable[[T], U]) -> Generator[U, None, None]:
    """`prepare(item)` of each item; while the caller uses one, the next is made in a thread.

    An error of an item is raised when its turn comes. Closing waits for the one being made and drops it.
    """

    def make() -> tuple[U] | None:
        for item in items:
            return (prepare(item),)
        return None

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastdps-ahead") as pool:
        made = pool.submit(make).result()
        while made is not None:
            coming = pool.submit(make)
            yield made[0]
            made = None  # drop it before waiting: it may hold a pipeline
            made = coming.result()
