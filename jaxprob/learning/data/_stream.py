"""Batches that an iterator on the host gives one by one, made ready on a thread, with a position that can be saved.

The protocol of positions, `get_state` and `set_state`, is that of the iterators of grain
(https://google-grain.readthedocs.io), which work as they are.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from jaxprob import core
from jaxprob.learning.data._checks import as_count


class Stream:
    """An iterator of batches with a position.

    Attributes:
      num_batches: None, since an iterator does not say how many it has.
      can_resume: whether its position can be saved.
    """

    num_batches = None

    def __init__(self, iterator: Iterator[Any], prefetch: int) -> None:
        self._iterator = iterator
        self._prefetch = prefetch
        self.can_resume = hasattr(iterator, "get_state") and hasattr(iterator, "set_state")
        self._state = _position(iterator) if self.can_resume else None
        self._worker: _Worker | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        """The next batch; `StopIteration` at the end, and whatever the iterator raises."""
        if self._worker is None:
            self._worker = _Worker(self._iterator, self._prefetch, self.can_resume)
        item = self._worker.next()
        if item is None:  # closed, and all that was ready is taken
            self._worker = None
            return next(self)
        batch, self._state = item
        return batch

    def get_state(self) -> Any:
        """The position behind the last batch that was taken from here, whatever was made ready since."""
        self._check("get_state")
        return copy.deepcopy(self._state)

    def set_state(self, state: Any) -> None:
        """Goes to a position that `get_state` gave, of this stream or of another one over the same data."""
        self._check("set_state")
        if self._worker is not None:
            self._worker.stop(wait=True)
            self._worker = None
        self._iterator.set_state(copy.deepcopy(state))  # type: ignore[attr-defined]
        self._state = copy.deepcopy(state)

    def close(self) -> None:
        """Ends the thread once it has made the batch that it is at. Nothing is lost: the stream can go on after it."""
        if self._worker is not None:
            self._worker.stop()

    def __del__(self) -> None:
        if getattr(self, "_worker", None) is not None:
            self.close()

    def _check(self, method: str) -> None:
        if not self.can_resume:
            got = f"{type(self._iterator).__name__}, without get_state() and set_state()"
            todo = "Training goes on without, and cannot resume; learning.data.arrays and iterators of grain can"
            raise core.bad_type(f"Stream.{method}", "the iterator", got, "one with a position", todo)


class _Worker:
    """A thread that makes batches ready, and the queue to it."""

    def __init__(self, iterator: Iterator[Any], prefetch: int, positions: bool) -> None:
        self._items: queue.SimpleQueue = queue.SimpleQueue()
        self._free = threading.Semaphore(prefetch)
        self._stop = threading.Event()
        self._ended: BaseException | None = None
        # It holds no reference to the stream, so that a stream that is forgotten ends it.
        arguments = iterator, self._items, self._free, self._stop, positions
        self._thread = threading.Thread(target=_fill, args=arguments, name="jaxprob-data", daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """A batch and the position behind it; None where the worker was stopped and has no more."""
        if self._ended is None:
            item = self._items.get()
            if not isinstance(item, BaseException):
                self._free.release()
                return item
            self._ended = item
        raise self._ended

    def stop(self, wait: bool = False) -> None:
        self._stop.set()
        self._free.release()
        if wait:
            self._thread.join()


def _fill(
    iterator: Iterator[Any], items: queue.SimpleQueue, free: threading.Semaphore, stop: threading.Event, positions: bool
) -> None:
    """Takes batches while there is room for them, and last says why it ended."""
    try:
        while True:
            free.acquire()
            if stop.is_set():
                items.put(None)
                return
            items.put((next(iterator), _position(iterator) if positions else None))
    except BaseException as error:  # raised again where the batch is asked for
        items.put(error)


def _position(iterator: Any) -> Any:
    # A copy, since an iterator may hand out what it goes on to change.
    return copy.deepcopy(iterator.get_state())


def stream(iterator: Iterator[Any] | Iterable[Any], *, prefetch: int = 2) -> Stream:
    """Batches of an iterator on the host: files, a loader, more than memory holds.

    Args:
      iterator: gives batches, pytrees of arrays with the same shapes each time. Where it has `get_state()` and
        `set_state(state)`, as the iterators of grain have, a run resumes where it stopped; without them it trains but
        cannot resume. It is called on a thread of its own.
      prefetch: number of batches made ready ahead, 1 or more.

    Returns:
      a `Stream`.

    Raises:
      TypeError: if `iterator` is none.
      ValueError: if `prefetch` is less than 1.

    >>> batches = stream(iter([1.0, 2.0, 3.0]))
    >>> next(batches), next(batches), batches.can_resume
    (1.0, 2.0, False)
    """
    if not hasattr(iterator, "__next__"):
        if not hasattr(iterator, "__iter__"):
            todo = "Call it, and pass what it returns" if callable(iterator) else ""
            raise core.bad_type("data.stream", "iterator", iterator, "an iterator of batches", todo)
        iterator = iter(iterator)
    return Stream(iterator, as_count("data.stream", "prefetch", prefetch))  # type: ignore[arg-type]
