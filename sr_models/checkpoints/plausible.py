"""Models of descriptions without memory; those that ask for far more than their file holds are refused before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sr_models.flow.model import SuperResolutionFlow
from sr_models.registry import create

__all__ = ["create_without_memory"]

#: Whole numbers up to here are always believed: a model of a thousand blocks without memory is made in seconds.
_ALWAYS = 1000
#: A model may have this many values more than its file: loading it then names the tensors that do not fit.
_SPARE = 2**24


def create_without_memory(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SuperResolutionFlow:
    """Create the described model on the meta device, if the description could be that of these tensors.

    Args:
        description: name and config of a model.
        tensors: those of its file.

    Raises:
        ValueError: a whole number beyond the sizes and the count of the tensors, or a model with far more values than
            theirs.
    """
    largest = max([_ALWAYS, len(tensors), *(size for tensor in tensors.values() for size in tensor.shape)])
    for name, number in _whole_numbers(description, "description"):
        if abs(number) > largest:
            digits = f"{number}" if abs(number) < 10**18 else "more than 18 digits"
            raise ValueError(f"{name} must be at most {largest} with the tensors of this file, got {digits}")
    try:
        with torch.device("meta"):
            model = create(description["model"], **description["config"])
    except NotImplementedError:
        # a model of another package that needs memory to be made
        return create(description["model"], **description["config"])
    wanted = sum(tensor.numel() for tensor in model.state_dict().values())
    held = sum(tensor.numel() for tensor in tensors.values())
    if wanted > held + _SPARE:
        raise ValueError(f"its description is that of a model of {wanted:,} values, its tensors have {held:,}")
    return model


def _whole_numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, int):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _whole_numbers(entry, str(key))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _whole_numbers(entry, name)
