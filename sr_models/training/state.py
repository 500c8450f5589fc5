"""The state of a run as one dictionary of whole tensors on the CPU, whatever device or sharding holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from sr_models.checkpoints.files import create_described, describe_file
from sr_models.flow.model import SuperResolutionFlow
from sr_models.training.average import averaged

__all__ = ["Content", "begin", "gather", "gather_optimizer", "like", "model_of", "restore_optimizer"]


#: Content of a checkpoint but for its format: ``step`` (finished steps), ``description`` (JSON of the model),
#: ``model``, ``average``, ``optimizer`` (by parameter), ``scaler`` (of gradients in float16), ``skipped`` (steps),
#: ``best``, ``adversary`` (a discriminator that learns beside the model).
Content = dict[str, Any]


def begin(model: SuperResolutionFlow) -> Content:
    """Return the state of a run before its first step."""
    return {
        "step": 0,
        "description": json.dumps(describe_file(model)),
        "model": gather(model.state_dict()),
        "average": None,
        "optimizer": {},
        "scaler": None,
        "skipped": 0,
        "best": None,
        "adversary": None,
    }


def model_of(content: Content, *, average: bool) -> SuperResolutionFlow:
    """Make the model of a state, in evaluation mode, with its averaged weights or its own."""
    with torch.random.fork_rng(devices=[]):
        model = create_described(json.loads(content["description"]))
    model.load_state_dict(averaged(content["model"], content["average"] if average else None))
    return model.eval()


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors on the CPU. Every rank must take part if the tensors are sharded.

    Tensors that are whole and on the CPU are returned themselves, not as copies.
    """
    return {name: _whole(tensor) for name, tensor in tensors.items()}


def gather_optimizer(optimizer: Optimizer, module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer's state of every parameter that has one, by the parameter's name."""
    return {
        name: gather(optimizer.state[parameter])
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
    }


def restore_optimizer(state: Mapping[str, Mapping[str, Tensor]], optimizer: Optimizer, module: nn.Module) -> None:
    """Give an optimizer the state that :func:`gather_optimizer` returned, sharded as the parameters are."""
    # a fused one counts its steps on the device
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in module.named_parameters():
        if name in state:
            placed = {key: _placed(value, parameter) for key, value in state[name].items()}
            if fused:
                placed = {key: value.to(parameter.device) for key, value in placed.items()}
            optimizer.state[parameter] = placed


def like(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return copies of whole tensors, placed and sharded as the module's parameters of the same names are."""
    parameters = dict(module.named_parameters())
    return {name: _placed(tensor, parameters[name]) for name, tensor in tensors.items()}


def _whole(tensor: Any) -> Any:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        return value.clone()  # the optimizer's count of steps, which it keeps on the CPU
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device, copy=True)
