"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from sr_models.training.average import averaged, begin_average, update_average


def test_it_follows_its_formula() -> None:
    module = nn.Linear(3, 2)
    average = begin_average(module)
    expected = {name: parameter.detach().double().clone() for name, parameter in module.named_parameters()}
    for updates in range(30):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        update_average(average, module, 0.6, updates)
        decay = min(0.6, (1 + updates) / (10 + updates))
        for name, parameter in module.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
            torch.testing.assert_close(average[name].double(), expected[name], rtol=1e-5, atol=1e-5)


def test_it_is_a_copy_that_is_laid_over_the_state() -> None:
    module = nn.BatchNorm1d(4)
    average = begin_average(module)
    with torch.no_grad():
        module.weight.fill_(7)
    assert (average["weight"] == 1).all()
    state = averaged(module.state_dict(), average)
    assert state.keys() == module.state_dict().keys()
    assert (state["weight"] == 1).all()
    assert (averaged(module.state_dict(), None)["weight"] == 7).all()
