"""Training steps that the device takes by itself: the same steps, and a step that is not finite changes nothing."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_steps import Model, batches, device_step

from sr_models.checkpoints.files import load_model
from sr_models.training import learner
from sr_models.training.average import begin_average, share_of_new, update_average
from sr_models.training.checkpoints import Checkpoints
from sr_models.training.config import TrainingConfig
from sr_models.training.loop import Loop
from sr_models.training.objective import Objective
from sr_models.training.run import train_model

MakeConfig = Callable[..., TrainingConfig]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_steps_are_those_of_adam(parts: int) -> None:
    model, clip = Model(), 0.5
    expected = copy.deepcopy(model)
    step, average = device_step(model, clip=clip)
    adam = torch.optim.Adam([{"params": expected.first.parameters()}, {"params": expected.second.parameters()}])
    expected_average = begin_average(expected)
    for number, (x, target) in enumerate(batches()):
        rates = 0.1 / (1 + number), 0.05
        pieces = list(zip(x.chunk(parts), target.chunk(parts), strict=True))
        found = step(pieces, rates, share_of_new(0.9, number))
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate
        adam.zero_grad()
        loss = expected(x, target)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(expected.parameters(), clip)
        adam.step()
        update_average(expected_average, expected, 0.9, number)
        torch.testing.assert_close(found, (loss.detach(), norm))
        torch.testing.assert_close(list(model.parameters()), list(expected.parameters()))
        torch.testing.assert_close(average, list(expected_average.values()))


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    model = Model()
    step, average = device_step(model)
    good, *_ = batches()
    step([good], (0.1, 0.1), 0.5)
    adam = step._optimizer
    kept = copy.deepcopy([list(model.parameters()), average, adam.state_dict()["state"]])
    x, target = good
    # the last has a finite loss, but no finite gradient
    for bad in ((x * math.nan, target), (x, target * math.inf), (x, target + 1e19)):
        found = step([bad], (0.1, 0.1), 0.5)
        assert not (found.loss + found.norm).isfinite()
        now = [list(model.parameters()), average, adam.state_dict()["state"]]
        torch.testing.assert_close(now, kept, rtol=0, atol=0)
    step([good], (0.1, 0.1), 0.5)
    assert not torch.equal(model.first.weight, kept[0][0])
    assert all(parameter.isfinite().all() for parameter in [*model.parameters(), *average])


@pytest.fixture
def by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU take its steps as a GPU does."""
    monkeypatch.setattr(learner, "device_decides", lambda *given: True)


class Steps(list[int]):
    def __call__(self, step: int, objective: Objective) -> None:
        self.append(step)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_is_the_same(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    found = {}
    for name in ("host", "device"):
        if name == "device":
            monkeypatch.setattr(learner, "device_decides", lambda *given: True)
        run = config(accumulate=accumulate, encoder_frozen=0.5)
        steps = Steps()
        path = train_model(run, tmp_path / name, accelerator="cpu", callbacks=[steps])
        newest = Checkpoints(tmp_path / name / "checkpoints").newest()
        assert newest is not None
        found[name] = (
            load_model(path).state_dict(),
            newest["optimizer"],
            newest["best"]["value"],
            newest["step"],
            list(steps),
        )
    torch.testing.assert_close(found["device"], found["host"], rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_where_it_was_interrupted(
    config: MakeConfig, tmp_path: Path, by_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(train_model(config(), tmp_path / "whole", accelerator="cpu"))

    def stop(step: int, objective: Objective) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(config(), tmp_path / "parts", accelerator="cpu", callbacks=[stop])
    newest = Checkpoints(tmp_path / "parts" / "checkpoints").newest()
    assert newest is not None
    assert newest["step"] == 5
    parts = load_model(train_model(config(), tmp_path / "parts", accelerator="cpu", resume="auto"))
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_holds_the_state_before_the_step_that_proved_it(
    config: MakeConfig, tmp_path: Path, by_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, weights = {}, {}
    monkeypatch.setattr(Loop, "write", lambda self, content: written.setdefault(content["step"], content))

    def keep(step: int, objective: Objective) -> None:
        weights[step] = copy.deepcopy(dict(objective.model.named_parameters()))

    train_model(config(save_every=3), tmp_path, accelerator="cpu", callbacks=[keep])
    assert list(written) == [3, 6, 8]
    for step in (3, 6):
        for name, parameter in weights[step].items():
            torch.testing.assert_close(written[step]["model"][name], parameter.detach(), rtol=0, atol=0)


def test_too_many_steps_that_are_not_finite_end_the_run(
    config: MakeConfig, tmp_path: Path, by_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_of = Objective.loss_of
    monkeypatch.setattr(
        Objective,
        "loss_of",
        lambda self, kind, *parts: loss_of(self, kind, *parts) * (math.nan if kind == "nll" else 1),
    )
    with pytest.raises(FloatingPointError, match="the likelihood is not finite at step 4, nor in the 2 before"):
        train_model(config(max_skipped=2), tmp_path, accelerator="cpu")
    assert [record["step"] for record in records(tmp_path)] == [2, 3, 4]


def test_a_weight_without_inverse_ends_the_run_with_its_name(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(step: int, objective: Objective) -> None:
        if step == 4:
            with torch.no_grad():
                objective.model.levels[1].layers[1].conv1x1.weight.zero_()

    # as on a device whose values nobody waits for
    monkeypatch.setattr("invflow.layers._derived.reads_freely", lambda tensor: False)
    monkeypatch.setattr("invflow.layers._together.reads_freely", lambda tensor: False)
    with pytest.raises(
        ValueError, match=r"levels.1.layers.1.conv1x1: InvertibleConv1x1 with \d+ channels: weight is singular"
    ):
        train_model(config(val_every=100), tmp_path, accelerator="cpu", callbacks=[spoil])


def test_a_graph_is_refused_where_there_is_none(config: MakeConfig, tmp_path: Path) -> None:
    message = "graph must be 'auto' or 'never', got 'always': CUDA graphs need a CUDA device"
    with pytest.raises(ValueError, match=message):
        train_model(config(graph="always"), tmp_path, accelerator="cpu")
