"""Order, back-pressure, errors and clean ends of the threads that read ahead and write behind."""

import threading
import time

import pytest
import torch

from danet.inference.pipeline import GroupPrefetcher, Prefetcher, SerialExecutor, SingleThreadedCalls


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetcher_keeps_order(depth):
    with Prefetcher(iter(range(100)), depth=depth) as prefetcher:
        assert list(prefetcher) == list(range(100))
    assert prefetcher.dropped == 0


def test_prefetcher_is_at_most_depth_items_ahead():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    with Prefetcher(items(), depth=2) as prefetcher:
        for i in prefetcher:
            time.sleep(0.002)
            assert len(taken) <= i + 1 + 2 + 1  # finished, in the queue, held by the thread


def test_prefetcher_drops_the_oldest_items_of_a_live_source():
    with Prefetcher(iter(range(1000)), depth=2, drop=True) as prefetcher:
        time.sleep(0.2)
        assert list(prefetcher) == [998, 999]
        assert prefetcher.dropped == 998


def test_prefetcher_raises_an_error_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("broken")

    with Prefetcher(items(), depth=3) as prefetcher:
        iterator = iter(prefetcher)
        assert next(iterator) == 1
        with pytest.raises(ValueError, match="broken"):
            next(iterator)


def test_prefetcher_exit_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    with Prefetcher(items(), depth=2) as prefetcher:
        next(iter(prefetcher))
    assert closed.wait(1) and threading.active_count() == before


@pytest.mark.parametrize("depth", [0, 2])
def test_serial_executor_finishes_all_calls_in_order(depth):
    done = []
    with SerialExecutor(depth=depth) as executor:
        for i in range(40):
            executor.submit(lambda i=i: (time.sleep(0.001), done.append(i)))
    assert done == list(range(40))


@pytest.mark.parametrize("depth", [0, 2])
def test_serial_executor_raises_the_error_of_a_call(depth):
    done = []

    def fail():
        raise ValueError("disk")

    with pytest.raises(ValueError, match="disk"), SerialExecutor(depth=depth) as executor:
        executor.submit(fail)
        for i in range(1000):
            executor.submit(done.append, i)
    assert len(done) < 5


def test_serial_executor_finishes_its_calls_after_ctrl_c():
    done = []
    with pytest.raises(KeyboardInterrupt), SerialExecutor(depth=4) as executor:
        for i in range(4):
            executor.submit(lambda i=i: (time.sleep(0.01), done.append(i)))
        raise KeyboardInterrupt
    assert done == [0, 1, 2, 3]


def test_group_prefetcher_yields_every_item_in_full_groups():
    with GroupPrefetcher(range(10), is_full=lambda group: len(group) == 4) as groups:
        assert list(groups) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with GroupPrefetcher([], is_full=bool) as groups:
        assert list(groups) == []


def test_group_prefetcher_takes_a_group_only_after_prefetch():
    taken, second = [], threading.Event()

    def items():
        for i in range(4):
            taken.append((i, threading.current_thread()))
            if i == 3:
                second.set()
            yield i

    with GroupPrefetcher(items(), is_full=lambda group: len(group) == 2) as groups:
        for group in groups:
            time.sleep(0.02)
            assert len(taken) == group[-1] + 1, "nothing is taken before prefetch()"
            groups.prefetch()
            assert group[0] == 2 or second.wait(5), "the next group is taken during the work"
    assert all(thread is not threading.current_thread() for _, thread in taken)


def test_group_prefetcher_raises_an_error_after_the_items():
    def items():
        yield from range(3)
        raise ValueError("broken")

    seen = []
    with (
        pytest.raises(ValueError, match="broken"),
        GroupPrefetcher(items(), is_full=lambda group: len(group) == 2) as groups,
    ):
        for group in groups:
            groups.prefetch()
            seen += group
    assert seen == [0, 1, 2]


def test_group_prefetcher_exit_ends_the_thread():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), GroupPrefetcher(iter(range(100)), is_full=bool) as groups:
        for _ in groups:
            groups.prefetch()
            raise KeyboardInterrupt
    assert threading.active_count() == before


needs_threads = pytest.mark.skipif(torch.get_num_threads() < 2, reason="torch has one thread")


@needs_threads
def test_calls_run_at_the_same_time_in_one_torch_thread_each():
    before = torch.get_num_threads()
    with SingleThreadedCalls() as calls:
        assert calls.workers == before
        meeting = threading.Barrier(calls.workers)  # breaks if the calls run one after the other

        def call(item):
            meeting.wait(timeout=20)
            return item, torch.get_num_threads()

        pending = [calls.submit(call, item) for item in range(2 * calls.workers)]
        results = [call.result() for call in pending]
    assert results == [(item, 1) for item in range(2 * before)]
    assert torch.get_num_threads() == before


def test_calls_raise_the_errors_of_the_function():
    def fail(item):
        raise ValueError(item)

    with SingleThreadedCalls() as calls, pytest.raises(ValueError, match="3"):
        calls.submit(fail, 3).result()
