import os
import signal
import threading
import time

import pytest

from danet.utils.stop_signals import StopSignals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_stop_signals_interrupt_while_an_item_is_taken(number, code):
    previous = signal.getsignal(number)

    def items():
        yield 1
        os.kill(os.getpid(), number)
        time.sleep(5)
        yield 2

    taken = []
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        for item in stop.interrupt(items()):
            taken.append(item)
    assert taken == [1] and stop.received == number and stop.exit_code == code
    assert signal.getsignal(number) is previous


def test_stop_signals_wait_for_the_work_on_an_item():
    done = []
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        for item in stop.interrupt(range(10)):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # a second signal changes nothing
            done.append(item)
    assert done == [0] and stop.received == signal.SIGTERM


def test_stop_signals_after_the_last_item_do_not_interrupt():
    with StopSignals() as stop:
        assert list(stop.interrupt(range(3))) == [0, 1, 2]
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.exit_code == 143


def test_stop_signals_leave_ignored_signals_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert list(stop.interrupt([1])) == [1]
        assert stop.received is None and stop.exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_stop_signals_do_nothing_in_other_threads():
    results = []

    def work():
        with StopSignals() as stop:
            results.extend(stop.interrupt([1, 2]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [1, 2]
