"""A run that is killed at any moment and started again ends bit for bit like an unbroken one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sr_models.checkpoints.files import load_model
from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model
from tests.support.faults import KILLED, count_calls, run_with_fault

MakeConfig = Callable[..., TrainingConfig]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")]

#: Runs with everything that has a state of its own.
RUNS = {
    "averaged": {"average": 0.9},
    "accumulated, with a worker": {"accumulate": 2, "workers": 1},
    "noise-conditional, inverted": {"model": "ncsr", "memory": "invert"},
}


def run_of(config: MakeConfig, name: str) -> Callable[[Path], Path]:
    """A run of seven steps with a checkpoint after each."""
    changes = dict(RUNS[name])
    workers = changes.pop("workers", 0)
    if changes.get("model") == "ncsr":
        changes["overrides"] = {**config().overrides, "noise_steps": [0, 1, 1]}
    settings = config(steps=7, encoder_steps=2, encoder_frozen=0.5, save_every=1, val_every=3, **changes)
    return lambda output: train_model(settings, output, accelerator="cpu", workers=workers)


def assert_same_end(one: Path, other: Path) -> None:
    for file in ("model.safetensors", "best.safetensors"):
        left, right = (load_model(folder / file).state_dict() for folder in (one, other))
        for name, tensor in left.items():
            assert torch.equal(tensor, right[name]), (file, name)
    left, right = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (one, other))
    assert left["step"] == right["step"] == 7
    for part in ("model", "average"):
        assert all(torch.equal(tensor, right[part][name]) for name, tensor in left[part].items())
    for name, state in left["optimizer"].items():
        assert all(torch.equal(tensor, right["optimizer"][name][key]) for key, tensor in state.items()), name


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_calls_that_change_files(config: MakeConfig, tmp_path: Path, name: str) -> None:
    """Within the writing of checkpoints, models, logs and records, with and without a loss of power."""
    run = run_of(config, name)
    calls = count_calls(tmp_path / "whole", lambda: run(tmp_path / "whole"))
    rng = random.Random(name)
    for number in range(7):
        fault = "power" if number % 2 else "kill"
        at, output = rng.randrange(calls), tmp_path / str(number)
        code = run_with_fault(output, lambda output=output: run(output), at, fault)
        assert code == KILLED, (at, calls)
        run(output)
        assert_same_end(tmp_path / "whole", output)


def test_killed_at_any_time_again_and_again(config: MakeConfig, tmp_path: Path) -> None:
    run = run_of(config, "averaged")
    started = time.monotonic()
    run(tmp_path / "whole")
    whole = time.monotonic() - started
    rng, kills = random.Random(1), 0
    while not (tmp_path / "killed" / "model.safetensors").exists():
        child = os.fork()
        if not child:
            code = 1
            try:
                run(tmp_path / "killed")
                code = 0
            finally:
                os._exit(code)
        # longer and longer, so that the run comes to its end
        time.sleep(rng.uniform(0, 0.3 * whole) + 0.1 * kills * whole)
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        kills += 1
    assert kills > 1
    run(tmp_path / "killed")
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("fault", ["full", "EIO"])
def test_a_disk_that_fails_harms_nothing_that_was_written(config: MakeConfig, tmp_path: Path, fault: str) -> None:
    run = run_of(config, "averaged")
    calls = count_calls(tmp_path / "whole", lambda: run(tmp_path / "whole"))
    rng = random.Random(fault)
    for number in range(4):
        output = tmp_path / str(number)
        run_with_fault(output, lambda output=output: run(output), rng.randrange(calls), fault)
        run(output)
        assert_same_end(tmp_path / "whole", output)
