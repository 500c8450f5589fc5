"""Several processes train as one does."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sr_models.checkpoints.files import load_model
from sr_models.data.crops import RandomCrops
from sr_models.evaluation.report.curve import training_curve
from sr_models.training.checkpoints import Checkpoints
from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model
from tests.sr_models.training._process import record_gradients

MakeConfig = Callable[..., TrainingConfig]
#: Trainings of 8 steps with 4 crops each.
RUN = {"batch_size": 4, "val_every": 8, "encoder_frozen": 0.5}

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


def start(config: TrainingConfig, output: Path, processes: int, **placement: object) -> None:
    """Train in new processes that torchrun starts, with gloo."""
    arguments = {"config": dataclasses.asdict(config), "output": str(output), **placement}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = str(Path(__file__).with_name("_process.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*torchrun, script, json.dumps(arguments)], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def losses(output: Path) -> list[float]:
    curve = training_curve(output / "logs")
    return [value for _, value in [*curve.l1, *curve.nll, *curve.val_nll]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("ddp", {}),
        ("ddp", {"accumulate": 2, "memory": "invert"}),
        ("fsdp", {"accumulate": 2, "memory": "invert"}),
    ],
)
def test_two_processes_train_as_one_does(
    config: MakeConfig, tmp_path: Path, strategy: str, changes: dict[str, object]
) -> None:
    """Of fsdp without more, test_a_run_goes_on_with_other_processes compares the losses."""
    # Adam's first steps turn a gradient's sign into a whole step, so that rounding moves weights by up to lr a step
    run = config(**RUN, **changes, lr=1e-5, encoder_lr=1e-5, gradient_clip=0.05)
    train_model(run, tmp_path / "one", accelerator="cpu", callbacks=[record_gradients(tmp_path / "one")])
    start(run, tmp_path / "two", 2, strategy=strategy)
    ones, twos = (torch.load(tmp_path / name / "gradients.pt", weights_only=True) for name in ("one", "two"))
    assert len(ones) == len(twos) == 8
    for step, (gradients, others) in enumerate(zip(ones, twos, strict=True)):
        assert gradients.keys() == others.keys()
        norm = torch.nn.utils.get_total_norm(gradients.values()).item()
        assert norm == pytest.approx(0.05, rel=1e-3)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-3 * norm, msg=f"{step} {name}")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
    one, two = (load_model(tmp_path / name / "model.safetensors").state_dict() for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes(config: MakeConfig, tmp_path: Path) -> None:
    run = config(**RUN, lr=1e-5, encoder_lr=1e-5)
    train_model(run, tmp_path / "one", accelerator="cpu")

    def stop(step: int, objective: object) -> None:
        if step == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_model(run, tmp_path / "more", accelerator="cpu", callbacks=[stop])
    start(run, tmp_path / "more", 2, strategy="fsdp")
    last = Checkpoints(tmp_path / "more" / "checkpoints").newest()
    assert last["step"] == 8
    assert losses(tmp_path / "more")[-1] == pytest.approx(losses(tmp_path / "one")[-1], rel=2e-4)
    # the state is whole, whoever wrote it
    one = Checkpoints(tmp_path / "one" / "checkpoints").newest()
    for part in ("model", "average"):
        assert {name: t.shape for name, t in last[part].items()} == {name: t.shape for name, t in one[part].items()}
    assert last["optimizer"].keys() == one["optimizer"].keys()


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="batch_size"):
        start(config(batch_size=3, accumulate=1, encoder_steps=0), tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_is_skipped_in_all(
    config: MakeConfig, folder: Path, tmp_path: Path
) -> None:
    """In each of them once."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(20):
        shutil.copy(folder / "picture.png", images / f"{number}.png")
    run = config(**RUN, images=str(images))
    start(run, tmp_path / "run", 2, spoil={"0": 3, "1": 5})
    records = list(map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()))
    assert [record["step"] for record in records] == [3, 5]
    data = RandomCrops(images, scale=4, crop=16, length=24, seed=run.seed)
    for record in records:
        first = 4 * record["step"]
        assert record["paths"] == sorted({data[crop]["path"] for crop in range(first, first + 4)})
        assert len(record["paths"]) > 2
    model = load_model(tmp_path / "run" / "model.safetensors")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def end_early(how: str, config: TrainingConfig, output: Path) -> subprocess.CompletedProcess[str]:
    """Train in two processes that Fabric starts, and end them in one of the ways of ``_ending.py``."""
    arguments = json.dumps({"config": dataclasses.asdict(config), "output": str(output)})
    script = str(Path(__file__).with_name("_ending.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, script, how, arguments], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_no_process_ends_before_the_checkpoint_is_written(config: MakeConfig, tmp_path: Path) -> None:
    ended = end_early("stop", config(batch_size=4, save_every=100), tmp_path / "run")
    assert ended.returncode == 143, ended.stderr
    assert ended.stderr.count("stopped at step 3") == 1
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest()["step"] == 3


@pytest.mark.slow
def test_images_that_one_process_cannot_read_end_all_after_a_checkpoint(config: MakeConfig, tmp_path: Path) -> None:
    ended = end_early("damage", config(batch_size=4, save_every=100, strict=True), tmp_path / "run")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.strip().endswith("sr-models: error: process 1: image b.png: is damaged (strict)")
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest()["step"] == 3


_STARTER = """
import os, subprocess, sys, time
code = "from sr_models.training.distribution import start_processes; start_processes('cpu', 2, 'ddp')"
child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "SR_MODELS_STARTER": str(os.getpid())})
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_started_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    connection = {
        "LOCAL_RANK": "1",
        "NODE_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "9",
    }
    environment = {**os.environ, **connection, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _STARTER], env=environment, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        starter.kill()
    end = time.monotonic() + 60
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < end:
        time.sleep(0.1)
    alive = Path(f"/proc/{child}/stat").exists()
    if alive:
        os.kill(child, signal.SIGKILL)
    assert not alive
