"""Signals that end a training run, after a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["SIGNALS", "StopSignals", "Stopped", "ignore_signals"]

#: Of a terminal that closes (SIGHUP), of Ctrl-C, of service managers and schedulers.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Stopped(Exception):
    """A training run was ended by a signal, with a checkpoint from which the same command goes on.

    Attributes:
        signal: number of the signal.
        step: finished training steps.
        output: folder of the run.
    """

    def __init__(self, signal: int, step: int, output: str | os.PathLike[str]) -> None:
        super().__init__(f"stopped at step {step}; the same command goes on")
        self.signal, self.step, self.output = int(signal), step, output

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells say it."""
        return 128 + self.signal


class StopSignals:
    """Remember the signals that ask a run to end, instead of ending it at once.

    Within the ``with`` block the first of SIGTERM, SIGINT, SIGHUP and SIGUSR1 is only remembered. A second SIGINT
    raises ``KeyboardInterrupt`` at once. Afterwards everything is as before. Signals that the process ignored already,
    as ``nohup`` lets it, stay ignored. Python delivers signals to the main thread; in another one nothing is done.

    Attributes:
        received: number of the first signal; ``None``: none has come.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interrupts = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # None: a handler that is not Python's, which could not be put back
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._former[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt


def ignore_signals(*_: object) -> None:
    """Leave the signals to the parent: for worker processes, which Ctrl-C and schedulers reach as well.

    A worker that ends at the signal takes away the batch that the parent waits for, and with it the last checkpoint.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
