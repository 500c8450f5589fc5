"""Signals that end a run are remembered until a checkpoint is written, and everything is as before afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from sr_models.training.stopping import SIGNALS, Stopped, StopSignals, ignore_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, object]]:
    """Handlers of this test's own, put back if it fails."""
    former = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield dict(former)
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered(number: int) -> None:
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == number


def test_the_former_handlers_are_put_back_after_an_error_too() -> None:
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    before = [signal.getsignal(number) for number in SIGNALS]

    def fail() -> None:
        with StopSignals():
            assert all(signal.getsignal(number) not in before for number in SIGNALS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_interrupt_ends_at_once() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_ignored_stays_ignored(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_IGN
    assert signals.received is None
    assert signal.getsignal(number) == signal.SIG_IGN


def test_another_thread_changes_nothing() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def enter() -> None:
        with StopSignals() as signals:
            seen.extend([signals.received, *(signal.getsignal(number) for number in SIGNALS)])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None, *before]


def test_a_worker_hears_none_of_them() -> None:
    ignore_signals(0)
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * len(SIGNALS)


def _wait(ready: multiprocessing.synchronize.Event, end: multiprocessing.synchronize.Event) -> None:
    ignore_signals(0)
    ready.set()
    end.wait()
    os._exit(7)


def test_a_worker_leaves_them_to_its_parent() -> None:
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    worker = context.Process(target=_wait, args=(ready, end))
    worker.start()
    ready.wait()
    for number in SIGNALS:
        os.kill(worker.pid or 0, number)
    time.sleep(0.05)
    assert worker.is_alive()
    end.set()
    worker.join()
    assert worker.exitcode == 7


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_what_a_stopped_run_says(number: int, code: int) -> None:
    stopped = Stopped(number, 12, "run")
    assert str(stopped) == "stopped at step 12; the same command goes on"
    assert (stopped.signal, stopped.step, stopped.output, stopped.exit_code) == (number, 12, "run", code)
