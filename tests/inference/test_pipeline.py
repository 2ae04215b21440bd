"""Threads before and after the network, and turns with it: order, bounds, errors, ends."""

import threading
import time

import pytest

from danet.inference.pipeline import Ahead, Behind, Turns


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order(depth):
    with Ahead(iter(range(100)), depth=depth) as ahead:
        assert list(ahead) == list(range(100))
    assert ahead.dropped == 0


def test_no_more_than_depth_are_ahead():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    with Ahead(items(), depth=2) as ahead:
        for i in ahead:
            time.sleep(0.002)
            assert len(taken) <= i + 1 + 2 + 1  # done, in the queue, in the hand of the thread


def test_a_source_that_does_not_wait_loses_its_oldest():
    with Ahead(iter(range(1000)), depth=2, drop=True) as ahead:
        time.sleep(0.2)
        assert list(ahead) == [998, 999]
        assert ahead.dropped == 998


def test_errors_come_where_the_next_item_is_asked_for():
    def items():
        yield 1
        raise ValueError("broken")

    with Ahead(items(), depth=3) as ahead:
        iterator = iter(ahead)
        assert next(iterator) == 1
        with pytest.raises(ValueError, match="broken"):
            next(iterator)


def test_leaving_early_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    with Ahead(items(), depth=2) as ahead:
        next(iter(ahead))
    assert closed.wait(1) and threading.active_count() == before


@pytest.mark.parametrize("depth", [0, 2])
def test_calls_are_made_in_order_and_all_before_the_end(depth):
    done = []
    with Behind(depth=depth) as behind:
        for i in range(40):
            behind.put(lambda i=i: (time.sleep(0.001), done.append(i)))
    assert done == list(range(40))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_of_a_call_reaches_the_caller(depth):
    done = []

    def fail():
        raise ValueError("disk")

    with pytest.raises(ValueError, match="disk"), Behind(depth=depth) as behind:
        behind.put(fail)
        for i in range(1000):
            behind.put(done.append, i)
    assert len(done) < 5


def test_ctrl_c_waits_for_what_was_put():
    done = []
    with pytest.raises(KeyboardInterrupt), Behind(depth=4) as behind:
        for i in range(4):
            behind.put(lambda i=i: (time.sleep(0.01), done.append(i)))
        raise KeyboardInterrupt
    assert done == [0, 1, 2, 3]


def test_turns_give_every_item_in_full_groups():
    with Turns(range(10), full=lambda group: len(group) == 4) as turns:
        assert list(turns) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with Turns([], full=bool) as turns:
        assert list(turns) == []


def test_a_group_is_taken_once_it_is_allowed_and_while_the_caller_works():
    taken, second = [], threading.Event()

    def items():
        for i in range(4):
            taken.append((i, threading.current_thread()))
            if i == 3:
                second.set()
            yield i

    with Turns(items(), full=lambda group: len(group) == 2) as turns:
        for group in turns:
            time.sleep(0.02)
            assert len(taken) == group[-1] + 1, "nothing is taken before go_on()"
            turns.go_on()
            assert group[0] == 2 or second.wait(5), "the next group is taken meanwhile"
    assert all(thread is not threading.current_thread() for _, thread in taken)


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield from range(3)
        raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"), Turns(items(), full=lambda group: len(group) == 2) as turns:
        for group in turns:
            turns.go_on()
            seen += group
    assert seen == [0, 1, 2]


def test_leaving_turns_early_waits_for_their_thread():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Turns(iter(range(100)), full=bool) as turns:
        for _ in turns:
            turns.go_on()
            raise KeyboardInterrupt
    assert threading.active_count() == before
