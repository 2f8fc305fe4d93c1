"""Prepare the next thing in a thread while the last one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class BackgroundMap(Generic[T, U], Iterator[U]):
    """`prepare(item)` of each item; while the caller uses one, the next is made in a thread.

    An error of an item is raised when its turn comes. Closing waits for the one being made and drops it.
    """

    def __init__(self, items: Iterator[T], prepare: Callable[[T], U]) -> None:
        self._items, self._prepare = items, prepare
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastdps-background")
        self._coming = self._pool.submit(self._make)

    @property
    def is_ready(self) -> bool:
        """Whether the next one is made, or there is none, so that asking for it neither waits nor raises."""
        return self._coming.done() and self._coming.exception() is None

    def peek(self) -> U | None:
        """The next one if it is made; asking for it gives it again."""
        made = self._coming.result() if self.is_ready else None
        return None if made is None else made[0]

    def __next__(self) -> U:
        made = self._coming.result()
        if made is None:
            raise StopIteration
        self._coming = self._pool.submit(self._make)  # and drop the last one: it may hold a pipeline
        return made[0]

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()

    def _make(self) -> tuple[U] | None:
        for item in self._items:
            return (self._prepare(item),)
        return None
