"""Models on disk: ``NAME.safetensors`` holds the tensors, ``NAME.json`` beside it says which model they belong to."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.files import write_bytes, write_text
from sr_models.networks.rrdb import RRDBEncoder
from sr_models.registry import create

__all__ = [
    "UNUSED",
    "create_described",
    "describe_file",
    "load_encoder",
    "load_model",
    "read_file",
    "save_model",
    "write_file",
]

#: Prefix of the names of tensors that belong to no part of the model. A converted file keeps them for the way back.
UNUSED = "unused."


def save_model(model: SuperResolutionFlow, path: str | os.PathLike[str]) -> None:
    """Write a model made by :func:`sr_models.create`, both files atomically.

    Args:
        model: the model.
        path: ends in ``.safetensors``.

    Raises:
        ValueError: another suffix.
    """
    write_file(path, describe_file(model), model.state_dict())


def describe_file(model: SuperResolutionFlow) -> dict[str, Any]:
    """Describe a model as its JSON file does: name and config."""
    return {"model": model.name, "config": dataclasses.asdict(model.config)}


def load_model(path: str | os.PathLike[str]) -> SuperResolutionFlow:
    """Read a model written by :func:`save_model`, in evaluation mode, on the CPU, in the dtype of the file.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: files that cannot be read, or that do not fit each other.
    """
    description, tensors = read_file(path)
    if "encoder" in description:
        raise ValueError(f"cannot load model {path}: it holds an encoder only")
    try:
        model = create_described(description)
        dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
        model.to(dtype).load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot load model {path}: {_reason(error)}") from error
    _check_finite(f"model {path}", tensors)
    return model.eval()


def load_encoder(path: str | os.PathLike[str], encoder: RRDBEncoder) -> None:
    """Load a converted file that holds an encoder alone into the encoder of a model.

    Args:
        path: the file, which ends in ``.safetensors``.
        encoder: an encoder of the same sizes.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: files that cannot be read or hold something else, an encoder of other sizes, or values that are not
            finite.
    """
    description, tensors = read_file(path)
    if "encoder" not in description:
        raise ValueError(f"cannot load encoder {path}: it does not hold an encoder alone")
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"cannot load encoder {path}: {_reason(error)}") from error
    _check_finite(f"encoder {path}", tensors)


def _check_finite(file: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"cannot load {file}: {name} holds values that are not finite")


def create_described(description: dict[str, Any]) -> SuperResolutionFlow:
    """Create a model with fresh weights from the description in a JSON file."""
    fields = dict(description["config"])
    return create(description["model"], scale=fields.pop("scale"), **fields)


def write_file(path: str | os.PathLike[str], description: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write tensors and, beside them, the JSON that describes them, both atomically.

    Args:
        path: the file of tensors; its name must end in ``.safetensors``.
        description: content of the JSON.
        tensors: tensors by name.

    Raises:
        ValueError: ``path`` does not end in ``.safetensors``.
    """
    path = _check_suffix(path)
    # not safetensors' own save_file, which is not atomic and hides the file from other users
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    write_text(path.with_suffix(".json"), json.dumps(description, indent=2))


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the description and the tensors that :func:`write_file` wrote.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: files that cannot be read.
    """
    path = _check_suffix(path)
    config_path = path.with_suffix(".json")
    for file in (path, config_path):
        if not file.is_file():
            raise FileNotFoundError(f"model file {file} does not exist")
    try:
        description = json.loads(config_path.read_text())
        if not isinstance(description, dict):
            raise ValueError(f"{config_path.name} does not describe a model")
        return description, load_file(path)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"cannot load model {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[-1].strip() if str(error) else type(error).__name__


def _check_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        hint = "; sr-models convert makes one of a published .pth" if path.suffix == ".pth" else ""
        raise ValueError(f"a model file must end in .safetensors, got {path}{hint}")
    return path


def load_initial_weights(model, path):
    raise NotImplementedError
