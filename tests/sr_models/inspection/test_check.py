"""check_model finds the layer that amplifies, and the error of the round trip."""

from __future__ import annotations

import pytest
import torch
from tiny_models import NAMES, randomised

from invflow import FlowStep
from sr_models import check_model


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_sound_model(name: str, scale: int) -> None:
    model = randomised(name, scale)
    check = check_model(model)
    assert check.round_trip < 1e-10
    assert len(check.layers) == sum(len(level) for level in model.levels)
    assert all(0.1 < layer.factor < 10 for layer in check.layers)
    squeezes = [layer.factor for layer in check.layers if layer.kind == "Squeeze"]
    assert squeezes == pytest.approx([1.0] * len(squeezes), abs=1e-6)


def test_the_layer_that_amplifies_is_found() -> None:
    model = randomised("srflow", dtype=torch.float32)
    before = check_model(model)
    step = model.levels[1][3]
    assert isinstance(step, FlowStep)
    with torch.no_grad():
        step.actnorm.log_scale[2] = -9.0
    after = check_model(model)
    assert (after.worst.level, after.worst.layer, after.worst.kind) == (2, 3, "FlowStep")
    assert after.worst.factor > 1e3
    assert after.round_trip > 10 * before.round_trip
