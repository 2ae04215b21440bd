"""Work that overlaps: what comes before and after the network runs in threads of its own, joined by bounded queues, or,
where the network takes all cores, in turns with it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that closing waits for a thread which a device or a disk holds up."""


class _Queue:
    """At most ``depth`` items between two threads."""

    def __init__(self, depth: int) -> None:
        self.items: deque = deque()
        self.depth = depth
        self.ended = False  # nothing more comes
        self.closed = False  # nothing more is wanted
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def wait(self, ready: Callable[[], bool]) -> None:
        # In short waits: one without an end would keep Ctrl-C from the main thread on some systems.
        while not self.changed.wait_for(ready, timeout=0.5):
            pass


class Ahead(Generic[T]):
    """Iterates over ``items`` in a thread, at most ``depth`` of them ahead of whoever takes them.

    With ``drop`` the thread does not wait when the queue is full: the oldest item is dropped and counted in
    ``dropped``, as a camera demands that does not wait either. An error of ``items`` is raised where the next item is
    asked for. Used in a ``with`` block, whose end stops the thread.
    """

    def __init__(self, items: Iterable[T], *, depth: int, drop: bool = False) -> None:
        self.dropped = 0
        self._drop = drop
        self._queue = _Queue(depth)
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)

    def __enter__(self) -> "Ahead[T]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._queue.changed:
            self._queue.closed = True
            self._queue.changed.notify_all()
        self._thread.join(PATIENCE)

    def __iter__(self) -> Iterator[T]:
        queue = self._queue
        while True:
            with queue.changed:
                queue.wait(lambda: bool(queue.items) or queue.ended)
                if not queue.items:
                    if queue.error is not None:
                        raise queue.error
                    return
                item = queue.items.popleft()
                queue.changed.notify_all()
            yield item

    def _run(self, items: Iterable[T]) -> None:
        queue = self._queue
        try:
            for item in items:
                with queue.changed:
                    if self._drop and len(queue.items) == queue.depth:
                        queue.items.popleft()
                        self.dropped += 1
                    queue.wait(lambda: queue.closed or len(queue.items) < queue.depth)
                    if queue.closed:
                        break
                    queue.items.append(item)
                    queue.changed.notify_all()
        except BaseException as error:
            queue.error = error
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            with queue.changed:
                queue.ended = True
                queue.changed.notify_all()


class Behind:
    """Calls functions in a thread, in order, at most ``depth`` of them behind.

    An error of one is raised by the next ``put`` or at the end of the ``with`` block, and nothing is called after it.
    The block's end waits for all that was put, also after Ctrl-C. With ``depth`` 0 ``put`` calls it itself.
    """

    def __init__(self, *, depth: int) -> None:
        self._queue = _Queue(depth)
        self._thread = threading.Thread(target=self._run, daemon=True) if depth else None

    def __enter__(self) -> "Behind":
        if self._thread is not None:
            self._thread.start()
        return self

    def put(self, function: Callable, *arguments: object) -> None:
        if self._thread is None:
            function(*arguments)
            return
        queue = self._queue
        with queue.changed:
            queue.wait(lambda: len(queue.items) < queue.depth or queue.ended)
            if queue.error is not None:
                raise queue.error
            queue.items.append((function, arguments))
            queue.changed.notify_all()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._thread is None:
            return
        queue = self._queue
        with queue.changed:
            queue.closed = True
            queue.changed.notify_all()
        self._thread.join()
        if queue.error is not None and error is None:
            raise queue.error

    def _run(self) -> None:
        queue = self._queue
        while True:
            with queue.changed:
                queue.wait(lambda: bool(queue.items) or queue.closed)
                if not queue.items:
                    break
                function, arguments = queue.items.popleft()
                queue.changed.notify_all()
            try:
                function(*arguments)
            except BaseException as error:
                with queue.changed:
                    queue.error, queue.ended = error, True
                    queue.items.clear()
                    queue.changed.notify_all()
                break


class Turns(Generic[T]):
    """Iterates over ``items`` in groups: a group is taken in a thread, from ``go_on()`` on.

    So the caller has all cores for what it does with a group before ``go_on()``, and what it does afterwards overlaps
    with the taking of the next group. An error of ``items`` is raised once those before it have been given. Used in a
    ``with`` block.

    Args:
        items: taken one after the other.
        full: whether a group, not empty, takes no more.
    """

    def __init__(self, items: Iterable[T], *, full: Callable[[list[T]], bool]) -> None:
        self._items = iter(items)
        self._full = full
        self._error: BaseException | None = None
        self._thread = ThreadPoolExecutor(1)
        self._next: Future[list[T]] | None = None

    def __enter__(self) -> "Turns[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def go_on(self) -> None:
        """Begins with the next group."""
        self._next = self._thread.submit(self._take)

    def __iter__(self) -> Iterator[list[T]]:
        while True:
            waiting, self._next = self._next or self._thread.submit(self._take), None
            group = waiting.result()
            if group:
                yield group
            elif self._error is not None:
                raise self._error
            else:
                return

    def _take(self) -> list[T]:
        group: list[T] = []
        if self._error is not None:
            return group
        try:
            for item in self._items:
                group.append(item)
                if self._full(group):
                    break
        except BaseException as error:
            self._error = error
        return group
