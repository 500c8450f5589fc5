"""Conversion of published files to files of this library, and back."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_models.checkpoints.archive import describe_content, read_archive
from sr_models.checkpoints.detect import detect_model
from sr_models.checkpoints.files import (
    StoredWeights,
    create_stored,
    describe_file,
    read_weights,
    write_file,
)
from sr_models.checkpoints.plausible import create_without_memory
from sr_models.checkpoints.published import check_layout, encoder_layout, load_published, to_own, to_published
from sr_models.checkpoints.runs import is_checkpoint, weights_of_run
from sr_models.checkpoints.shipped import shipped_file
from sr_models.checkpoints.wrapped import plain_names, unwrap
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.files import write_bytes
from sr_models.io.listing import one_line
from sr_models.models.encoder import detect_encoder, is_encoder
from sr_models.models.publication import shapes_of
from sr_models.networks.rrdb import RRDBEncoder
from sr_models.registry import create, published_models

__all__ = ["convert_published", "model_of_published", "read_state_dict", "write_published"]


def convert_published(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    scale: int | None = None,
    blocks: Sequence[int] | None = None,
) -> str:
    """Convert weights of a flow, or of an RRDB encoder alone, to one file of this library.

    The source may be a published ``.pth`` file. Model, scale and sizes are read off names and shapes. Tensors keep
    their dtype and their bits. Those that are never evaluated are kept as well. The state dict may lie in an entry
    ``params_ema``, ``params`` or ``state_dict``, and may have the prefix ``module.`` or BasicSR's names.

    The source may also be anything that :func:`sr_models.checkpoints.files.load_model` takes: a training run, one of
    its checkpoints, a file of an earlier version with its JSON, or the name of a model that comes with this package.

    Args:
        source: the file or folder. Nothing but tensors and plain values is unpickled.
        output: ends in ``.safetensors``.
        model: a name, if it is to be checked.
        scale: if it is to be checked.
        blocks: the RRDB blocks whose outputs condition the flow, from 0, which a published file does not say; default:
            those of the preset with these sizes.

    Returns:
        A line for people that says what the file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, model or scale, or missing, unexpected or misshapen tensors, which are named.
    """
    stored = read_weights(source) if _is_own(source) else None
    state_dict = {} if stored else read_state_dict(source)
    try:
        if stored:
            description, tensors, found = _own_model(stored, model, blocks)
        elif is_encoder(shapes_of(state_dict)):
            description, tensors, found = _encoder_from_published(state_dict, model)
        else:
            description, tensors, found = _model_from_published(state_dict, model, blocks)
        file_scale = (description.get("encoder") or description["config"])["scale"]
        if scale not in (None, file_scale):
            raise ValueError(f"its scale is {file_scale}, not {scale}")
    except ValueError as error:
        raise ValueError(f"cannot convert {source}: {one_line(str(error))}") from error
    write_file(output, description, tensors)
    return found


def write_published(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> str:
    """Convert a file of this library to a published one.

    A file that was converted from a published one comes back bit for bit. In others, the tensors that are never
    evaluated are zero.

    Args:
        source: ends in ``.safetensors``, or is the folder of a training run or one of its checkpoints.
        output: ends in ``.pth``.

    Returns:
        A line for people that says what the file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read or whose tensors have several dtypes, or a model that the published
            implementations do not have.
    """
    output = Path(output)
    if output.suffix != ".pth":
        raise ValueError(f"a published file must end in .pth, got {output}")
    description, tensors, *_ = read_weights(source)
    try:
        if "encoder" in description:
            found, name = encoder_layout(_meta_encoder(description["encoder"])), "RRDB encoder"
            state_dict = {published: tensors[own or ""].reshape(shape) for published, (own, shape) in found.items()}
        else:
            like = create_without_memory(description, tensors)
            state_dict, name = to_published(like, tensors), like.name
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot convert {source}: {one_line(str(error))}") from error
    if len(dtypes := {tensor.dtype for tensor in state_dict.values()}) > 1:
        raise ValueError(f"cannot convert {source}: its tensors have several dtypes: {_names(dtypes)}")
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    write_bytes(output, buffer.getvalue())
    return f"{name} with {sum(map(torch.numel, state_dict.values())):,} parameters"


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict that ``torch.save`` wrote, without running anything that the file may contain.

    Returns:
        Tensors by published names, see :mod:`sr_models.checkpoints.wrapped`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything but a state dict of a super-resolution flow or an RRDB encoder, in one floating-point
            dtype.
    """
    content = read_archive(path)
    state_dict = unwrap(content)
    if not isinstance(state_dict, dict) or not any(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(f"cannot read {path}: it does not hold a state dict but {describe_content(content)}")
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ValueError(f"cannot read {path}: {name!r} is not a floating-point tensor")
    if len(dtypes := {tensor.dtype for tensor in state_dict.values()}) > 1:
        raise ValueError(f"cannot read {path}: its tensors have several dtypes: {_names(dtypes)}")
    state_dict = plain_names(state_dict)
    shapes = shapes_of(state_dict)
    prefixes = tuple({publication.prefix for _, publication in published_models()})
    if not is_encoder(shapes) and not any(name.startswith(prefixes) for name in shapes):
        raise ValueError(
            f"cannot read {path}: it holds neither a published super-resolution flow nor an RRDB encoder, "
            f"but {describe_content(state_dict)}"
        )
    return state_dict


def _is_own(source: str | os.PathLike[str]) -> bool:
    """Tell whether this library wrote the weights: those of a run, a model's file, or one that comes with it."""
    if weights_of_run(source) is not None or Path(source).suffix == ".safetensors":
        return True
    if not Path(source).exists() and shipped_file(source) is not None:
        return True
    return Path(source).suffix == ".ckpt" and is_checkpoint(read_archive(source))


def _own_model(
    stored: StoredWeights, model: str | None, blocks: Sequence[int] | None
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    if blocks is not None:
        raise ValueError("blocks is for published files only: this file says which blocks condition its flow")
    like = create_stored(stored)
    if model not in (None, like.name):
        raise ValueError(f"it holds {like.name}, not {model}")
    found = f"{like.name} at {like.scale}x with {_parameter_count(like):,} parameters"
    if stored.step is not None:
        found += f", after {stored.step:,} training steps"
    return stored.description, stored.tensors, found


def _names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(map(str, dtypes)))


def model_of_published(state_dict: Mapping[str, Tensor]) -> SuperResolutionFlow:
    """Build the model of a published state dict as :func:`convert_published` does, in evaluation mode.

    Args:
        state_dict: published names and tensors.

    Raises:
        ValueError: not a published model, or sizes of which no preset tells the rest.
    """
    name, fields, _ = detect_model(state_dict)
    model = create(name, **fields)
    load_published(model, state_dict)
    return model.eval()


def _model_from_published(
    state_dict: dict[str, Tensor], model: str | None, blocks: Sequence[int] | None
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    name, fields, preset = detect_model(state_dict, blocks)
    if model not in (None, name):
        raise ValueError(f"it holds {name}, not {model}")
    with torch.device("meta"):
        like = create(name, **fields)
    tensors = to_own(like, state_dict)
    found = f"{name} at {like.scale}x with {_parameter_count(like):,} parameters"
    if unused := sum(map(torch.numel, state_dict.values())) - _parameter_count(like):
        found += f", and {unused:,} that are never evaluated"
    if "stacked_blocks" not in fields:
        return describe_file(like), tensors, found
    blocks_found = ", ".join(map(str, fields["stacked_blocks"]))
    conditioning = (
        f"RRDB blocks {blocks_found} condition the flow" if blocks_found else "no RRDB block conditions the flow"
    )
    if preset:
        conditioning += f" as in the preset {preset!r}: the file does not say"
    return describe_file(like), tensors, f"{found}; {conditioning}"


def _encoder_from_published(
    state_dict: dict[str, Tensor], model: str | None
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    if model is not None:
        raise ValueError(f"it holds an RRDB encoder only, not {model}")
    fields = detect_encoder(shapes_of(state_dict))
    encoder = _meta_encoder(fields)
    layout = encoder_layout(encoder)
    check_layout(state_dict, layout, "the state dict")
    tensors = {own: state_dict[name] for name, (own, _) in layout.items() if own is not None}
    return (
        {"encoder": fields},
        tensors,
        f"RRDB encoder at {fields['scale']}x with {_parameter_count(encoder):,} parameters",
    )


def _meta_encoder(fields: dict[str, int]) -> RRDBEncoder:
    with torch.device("meta"):
        return RRDBEncoder(**fields, stacked_blocks=())


def _parameter_count(module: SuperResolutionFlow | RRDBEncoder) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
