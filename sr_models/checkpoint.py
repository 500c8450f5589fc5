"""Models on disk: ``NAME.safetensors`` holds the tensors, ``NAME.json`` beside it says which model they belong to."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sr_models.model import SuperResolutionFlow
from sr_models.registry import create

__all__ = ["load_model", "save_model", "write_bytes", "write_text"]


def save_model(model: SuperResolutionFlow, path: str | os.PathLike[str]) -> None:
    """Write a model made by :func:`sr_models.create`, both files atomically.

    Args:
        model: the model.
        path: ends in ``.safetensors``.

    Raises:
        ValueError: another suffix.
    """
    path = _check_suffix(path)
    description = {"model": model.name, "config": dataclasses.asdict(model.config)}
    write_text(path.with_suffix(".json"), json.dumps(description, indent=2))
    # not safetensors' own save_file, which is not atomic and hides the file from other users
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def load_model(path: str | os.PathLike[str]) -> SuperResolutionFlow:
    """Read a model written by :func:`save_model`, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: files that cannot be read, or that do not fit each other.
    """
    path = _check_suffix(path)
    config_path = path.with_suffix(".json")
    for file in (path, config_path):
        if not file.is_file():
            raise FileNotFoundError(f"model file {file} does not exist")
    try:
        description: dict[str, Any] = json.loads(config_path.read_text())
        fields = dict(description["config"])
        model = create(description["model"], scale=fields.pop("scale"), **fields)
        model.load_state_dict(load_file(path))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
        raise ValueError(f"cannot load model {path}: {reason}") from error
    return model.eval()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: it appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a model file must end in .safetensors, got {path}")
    return path
