"""Weights in the folder of a training run, which may still be going on.

``RUN/model.safetensors`` appears when the run ends. Until then ``RUN/checkpoints`` holds ``last.ckpt`` and the one
before it, ``previous.ckpt``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sr_models.checkpoints.archive import describe_content, is_state_dict, read_archive
from sr_models.io.json_text import parse_json

__all__ = ["CheckpointWeights", "checkpoint_weights", "is_checkpoint", "read_checkpoint", "weights_of_run"]

#: The format that this version reads and writes.
_FORMAT = 1
#: Entries of every checkpoint.
_ENTRIES = {"format", "step", "description", "model"}


class CheckpointWeights(NamedTuple):
    """Weights of a checkpoint, with the averaged ones in place of those that the last step left.

    Attributes:
        description: content of a model's JSON file.
        tensors: state dict of the model.
        step: number of training steps that are done.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor]
    step: int


def weights_of_run(path: str | os.PathLike[str]) -> list[Path] | None:
    """List the files that may hold the weights of a run, the best one first.

    Args:
        path: the folder of a run, or a name in it without suffix: ``RUN/last``, ``RUN/previous``, ``RUN/best``.

    Returns:
        Existing files. ``None`` if ``path`` is a file, or neither exists nor names a file of a run.

    Raises:
        FileNotFoundError: a folder without weights.
    """
    path = Path(path)
    if path.is_file():
        return None
    if not path.is_dir():
        named = (path.with_name(f"{path.name}.safetensors"), path.parent / "checkpoints" / f"{path.name}.ckpt")
        return [file for file in named if file.is_file()][:1] or None
    model = path / "model.safetensors"
    checkpoints = [path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]
    # a run that ended and goes on with more steps writes newer checkpoints
    found = [*checkpoints, model] if _time(checkpoints[0]) > _time(model) else [model, *checkpoints]
    if not (found := [file for file in found if file.is_file()]):
        raise FileNotFoundError(
            f"folder {path} holds no model: neither model.safetensors nor checkpoints/last.ckpt, "
            "which a run writes with its first checkpoint"
        )
    return found


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else -1


def is_checkpoint(content: Any) -> bool:
    """Tell whether the content of a file is that of a training run's checkpoint."""
    return isinstance(content, Mapping) and content.keys() >= _ENTRIES


def read_checkpoint(path: str | os.PathLike[str]) -> CheckpointWeights:
    """Read the weights in a training run's checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, another kind of file, or one of a later version.
    """
    return checkpoint_weights(path, read_archive(path))


def checkpoint_weights(path: str | os.PathLike[str], content: Any) -> CheckpointWeights:
    """Take the weights out of a checkpoint that was read.

    Args:
        path: the file, for messages.
        content: what it holds.

    Raises:
        ValueError: not the content of a checkpoint, or of one of a later version.
    """
    if not is_checkpoint(content):
        raise ValueError(
            f"cannot read {path}: it is no checkpoint of a training run, it holds {describe_content(content)}"
        )
    if content["format"] != _FORMAT:
        raise ValueError(f"cannot read {path}: its format is {content['format']!r}, this version reads {_FORMAT}")
    model, average, step = content["model"], content.get("average") or {}, content["step"]
    try:
        description = parse_json(content["description"])
    except (TypeError, ValueError):
        description = None
    if not isinstance(description, dict) or not isinstance(step, int) or not is_state_dict(model):
        raise ValueError(f"cannot read {path}: its description, step or model is damaged")
    if average and not is_state_dict(average):
        raise ValueError(f"cannot read {path}: its average holds {describe_content(average)}")
    for name, tensor in average.items():
        if name not in model or model[name].shape != tensor.shape:
            raise ValueError(f"cannot read {path}: its average holds {name}, which does not fit its model")
    return CheckpointWeights(description, {**model, **average}, step)
