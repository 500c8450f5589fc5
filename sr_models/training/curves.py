"""Curves and pictures of a run, written for TensorBoard."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import image, scalar

__all__ = ["CurveLog"]

#: What the names of logs begin with; the second of their creation follows.
_PREFIX = "events.out.tfevents."


class CurveLog:
    """Log that a reader sees as soon as a call returns.

    A killed run may go on from a checkpoint that is newer than a value that waits in memory: it would be lost. torch's
    ``SummaryWriter`` writes from a thread, whose failure at a full disk is a traceback instead of an exception here.

    Args:
        folder: folder of the logs, created if needed.
        first_step: what earlier logs hold of this step and of later ones disappears from the curves.

    Raises:
        OSError: the log cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Logs are read in the order of their names, whatever the clock says.
        seconds = [int(path.name[len(_PREFIX) :].partition(".")[0]) for path in folder.glob(f"{_PREFIX}[0-9]*.*")]
        second = max([int(time.time()), *(second + 1 for second in seconds)])
        self._file = (folder / f"{_PREFIX}{second:010d}.{socket.gethostname()}.{os.getpid()}").open("xb")
        self._records = RecordWriter(self._file)
        self._write(
            Event(file_version="brain.Event:2"),
            # of this version, readers drop what came before and belongs to this step or later ones
            Event(step=first_step, session_log=SessionLog(status=SessionLog.START)),
        )

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Add a value to each of several curves. Those that are not finite are left out."""
        self._write(
            *(Event(step=step, summary=scalar(name, value)) for name, value in values.items() if math.isfinite(value))
        )

    def add_picture(self, name: str, picture: Tensor, step: int) -> None:
        """Add a picture (3, H, W), float in [0, 1]."""
        self._write(Event(step=step, summary=image(name, picture.cpu(), dataformats="CHW")))

    def close(self) -> None:
        """Close the file; nothing can be added any more."""
        self._file.close()

    def _write(self, *events: Event) -> None:
        now = time.time()
        for event in events:
            event.wall_time = now
            self._records.write(event.SerializeToString())
        self._file.flush()
