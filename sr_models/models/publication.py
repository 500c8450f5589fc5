"""Description of a model's published files and options, which the model itself gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sr_models.flow.model import SuperResolutionFlow

__all__ = ["Detection", "Publication", "Shapes", "find_convolution", "has_part", "read_number", "shapes_of"]

#: Names and shapes of the tensors of a file.
Shapes = Mapping[str, tuple[int, ...]]
#: Recognises the file of a model: fields that only its config has, or ``None`` for the file of another model.
Detection = Callable[[Shapes], Mapping[str, Any] | None]


def _no_fields(_: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _no_tensors(_: SuperResolutionFlow) -> dict[str, Tensor]:
    return {}


def _every_config(_: Any) -> bool:
    return True


@dataclass(frozen=True)
class Publication:
    """Publication of one model: the differences of its files and options to those of the other published flows.

    :mod:`sr_models.checkpoints.published` knows everything that they share: the encoder, the numbering of layers, and
    the options for the fields of :class:`sr_models.models.config.FlowConfig`. The model's config must have these.
    With a ``naming``, files and options are of another kind: ``detect`` and ``read_options`` then return every field of
    the config.

    Attributes:
        model: the option ``model`` of published options files.
        detect: returns the fields of the config that only this model has, read off names and shapes of a published
            file; ``None`` for the file of another model. The last of
            :func:`sr_models.registry.published_models` is asked first.
        read_options: returns the same fields, read from a published options file. A ``KeyError`` names a missing entry.
        covers: tells whether the published implementation has the architecture of a config.
        names: prefixes of parameters within a layer, and the published prefixes that replace them.
        unevaluated: returns the tensors that published files have and the model does not evaluate, by the names that
            the model would give them.
        not_in_file: fields of the config that no file tells, and in words what they decide.
        naming: ``naming(name, layers_before)`` returns the published name of one of the model's parameters, from the
            number of layers in the levels before each. Files are then in the order of the model's own parameters.
        constants: published names and tensors that every file of a model holds, and that are no parameters here.
        prefix: beginning of names in its files that no other kind of file has.
    """

    model: str
    detect: Detection
    read_options: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _no_fields
    covers: Callable[[Any], bool] = _every_config
    names: Mapping[str, str] = field(default_factory=dict)
    unevaluated: Callable[[SuperResolutionFlow], Mapping[str, Tensor]] = _no_tensors
    not_in_file: Mapping[str, str] = field(default_factory=dict)
    naming: Callable[[str, Sequence[int]], str] | None = None
    constants: Callable[[SuperResolutionFlow], Mapping[str, Tensor]] = _no_tensors
    prefix: str = "flowUpsamplerNet."


def has_part(part: str) -> Detection:
    """Return a detection by a part of a name that no other model's file has, for a model without fields of its own."""
    return lambda shapes: {} if any(part in name for name in shapes) else None


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def find_convolution(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    """Return the shape (out, in, height, width) of the first convolution whose name matches the regular expression.

    Raises:
        ValueError: no such convolution.
    """
    for name, shape in shapes.items():
        if re.fullmatch(pattern, name) and len(shape) == 4:
            return shape
    name = re.sub(r"\.\*|\\|\?", "", pattern)
    raise ValueError(f"not a published super-resolution flow: it has no convolution {name}")


def read_number(
    entries: Mapping[str, Any], name: str, kind: Callable[[Any], Any] = int, default: float | None = None
) -> Any:
    """Return a number of a published options file.

    Args:
        entries: the section of the file.
        name: the entry.
        kind: ``int`` or ``float``.
        default: the number if there is no such entry; ``None``: there must be one.

    Raises:
        KeyError: no such entry.
        ValueError: anything but a number.
    """
    value = entries[name] if default is None else entries.get(name, default)
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"options: {name} must be a number, got {value!r}") from None
