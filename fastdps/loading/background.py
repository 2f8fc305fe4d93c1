"""Prepare the next item in a background thread while the current one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class BackgroundMap(Generic[T, U], Iterator[U]):
    """An iterator over `prepare(item)` that prepares one item ahead in a thread.

    An error is raised when the item would be returned. `close` waits for the item being prepared and drops it.

    Args:
        items: The items.
        prepare: Called in the background thread.
    """

    def __init__(self, items: Iterator[T], prepare: Callable[[T], U]) -> None:
        self._items, self._prepare = items, prepare
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastdps-background")
        self._next = self._pool.submit(self._prepare_next)

    @property
    def is_ready(self) -> bool:
        """True if `next` neither waits nor raises an error: the next item is prepared, or there is none."""
        return self._next.done() and self._next.exception() is None

    def peek(self) -> U | None:
        """Return the next item without consuming it, or None if it is not ready."""
        prepared = self._next.result() if self.is_ready else None
        return None if prepared is None else prepared[0]

    def __next__(self) -> U:
        prepared = self._next.result()
        if prepared is None:
            raise StopIteration
        self._next = self._pool.submit(self._prepare_next)  # drops the last future, which may hold a pipeline
        return prepared[0]

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown()

    def _prepare_next(self) -> tuple[U] | None:
        for item in self._items:
            return (self._prepare(item),)
        return None
