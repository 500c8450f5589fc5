"""A small model, its batches, and the step that a device takes by itself on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sr_models.training.average import begin_average
from sr_models.training.device_step import DeviceStep, fused_adam


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return (self.second(self.first(x).tanh()) - target).square().mean()


def device_step(model: Model, **settings: Any) -> tuple[DeviceStep, list[Tensor]]:
    average = list(begin_average(model).values())
    optimizer = fused_adam([model.first.parameters(), model.second.parameters()])
    step = DeviceStep(model, optimizer, average=average, averaged=list(model.parameters()), **settings)
    return step, average


def batches(device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    drawn = [(torch.randn(6, 3, generator=generator), torch.randn(6, 1, generator=generator)) for _ in range(8)]
    return [(x.to(device), target.to(device)) for x, target in drawn]
