"""Models on disk: ``NAME.safetensors`` holds the tensors, and says in its metadata which model they belong to.

Tools that hand over tensors alone find the same description as a tensor of bytes. Files of earlier versions have it in
``NAME.json`` beside them. A run that goes on has its weights in a checkpoint, ``last.ckpt``. Models are read from there
as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sr_models.checkpoints.plausible import create_stored_model
from sr_models.checkpoints.runs import read_checkpoint, weights_of_run
from sr_models.checkpoints.shipped import shipped_file, shipped_models
from sr_models.flow.latents import TEMPERATURE, temperatures_of
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.files import write_bytes
from sr_models.io.json_text import parse_json
from sr_models.io.listing import one_line
from sr_models.networks.rrdb import RRDBEncoder
from sr_models.registry import create

__all__ = [
    "UNUSED",
    "StoredWeights",
    "create_described",
    "create_stored",
    "describe_file",
    "description_in",
    "evaluated_tensors",
    "load",
    "load_encoder",
    "load_model",
    "read_file",
    "read_weights",
    "save_model",
    "weights_fingerprint",
    "write_file",
]

#: Prefix of the names of tensors that belong to no part of the model. A converted file keeps them for the way back.
UNUSED = "unused."
#: Name of the description in a file's metadata, and of the tensor that holds its UTF-8 bytes.
_DESCRIPTION = "sr_models.description"

_logger = logging.getLogger(__name__)


class StoredWeights(NamedTuple):
    """Weights of a model on disk.

    Attributes:
        description: which model the tensors belong to, see :func:`describe_file`.
        tensors: tensors by name, all of them finite.
        file: the file that holds them.
        step: number of training steps that are done, if the file is a checkpoint.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor]
    file: Path
    step: int | None = None


def save_model(model: SuperResolutionFlow, path: str | os.PathLike[str]) -> None:
    """Write a model made by :func:`sr_models.create` to one file, atomically.

    Args:
        model: the model.
        path: ends in ``.safetensors``.

    Raises:
        ValueError: another suffix.
    """
    write_file(path, describe_file(model), model.state_dict())


def describe_file(model: SuperResolutionFlow) -> dict[str, Any]:
    """Describe a model as its file does: name, config, and the temperature if it is not the usual one."""
    description: dict[str, Any] = {"model": model.name, "config": dataclasses.asdict(model.config)}
    if model.temperature != TEMPERATURE:
        description["temperature"] = model.temperature
    return description


def load_model(path: str | os.PathLike[str]) -> SuperResolutionFlow:
    """Read a model, in evaluation mode, on the CPU, in the dtype of the file.

    Of a checkpoint the averaged weights are taken, if it has them.

    Args:
        path: a file that :func:`save_model` wrote, the folder of a training run, or a checkpoint in it
            (``RUN/checkpoints/last.ckpt``, in short ``RUN/last``). A folder stands for ``model.safetensors`` if the run
            has ended, else for the newest checkpoint that can be read. A log message names the files that cannot. The
            name of a model that comes with this package stands for its weights, in float32.

    Raises:
        FileNotFoundError: a file is missing, or a folder holds no weights.
        ValueError: files that cannot be read, that do not fit each other, or whose values are not finite.
    """
    return create_stored(read_weights(path))


def load(name: str) -> SuperResolutionFlow:
    """Load a model that comes with this package: ``load("srflow-da-tiny")``, ready to sample, on the CPU, in float32.

    Args:
        name: one of :func:`sr_models.checkpoints.shipped.shipped_models`. :func:`load_model` reads other files.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    file = shipped_file(name)
    if file is None:
        raise ValueError(f"name must be one of {', '.join(map(repr, shipped_models()))}, got {name!r}")
    return load_model(file).float()


def create_stored(stored: StoredWeights) -> SuperResolutionFlow:
    """Create the model of stored weights, in evaluation mode, on the CPU, in their dtype.

    Raises:
        ValueError: weights of an encoder alone, or that do not fit their description.
    """
    if "encoder" in stored.description:
        raise ValueError(f"cannot load model {stored.file}: it holds an encoder only")
    try:
        model = create_stored_model(stored.description, stored.tensors)
        dtype = next((tensor.dtype for tensor in stored.tensors.values() if tensor.is_floating_point()), torch.float32)
        model.to(dtype).load_state_dict(evaluated_tensors(stored.tensors))
        temperature = stored.description.get("temperature", TEMPERATURE)
        temperatures_of(temperature, 1)
        model.temperature = float(temperature)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot load model {stored.file}: {_reason(error)}") from error
    return model.eval()


def read_weights(path: str | os.PathLike[str], *, beside: Path | None = None) -> StoredWeights:
    """Read the weights that ``path`` stands for, see :func:`load_model`.

    Args:
        path: see there.
        beside: as for :func:`read_file`, if ``path`` is a file.

    Raises:
        FileNotFoundError: a file is missing, or a folder holds no weights.
        ValueError: files that cannot be read, or whose values are not finite.
    """
    files = weights_of_run(path) or [Path(path)]
    if not files[0].exists() and (shipped := shipped_file(path)):
        stored = _read_one(shipped)
        return stored._replace(tensors={name: _single(tensor) for name, tensor in stored.tensors.items()})
    if len(files) == 1:
        return _read_one(files[0], beside)
    errors: list[str] = []
    for file in files:
        try:
            stored = _read_one(file)
        except (FileNotFoundError, ValueError) as error:
            errors.append(str(error))
            continue
        for line in errors:
            _logger.warning("%s; %s takes its place", line, file)
        return stored
    raise ValueError("; ".join(errors))


def _single(tensor: Tensor) -> Tensor:
    """Return what is in half precision to save space in the precision for computing."""
    return tensor.float() if tensor.dtype is torch.float16 else tensor


def _read_one(path: Path, beside: Path | None = None) -> StoredWeights:
    if path.suffix == ".ckpt":
        description, tensors, step = read_checkpoint(path)
        stored = StoredWeights(description, tensors, path, step)
    elif path.suffix or path.is_file():
        stored = StoredWeights(*read_file(path, beside=beside), path)
    else:
        raise FileNotFoundError(
            f"model {path} does not exist, neither as a file nor as the folder of a run; "
            f"models that come with this package: {', '.join(shipped_models())}"
        )
    _check_finite(f"model {path}", evaluated_tensors(stored.tensors))
    return stored


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
            raise ValueError(f"cannot load {file}: {one_line(name)} holds values that are not finite")


def create_described(description: dict[str, Any]) -> SuperResolutionFlow:
    """Create a model with fresh weights from the description in a file."""
    return create(description["model"], **description["config"])


def weights_fingerprint(model: nn.Module) -> str:
    """Hash names and values of a model's tensors to 32 hexadecimal digits; the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def write_file(path: str | os.PathLike[str], description: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write tensors and what describes them to one file, atomically.

    A file of an earlier version that is replaced leaves its JSON behind, which is not read any more.

    Args:
        path: the file; its name must end in ``.safetensors``.
        description: which model the tensors belong to: values that JSON has.
        tensors: tensors by name.

    Raises:
        ValueError: ``path`` does not end in ``.safetensors``.
    """
    path = _check_suffix(path)
    text = json.dumps(description)
    held = {name: tensor.contiguous() for name, tensor in tensors.items()}
    held[_DESCRIPTION] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    # not safetensors' own save_file, which is not atomic and hides the file from other users
    write_bytes(path, save(held, metadata={"format": "pt", _DESCRIPTION: text}))


def read_file(path: str | os.PathLike[str], *, beside: Path | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the description and the tensors of a file that :func:`write_file` wrote, or of a pair of earlier versions.

    Args:
        path: the file.
        beside: JSON that describes a file without a description; default: the file of the same name, as in pairs.

    Raises:
        FileNotFoundError: the file is missing, or has no description, and the JSON beside it is missing too.
        ValueError: files that cannot be read.
    """
    path = _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"model file {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_DESCRIPTION)
            tensors = {name: file.get_tensor(name) for name in file.keys() if name != _DESCRIPTION}  # noqa: SIM118
        if text is not None:
            return _parsed(text, path.name), tensors
        beside = beside or path.with_suffix(".json")
        if not beside.is_file():
            raise FileNotFoundError(f"model file {beside} does not exist, and {path.name} has no description")
        return _parsed(beside.read_text(), beside.name), tensors
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"cannot load model {path}: {_reason(error)}") from error


def description_in(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the description among the tensors of a file, where its metadata is out of reach; ``None``: there is none.

    Args:
        tensors: all tensors of the file, by name.

    Raises:
        ValueError: a description that is damaged.
    """
    held = tensors.get(_DESCRIPTION)
    return None if held is None else _parsed(bytes(held.cpu().tolist()).decode(), _DESCRIPTION)


def evaluated_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the model: those of a file without its description and what is unused."""
    return {name: tensor for name, tensor in tensors.items() if name != _DESCRIPTION and not name.startswith(UNUSED)}


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        description = parse_json(text)
    except ValueError as error:
        raise ValueError(f"description in {name}: {error}") from error
    if not isinstance(description, dict):
        raise ValueError(f"{name} does not describe a model")
    return description


def _reason(error: Exception) -> str:
    return str(error).splitlines()[-1].strip() if str(error) else type(error).__name__


def _check_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        hint = "; sr-models convert makes one of a published .pth" if path.suffix == ".pth" else ""
        raise ValueError(f"a model file must end in .safetensors, got {path}{hint}")
    return path
