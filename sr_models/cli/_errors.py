"""Errors that a user can mend, told in a line, and all others, which are bugs and keep their traceback."""

from __future__ import annotations

import argparse
import re
import sys
import traceback

from sr_models._extras import install_hint
from sr_models.memory import is_out_of_memory

__all__ = ["end_progress_bars", "users_error"]

#: Classes of libraries, which are not imported only to be compared, and what to do about them.
_ADVICE = {
    "lightning.fabric.utilities.exceptions.MisconfigurationException": "",
    "torch.distributed.DistNetworkError": "check MASTER_ADDR and MASTER_PORT, and that all processes run",
    "torch.distributed.DistStoreError": "check MASTER_ADDR and MASTER_PORT, and that all processes run",
}
_LESS_MEMORY = "choose a smaller batch_size, crop or tile"
_WORKER_ENDED = "the system has ended a process that loads images, mostly for want of memory; choose fewer workers"
#: Beginnings of messages of RuntimeError, the class in which libraries report what has no class of its own.
_RUNTIME_ADVICE = {
    r"(`\w+` can not run on your system|No supported gpu backend found)": "choose another accelerator",
    r"DataLoader worker .*(exited unexpectedly|killed by signal)": _WORKER_ENDED,
    r"unable to (mmap|open shared|write to file|allocate shared)|.*shared memory|.*bus error": (
        "there is not enough shared memory; choose fewer workers or enlarge /dev/shm"
    ),
}


def users_error(error: Exception, *, memory: str = _LESS_MEMORY) -> str | None:
    """Describe an error that the user can mend: bad input, a full disk, a missing package or device.

    Args:
        error: what was raised.
        memory: what to do if it is a lack of memory.

    Returns:
        What to print; ``None`` for an error that is a bug.
    """
    message = _told_by_worker(str(error))
    if isinstance(error, ModuleNotFoundError):
        return install_hint(error)
    if isinstance(error, (OSError, EOFError)) and _while_fetching(error):
        return f"{message or 'no answer'}; {_WORKER_ENDED}"
    if isinstance(error, (argparse.ArgumentError, ValueError, OSError, FloatingPointError)):
        return message
    if is_out_of_memory(error):
        first = (message.splitlines() or [""])[0].rstrip(".! ")
        said = first if "memory" in first else f"out of memory{f' ({first})' if first else ''}"
        return f"{said}; {memory}"
    for kind in type(error).__mro__:
        if (advice := _ADVICE.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
            return "; ".join(filter(None, [message.rstrip(". "), advice]))
    if isinstance(error, RuntimeError):
        for pattern, advice in _RUNTIME_ADVICE.items():
            if re.match(pattern, message, re.IGNORECASE | re.DOTALL):
                return f"{message.splitlines()[0].rstrip('.! ')}; {advice}"
    return None


def end_progress_bars() -> None:
    """Close tqdm's bars, if there are any, so that the next line does not stand behind one."""
    if (tqdm := sys.modules.get("tqdm")) is not None:
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()


def _told_by_worker(message: str) -> str:
    """Return the error of a worker process without its traceback."""
    if not re.match(r"Caught \w+ in DataLoader worker process", message):
        return message
    return message.rstrip().splitlines()[-1].partition(": ")[2]


def _while_fetching(error: Exception) -> bool:
    """Tell whether an error came up while a tensor was fetched from a worker process, which is then dead."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").startswith("torch.multiprocessing") for frame in frames)
