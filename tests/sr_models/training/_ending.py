"""A training of two processes that ends early: ``python _ending.py HOW '{"config": ..., "output": ...}'``.

Fabric looks at its processes every tenth of a second here, and a checkpoint takes three seconds to write.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from lightning.fabric.strategies.launchers import subprocess_script

from sr_models.cli import main
from sr_models.cli import train as command
from sr_models.data.crops import RandomCrops
from sr_models.training import checkpoints
from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model


def slow_disk() -> None:
    write_stream = checkpoints.write_stream

    def slow(path: Any, write: Callable[[BinaryIO], object], **options: Any) -> None:
        def slowly(file: BinaryIO) -> None:
            write(file)
            time.sleep(3)

        write_stream(path, slowly, **options)

    checkpoints.write_stream = slow


def damage(crops: int) -> None:
    """Let the second process find a damaged image from some crop on."""
    draw = RandomCrops.__getitem__

    def damaged(self: RandomCrops, index: int) -> dict[str, Any]:
        item = draw(self, index)
        return {**item, "failed": "b.png: is damaged"} if index >= crops and os.environ["LOCAL_RANK"] == "1" else item

    RandomCrops.__getitem__ = damaged


def stop(step: int, objective: object) -> None:
    if step == 3 and os.environ["LOCAL_RANK"] == "0":
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    how, arguments = sys.argv[1], json.loads(sys.argv[2])
    subprocess_script._ChildProcessObserver.__init__.__defaults__ = (0.1,)
    slow_disk()
    if how == "damage":
        damage(12)
    config = TrainingConfig(**arguments["config"])

    def run(**_: Any) -> None:
        callbacks = [stop] if how == "stop" else []
        train_model(config, arguments["output"], accelerator="cpu", devices=2, callbacks=callbacks)

    command.run = run
    # the command line turns what ends the run into messages and exit codes
    sys.exit(main(["train", "--output", arguments["output"], "--model", config.model, "--images", config.images]))
