"""Training steps of HCFlow and HCFlow+ against those of the published implementation."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from golden import Golden, load_golden
from lightning.fabric import Fabric

import sr_models
from sr_models.checkpoints.files import describe_file
from sr_models.checkpoints.published import from_published, to_published
from sr_models.flow.noise import NoisyPair
from sr_models.training.config import TrainingConfig
from sr_models.training.learner import Learner
from sr_models.training.objective import phases

PLUS = {"lr": 5e-5, "nll_weight": 6e-3, "pixel_weight": 1.0, "carry_gradient": True}


@pytest.fixture(scope="module")
def units() -> Golden:
    return load_golden("units_hcflow")


@pytest.mark.parametrize(("case", "interrupted"), [("plain", False), ("plus", True)])
def test_training_steps(case: str, interrupted: bool, units: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, also where another process goes on with what the first one has saved."""
    golden = load_golden("hcflow_4")
    model = from_published(golden.state_dict, golden.facts["opt"])
    overrides = {name: value for name, value in vars(model.config).items() if name != "scale"}
    settings: dict[str, Any] = PLUS if case == "plus" else {}
    config = TrainingConfig(
        model="hcflow", images=".", overrides=overrides, crop=16, batch_size=2, average=0.0, **settings
    )
    content = {
        "step": 0,
        "description": json.dumps(describe_file(model)),
        "model": {name: tensor.double() for name, tensor in model.state_dict().items()},
        "average": None,
        "optimizer": {},
        "scaler": None,
    }
    fabric = Fabric(accelerator="cpu", devices=1)
    lr = golden["near/lr" if case == "plain" else "lr"].double()
    facts = units.facts[f"train_{case}"]
    assert facts["lr_image"] == ("near/lr" if case == "plain" else "lr")
    learner: Learner | None = None
    for step in range(4):
        if learner is None or interrupted:
            content = content if learner is None else {**content, **learner.content()}
            learner = begin(content, config, fabric)
        hr = golden["hr"].double()
        noisy = hr + units["train/dequant_u"][step].double() / golden.facts["opt"]["quant"]
        monkeypatch.setattr(learner.objective, "inputs", lambda *_, noisy=noisy: NoisyPair(noisy, lr, None))
        rates = config.learning_rates(step)
        assert rates[1] == facts["lr_in_effect"][step]
        loss, _ = learner.compute_gradients([{"hr": hr, "lr": lr, "crops": [0, 1]}], rates)
        learner.update(step)
        # weighted; bits per pixel, and noise in one channel of three
        given = units[f"f64/train_{case}/nll"][step] / facts["train"]["nll_weight"]
        expected = given - math.log2(golden.facts["opt"]["quant"])
        torch.testing.assert_close(3 * loss.double(), expected, rtol=1e-6, atol=0)
        now = learner.objective.model
        found = to_published(now, now.state_dict())
        for number, name in enumerate(facts["param_names"]):
            norm = units[f"f64/train_{case}/param_l2_{step + 1}"][number]
            total = units[f"f64/train_{case}/param_sum_{step + 1}"][number]
            torch.testing.assert_close(found[name].norm(), norm, rtol=1e-10, atol=1e-14, msg=name)
            assert abs(found[name].sum() - total) <= 1e-10 * math.sqrt(found[name].numel()) * norm, name


def begin(content: dict[str, Any], config: TrainingConfig, fabric: Fabric) -> Learner:
    """A learner whose weights are float64."""
    (phase,) = phases(config)
    learner = Learner(phase, {**content, "model": content["model"]}, config, fabric, "auto")
    model = learner.objective.model.double()
    model.load_state_dict(content["model"])
    return learner


def test_a_batch_goes_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of images are of the crops that the likelihood saw."""
    sizes = {"steps": 1, "conditional_steps": 1, "hidden_channels": 4, "conditional_hidden_channels": 4}
    sizes |= {"features": 4, "growth": 2, "blocks": [1, 1]}
    config = TrainingConfig(model="hcflow", images=".", overrides=sizes, crop=16, batch_size=4, accumulate=2, **PLUS)
    content = {
        "description": json.dumps(describe_file(model := sr_models.create("hcflow", **sizes))),
        "model": model.state_dict(),
        "average": None,
        "optimizer": {},
        "scaler": None,
    }
    (phase,) = phases(config)
    learner = Learner(phase, content, config, Fabric(accelerator="cpu", devices=1), "auto")
    moved = []
    monkeypatch.setattr(Learner, "_moved", lambda self, part: moved.append(part) or tuple(part.values()))
    parts = [{"hr": torch.rand(2, 3, 16, 16), "lr": torch.rand(2, 3, 4, 4), "crops": [at, at + 1]} for at in (0, 2)]
    learner.compute_gradients(parts, config.learning_rates(0))
    learner.update(0)
    assert moved == parts
