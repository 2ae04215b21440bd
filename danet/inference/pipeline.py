"""Threads that read ahead of the network and write behind it, connected by bounded queues."""

import contextlib
import ctypes
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

JOIN_TIMEOUT_S = 5.0
"""How long leaving a Prefetcher waits for its thread, which a camera or a disk may block."""

POLL_INTERVAL_S = 0.5
"""Timeout of each wait for the queue: on some systems Ctrl-C interrupts only waits that have a timeout."""


class Prefetcher(Generic[T]):
    """Iterates over ``items`` in a thread that is at most ``depth`` + 1 items ahead of the consumer.

    The thread waits while the queue is full. With ``drop`` it discards the oldest item instead and counts it in
    ``dropped``, because a camera does not wait. An error of ``items`` is raised after the items before it. Leaving the
    ``with`` block ends the thread and closes ``items``.

    Example:
        >>> with Prefetcher(range(3), depth=2) as prefetcher:
        ...     list(prefetcher)
        [0, 1, 2]
    """

    def __init__(self, items: Iterable[T], *, depth: int, drop: bool = False) -> None:
        self.dropped = 0
        self._drop = drop
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        # A daemon, unlike an executor's threads: a camera that blocks must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)

    def __enter__(self) -> "Prefetcher[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # A thread that waits for a free place in the queue gets one, and then stops.
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(JOIN_TIMEOUT_S)

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                item = self._queue.get(timeout=POLL_INTERVAL_S)
            except queue.Empty:
                continue
            if item is self:  # the mark of the end
                break
            yield item
        if self._error is not None:
            raise self._error

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if self._drop and self._queue.full():
                    with contextlib.suppress(queue.Empty):  # the consumer may have been faster
                        self._queue.get_nowait()
                        self.dropped += 1
                if not self._stopped.is_set():
                    self._queue.put(item)
                if self._stopped.is_set():
                    break
        except BaseException as error:
            self._error = error
        finally:
            if hasattr(items, "close"):
                items.close()
            if not self._stopped.is_set():
                self._queue.put(self)


class SerialExecutor:
    """Calls functions in order in one thread; at most ``depth`` of them wait.

    With ``depth`` 0, it calls them in the thread of the caller. An error of a call is raised by the next ``submit``, or
    at the end of the ``with`` block, and no call follows it. The end of the block waits for all calls, also after
    Ctrl-C.

    Example:
        >>> with SerialExecutor(depth=2) as executor:
        ...     executor.submit(print, "written")
        written
    """

    def __init__(self, *, depth: int) -> None:
        self._depth = depth
        self._executor = ThreadPoolExecutor(1)
        self._pending: deque[Future] = deque()
        self._failed = False

    def __enter__(self) -> "SerialExecutor":
        return self

    def submit(self, function: Callable, *arguments: object) -> None:
        """Calls ``function(*arguments)`` after all calls before; waits while ``depth`` calls are waiting."""
        if self._depth == 0:
            function(*arguments)
            return
        while len(self._pending) > self._depth or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(self._call, function, *arguments))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._executor.shutdown()
        for call in self._pending:
            if error is None:
                call.result()

    def _call(self, function: Callable, *arguments: object) -> None:
        if not self._failed:
            try:
                function(*arguments)
            except BaseException:
                self._failed = True
                raise


class SingleThreadedCalls:
    """Calls a function in several Python threads at once, in each of which torch's operators run in one thread.

    Two images at the same time, each in one thread, take less time than one after the other in two threads: no thread
    waits for another one inside an image.

    Attributes:
        workers: number of Python threads; 1 if torch has one thread, or if its number of threads cannot be set for a
            single Python thread (this needs an OpenMP library that the process can find by name, as on Linux).

    Example:
        >>> with SingleThreadedCalls() as calls:
        ...     calls.submit(abs, -1).result()
        1
    """

    def __init__(self) -> None:
        self.workers = torch.get_num_threads()
        self._executor = ThreadPoolExecutor(self.workers)
        # Each worker prepares itself once, all at the same time, so that every thread takes one of these calls.
        barrier = threading.Barrier(self.workers)
        prepared = []
        try:
            for _ in range(self.workers):
                prepared.append(self._executor.submit(_use_one_thread, barrier))
        except RuntimeError:  # the system refuses to start another thread
            barrier.abort()
        if barrier.broken or not all(call.result() for call in prepared):
            self.workers = 1

    def __enter__(self) -> "SingleThreadedCalls":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def submit(self, function: Callable[[T], R], item: T) -> "Future[R]":
        """Calls ``function(item)`` as soon as a thread is free. Calls begin in the order in which they are submitted;
        those that have not begun when the ``with`` block ends are left out."""
        return self._executor.submit(function, item)


def _use_one_thread(barrier: threading.Barrier) -> bool:
    """Lets torch's operators run in one thread when this Python thread calls them. Returns whether that worked."""
    with contextlib.suppress(threading.BrokenBarrierError):
        barrier.wait()
    torch.get_num_threads()  # the first call of a thread sets the number of OpenMP threads; later ones do not
    try:
        # Unlike torch.set_num_threads, this does not affect other Python threads.
        ctypes.CDLL(None).omp_set_num_threads(1)
    except (AttributeError, OSError, TypeError):  # no such library, or not a POSIX system
        return False
    return torch.get_num_threads() == 1


class GroupPrefetcher(Generic[T]):
    """Iterates over ``items`` in groups, which a thread takes.

    It takes the next group after ``prefetch()``, or at the latest when the caller asks for it. What the caller does
    before ``prefetch()`` has all cores for itself; what it does afterwards runs at the same time as the thread.

    An error of ``items`` is raised after the items before it. Leaving the ``with`` block ends the thread.

    Args:
        items: taken one after the other.
        is_full: tells whether a group is complete; it is called only with groups that are not empty.

    Example:
        >>> with GroupPrefetcher(range(5), is_full=lambda group: len(group) == 2) as groups:
        ...     list(groups)
        [[0, 1], [2, 3], [4]]
    """

    def __init__(self, items: Iterable[T], *, is_full: Callable[[list[T]], bool]) -> None:
        self._items = iter(items)
        self._is_full = is_full
        self._error: BaseException | None = None
        self._executor = ThreadPoolExecutor(1)
        self._next: Future[list[T]] | None = None

    def __enter__(self) -> "GroupPrefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def prefetch(self) -> None:
        """Starts to take the next group."""
        self._next = self._executor.submit(self._take)

    def __iter__(self) -> Iterator[list[T]]:
        while True:
            if self._next is None:
                self.prefetch()
            group, self._next = self._next.result(), None  # type: ignore[union-attr]
            if group:
                yield group
            elif self._error is not None:
                raise self._error
            else:
                return

    def _take(self) -> list[T]:
        group: list[T] = []
        try:
            while self._error is None and not (group and self._is_full(group)):
                group.append(next(self._items))
        except StopIteration:
            pass
        except BaseException as error:
            self._error = error
        return group
