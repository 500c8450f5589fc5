"""Weights that training starts from instead of random ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invflow import ActNorm
from sr_models.checkpoints.convert import read_state_dict
from sr_models.checkpoints.detect import told_by
from sr_models.checkpoints.files import StoredWeights, evaluated_tensors, read_weights
from sr_models.checkpoints.plausible import create_without_memory
from sr_models.checkpoints.published import to_own
from sr_models.checkpoints.runs import weights_of_run
from sr_models.checkpoints.shipped import shipped_file
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.listing import one_line
from sr_models.models.encoder import is_encoder
from sr_models.models.publication import shapes_of
from sr_models.registry import config_of, get_plugin

__all__ = ["load_initial_weights"]

#: Files that this library writes. Others are published ones.
_OWN = (".safetensors", ".ckpt")


def load_initial_weights(model: SuperResolutionFlow, path: str | os.PathLike[str]) -> str:
    """Load weights of an earlier training into a model of the same name and sizes.

    The actnorms then count as initialised. If none of the file's is, its flow has not begun to learn. They stay fresh
    then, and initialise from the first batch.

    Args:
        model: receives the weights, in its own dtype and on its device; unchanged if there is an error.
        path: ``model.safetensors``, the folder of a run or a checkpoint in it, as for
            :func:`sr_models.checkpoints.files.load_model`, the name of a model that comes with this package, or a
            published ``.pth`` file.

    Returns:
        A line for people: the file that was read, and the number of its training steps if it is a checkpoint.

    Raises:
        FileNotFoundError: no such file, or a folder without weights.
        ValueError: a file that cannot be read, of another model or other sizes, of an encoder alone, or with values
            that are not finite in the dtype of the model.
    """
    own = weights_of_run(path) is not None or Path(path).suffix in _OWN
    own = own or (shipped_file(path) is not None and not Path(path).exists())
    stored = read_weights(path) if own else StoredWeights({}, read_state_dict(path), Path(path))
    if "encoder" in stored.description or is_encoder(shapes_of(stored.tensors)):
        hint = "give it to encoder" if own else "convert it with sr-models convert and give it to encoder"
        raise ValueError(f"cannot start from {stored.file}: it holds an encoder only; {hint}")
    try:
        tensors = _own_tensors(model, stored) if own else _published_tensors(model, stored.tensors)
        _check_tensors(model, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot start from {stored.file}: {one_line(str(error))}") from error
    begun = any(bool(tensors[name]) for name in _flags(model))
    if begun:
        tensors |= {name: torch.ones_like(tensors[name]) for name in _flags(model)}
    model.load_state_dict(tensors)
    after = "" if stored.step is None else f" after {stored.step:,} training steps"
    return f"starts from {stored.file}{after}{'' if begun else ', whose flow has not begun to learn'}"


def _own_tensors(model: SuperResolutionFlow, stored: StoredWeights) -> dict[str, Tensor]:
    like = create_without_memory(stored.description, stored.tensors)
    _check_config(model, like.name, dataclasses.asdict(like.config))
    return evaluated_tensors(stored.tensors)


def _published_tensors(model: SuperResolutionFlow, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    _check_config(model, *told_by(state_dict))
    return evaluated_tensors(to_own(model, state_dict))


def _check_config(model: SuperResolutionFlow, name: str, config: Mapping[str, Any]) -> None:
    """Compare what a file tells of its model; numbers that are no sizes, as the strength of noise, may differ."""
    if name != model.name:
        raise ValueError(f"it holds {name}, not {model.name}")
    own = dataclasses.asdict(model.config)
    differing = [field for field, value in config.items() if value != own[field] and not isinstance(value, float)]
    if differing:
        preset = _preset_of(name, config)
        listed = ", ".join(f"{field} {config[field]!r}, not {own[field]!r}" for field in differing)
        raise ValueError(f"its model has other sizes{f', those of preset {preset!r}' if preset else ''}: {listed}")


def _preset_of(name: str, config: Mapping[str, Any]) -> str | None:
    """Return the preset that has these sizes, if there is one."""
    for preset, scales in get_plugin(name).presets.items():
        if config["scale"] in scales:
            its = dataclasses.asdict(config_of(name, scale=config["scale"], preset=preset))
            if all(value == its[field] or isinstance(value, float) for field, value in config.items()):
                return preset
    return None


def _check_tensors(model: SuperResolutionFlow, tensors: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    if missing := [name for name in expected if name not in tensors]:
        raise ValueError(f"it lacks {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"its {name} is no part of the model")
        if tensor.shape != expected[name].shape:
            raise ValueError(f"its {name} has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
        if not bool(tensor.to(expected[name].dtype).isfinite().all()):
            raise ValueError(f"its {name} holds values that are not finite in {expected[name].dtype}")


def _flags(model: SuperResolutionFlow) -> list[str]:
    return [f"{prefix}.initialized" for prefix, module in model.named_modules() if isinstance(module, ActNorm)]
