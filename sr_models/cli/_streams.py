"""Standard error that is no terminal: a log, a full disk, or a pipe at whose other end nobody is left."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["lenient_stderr", "slow_progress_bars"]

#: Seconds between two states of a progress bar in a log.
_SECONDS = 10


def slow_progress_bars() -> None:
    """Let progress bars print a state every ten seconds where standard error is no terminal.

    A log keeps every state as a line, and tqdm prints ten a second. ``TQDM_MININTERVAL`` of the user wins. This must be
    called before tqdm is imported.
    """
    if sys.stderr is not None and not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(_SECONDS))


class _Lenient:
    """A text stream that drops what it cannot write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lenient_stderr() -> Iterator[None]:
    """Within the ``with`` block, let a standard error that fails end nothing; what is written to it is lost.

    Training for days must not end because the log is full or the terminal has gone.
    """
    if sys.stderr is None:
        # takes the number that is free, so that no checkpoint gets it and with it the messages of libraries
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    former = sys.stderr
    sys.stderr = _Lenient(former)
    try:
        yield
    finally:
        sys.stderr = former
        try:
            former.flush()
        except OSError:
            # what is left would fail again when Python ends, and give the command another exit code
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), former.fileno())
