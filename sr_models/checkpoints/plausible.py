"""Models of descriptions in files; one of far more values or parts than its file holds is refused at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from sr_models.flow.model import SuperResolutionFlow
from sr_models.registry import create

__all__ = ["create_stored_model", "create_without_memory"]

#: A model may have this many values more than its file: loading it then names the tensors that do not fit.
_SPARE = 2**24
#: Modules, parameters and buffers that a model may register for every tensor of its file, and besides: some are
#: replaced while it is made. Ten thousand take a second.
_FOR_EACH, _BESIDES = 20, 10_000


def create_stored_model(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SuperResolutionFlow:
    """Create the described model with fresh weights, if the description could be that of these tensors.

    A description of a far larger model is refused as soon as the model has too many values or parts. That takes about
    a second, whatever the numbers in the description.

    Args:
        description: name and config of a model.
        tensors: those of its file.

    Raises:
        ValueError: a model with far more values or parts than there are tensors for, or one that cannot be made.
        KeyError: no name or no config.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    try:
        with _limited(held, len(tensors)):
            model = create(description["model"], **description["config"])
    except NotImplementedError:
        raise
    except (ArithmeticError, RuntimeError, TypeError) as error:
        # torch's own messages about sizes have many lines
        raise ValueError(str(error).strip().partition("\n")[0]) from error
    _check_values(sum(tensor.numel() for tensor in model.state_dict().values()), held)
    return model


def create_without_memory(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SuperResolutionFlow:
    """Create the described model on the meta device, as :func:`create_stored_model` does.

    A model of another package that needs memory to be made gets it.
    """
    try:
        with torch.device("meta"):
            return create_stored_model(description, tensors)
    except NotImplementedError:
        return create_stored_model(description, tensors)


@contextmanager
def _limited(held: int, count: int) -> Iterator[None]:
    """Stop the creation of a model, in this thread, that registers too many values or parts."""
    thread, most = threading.get_ident(), _BESIDES + _FOR_EACH * count
    parts = values = 0

    def look(module: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        nonlocal parts, values
        if threading.get_ident() != thread:
            return
        parts += 1
        if parts > most:
            raise ValueError(f"its description is that of a model of more than {most:,} parts, it has {count} tensors")
        if isinstance(part, Tensor):
            values += part.numel()
            # a parameter may be registered anew, as parametrizations do
            _check_values(values // 2, held)

    with ExitStack() as stack:
        for register in (
            register_module_buffer_registration_hook,
            register_module_module_registration_hook,
            register_module_parameter_registration_hook,
        ):
            stack.callback(register(look).remove)
        yield


def _check_values(wanted: int, held: int) -> None:
    if wanted > held + _SPARE:
        raise ValueError(f"its description is that of a model of {wanted:,} values or more, its tensors have {held:,}")
