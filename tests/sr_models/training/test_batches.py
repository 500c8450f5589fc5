"""Batches of a run: what is asked of the loader."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.fabric import Fabric

from sr_models.data.crops import RandomCrops
from sr_models.training import batches
from sr_models.training.config import TrainingConfig


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_a_gpu(
    config: Callable[..., TrainingConfig], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(batches, "DataLoader", lambda data, **options: asked.append(options) or [])
    fabric = SimpleNamespace(global_rank=0, world_size=1, device=torch.device(device))
    crops = cast(RandomCrops, [])
    assert not [*batches.step_batches(crops, config(), cast(Fabric, fabric), steps=range(0), workers=0)]
    assert [options["pin_memory"] for options in asked] == [device == "cuda"]
