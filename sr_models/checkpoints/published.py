"""State dicts of the published implementations, translated to and from the names of this library.

The published layout numbers the layers of all levels in one list and stores actnorms as (1, C, 1, 1). Its files also
carry tensors that are never evaluated: one convolution (``flowUpsamplerNet.f``) and those that a model names itself
(:class:`sr_models.models.publication.Publication`). They are kept beside the model's own tensors so that a file can be
given back as it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invflow import ActNorm
from sr_models.checkpoints.files import UNUSED, evaluated_tensors
from sr_models.flow.model import SuperResolutionFlow
from sr_models.models.config import check_steps
from sr_models.models.encoder import published_encoder_name
from sr_models.models.publication import Publication, read_number
from sr_models.registry import config_of, create, get_plugin, published_models

__all__ = [
    "check_layout",
    "config_of_options",
    "encoder_layout",
    "from_published",
    "load_published",
    "published_layout",
    "published_name",
    "published_part",
    "to_own",
    "to_published",
    "without_module",
]

#: Output channels of the published convolution that is never evaluated.
_DEAD_CHANNELS = 96
#: Its input channels, for the level's own features and for every stacked block, whatever the width of the encoder.
_DEAD_FEATURES = 64

#: Prefixes of parameters within a layer, and the published prefixes.
_NAMES = {
    "conv1x1.": "invconv.",
    "injector.net.": "affine.fFeatures.",
    "coupling.net.": "affine.fAffine.",
    "net.": "conv.",
}
#: Parts of a network inside a coupling or an injector, as suffixes of its published name.
_NETWORK_PARTS = {"layers": "", "first": "1", "body": "2", "last": "3"}
#: The order of a published layer's parts; those of single models follow.
_ORDER = ("actnorm", "invconv", "conv", "affine.fAffine", "affine.fFeatures")

#: Published name -> our name, or ``None`` if we have no such tensor, and published shape.
Layout = dict[str, tuple[str | None, tuple[int, ...]]]


def published_name(name: str, layers_before: Iterable[int] = (), names: Mapping[str, str] | None = None) -> str:
    """Return the published name of one of a model's parameters.

    Args:
        name: its name in this library.
        layers_before: for every level, the number of layers in the levels before it.
        names: prefixes within a layer that only this model has, see :class:`Publication`.
    """
    if name.startswith("encoder."):
        return "RRDB." + published_encoder_name(name.removeprefix("encoder."))
    match = re.match(r"levels\.(\d+)\.layers\.(\d+)\.", name)
    if match is None:
        return name
    number = list(layers_before)[int(match[1])] + int(match[2])
    return f"flowUpsamplerNet.layers.{number}.{published_part(name[match.end() :], names)}"


def published_part(name: str, names: Mapping[str, str] | None = None) -> str:
    """Return the published name of a parameter within its layer; ``names`` as for :func:`published_name`."""
    for own, published in (*(names or {}).items(), *_NAMES.items()):
        if name.startswith(own):
            name = published + name.removeprefix(own)
    if (match := re.match(r"(affine\.\w+)\.(\w+)\.", name)) and match[2] in _NETWORK_PARTS:
        name = f"{match[1]}{_NETWORK_PARTS[match[2]]}.{name[match.end() :]}"
    return re.sub(r"\.log_scale$", ".logs", name)


def published_layout(model: SuperResolutionFlow) -> Layout:
    """List all tensors of the published file of a model, in the file's order.

    Args:
        model: a model of the same architecture; may be on the meta device.

    Raises:
        ValueError: a model that the published implementations do not have.
    """
    publication = _publication_of(model)
    before = [sum(map(len, model._levels()[:level])) for level in range(len(model.levels))]
    if publication.naming is not None:
        found: Layout = {}
        for own, tensor in model.state_dict().items():
            if not own.endswith(".initialized"):
                name = publication.naming(own, before)
                found[name] = own, _published_shape(name, tensor)
        found |= {name: (None, tuple(tensor.shape)) for name, tensor in publication.constants(model).items()}
        return dict(sorted(found.items(), key=lambda item: _number(item[0])))
    assert model.encoder is not None
    layout: Layout = {}
    for evaluated, tensors in ((True, model.state_dict()), (False, publication.unevaluated(model))):
        for own, tensor in tensors.items():
            if not own.endswith(".initialized"):
                name = published_name(own, before, publication.names)
                layout[name] = own if evaluated else None, _published_shape(name, tensor)
    inputs = _DEAD_FEATURES * (1 + len(model.encoder.stacked_blocks))
    layout["flowUpsamplerNet.f.0.weight"] = None, (_DEAD_CHANNELS, inputs, 3, 3)
    layout["flowUpsamplerNet.f.0.bias"] = None, (_DEAD_CHANNELS,)
    return dict(sorted(layout.items(), key=lambda item: _position(item[0])))


def _publication_of(model: SuperResolutionFlow) -> Publication:
    publication = get_plugin(model.name).published
    if publication is None or model.base != "none" or not publication.covers(model.config):
        raise ValueError(f"the published implementations have no {model.name} like this one")
    return publication


def encoder_layout(encoder: nn.Module) -> Layout:
    """List all tensors of the published file of an encoder alone, in the file's order."""
    return {published_encoder_name(name): (name, tuple(tensor.shape)) for name, tensor in encoder.state_dict().items()}


def _published_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    if ".actnorm." in name:
        return (1, *tensor.shape, 1, 1)
    return (*tensor.shape, 1, 1) if name.endswith(".logs") else tuple(tensor.shape)


def _position(name: str) -> tuple[int, int, int]:
    """Sort key of names in a published file: the encoder, the layers with their parts in order, the unused one."""
    match = re.match(r"flowUpsamplerNet\.layers\.(\d+)\.(affine\.[a-zA-Z_]+|\w+)", name)
    if match is None:
        return (0, 0, 0) if name.startswith("RRDB.") else (2, 0, 0)
    return 1, int(match[1]), _ORDER.index(match[2]) if match[2] in _ORDER else len(_ORDER)


def _number(name: str) -> float:
    """Sort key of names in a published file of another kind: the number of the layer, other parts after all layers."""
    match = re.match(r"flow\.layers\.(\d+)\.", name)
    return math.inf if match is None else int(match[1])


def check_layout(given: Mapping[str, Tensor], layout: Layout, what: str) -> None:
    """Raise ``ValueError`` unless these are the tensors of the layout; those without a name of ours may be missing."""
    problems = []
    for problem, names in (
        ("missing", [name for name, (own, _) in layout.items() if own is not None and name not in given]),
        ("unexpected", [name for name in given if name not in layout]),
    ):
        if names:
            problems.append(f"{problem} {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}")
    for name, (_, shape) in layout.items():
        if name in given and tuple(given[name].shape) != shape:
            problems.append(f"{name} has shape {tuple(given[name].shape)}, expected {shape}")
    if problems:
        raise ValueError(f"{what} does not fit: {'; '.join(problems[:5])}")


def to_own(model: SuperResolutionFlow, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a published state dict: tensors of ``model`` under its names, the rest under the prefix ``unused.``.

    As in the published code, an actnorm with a bias other than zero counts as initialised. Tensors are views where
    possible.

    Args:
        model: a model of the same architecture; may be on the meta device.
        state_dict: published names and tensors.

    Raises:
        ValueError: missing, unexpected or misshapen tensors, which are named.
    """
    given = without_module(state_dict)
    layout = published_layout(model)
    check_layout(given, layout, "the state dict")
    own = {}
    for name, (ours, _) in layout.items():
        if ours is not None:
            own[ours] = given[name].reshape(model.get_parameter(ours).shape)
        elif name in given:
            own[UNUSED + name] = given[name]
    for name, constant in _publication_of(model).constants(model).items():
        if name in given and not torch.allclose(given[name], constant.to(given[name])):
            raise ValueError(f"{name} must hold what this model computes with, got other numbers")
    for prefix, module in model.named_modules():
        if isinstance(module, ActNorm):
            own[f"{prefix}.initialized"] = (own[f"{prefix}.bias"] != 0).any()
    return own


def to_published(model: SuperResolutionFlow, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate tensors back to a published state dict.

    Args:
        model: a model of the same architecture; may be on the meta device.
        tensors: as :func:`to_own` returns them. Missing tensors that are never evaluated become zero, in the dtype of
            the others.

    Raises:
        ValueError: a model that the published implementations do not have.
    """
    found = {}
    constants = _publication_of(model).constants(model)
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    for name, (ours, shape) in published_layout(model).items():
        tensor = tensors.get(UNUSED + name, constants.get(name)) if ours is None else tensors[ours]
        found[name] = torch.zeros(shape, dtype=dtype) if tensor is None else tensor.reshape(shape)
    return found


def without_module(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that data-parallel training leaves in names."""
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def load_published(model: SuperResolutionFlow, state_dict: Mapping[str, Tensor]) -> None:
    """Load a published state dict into a model of the same architecture.

    As in the published code, an actnorm with a bias other than zero counts as initialised.

    Args:
        model: the model to change.
        state_dict: tensors by their published names.

    Raises:
        ValueError: missing, unexpected or misshapen tensors, which are named.
    """
    model.load_state_dict(evaluated_tensors(to_own(model, state_dict)))


def from_published(
    state_dict: Mapping[str, Tensor], options: Mapping[str, Any], *, growth: int = 32
) -> SuperResolutionFlow:
    """Build the model that a published state dict belongs to, and load it.

    Args:
        state_dict: published names and tensors; the model takes their floating-point dtype.
        options: the published options file as a dict: ``model``, ``scale`` and ``network_G``.
        growth: growth channels of the encoder's dense blocks, which the options do not state.

    Raises:
        ValueError: an option that is missing or that this library does not have, or tensors that do not fit.
    """
    name, config = config_of_options(options, growth)
    model = create(name, **config)
    dtype = next(tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point())
    model = model.to(dtype if dtype == torch.float64 else torch.float32)
    load_published(model, state_dict)
    return model


def config_of_options(options: Mapping[str, Any], growth: int = 32) -> tuple[str, dict[str, Any]]:
    """Read a published options file: the arguments of :func:`sr_models.create` for the model that it describes.

    Args:
        options: the file's content.
        growth: growth channels of the encoder's dense blocks, which the file does not tell.

    Returns:
        The model's name, and its other arguments.

    Raises:
        ValueError: an option that is missing or that this library does not have.
    """
    published = {publication.model: (plugin, publication) for plugin, publication in published_models()}
    try:
        network, kind = options["network_G"], options["model"]
        if kind not in published:
            raise ValueError(f"options: model must be one of {', '.join(map(repr, published))}, got {kind!r}")
        plugin, publication = published[kind]
        if publication.naming is not None:
            return plugin.name, _checked(plugin.name, dict(publication.read_options(options)))
        flow = network["flow"]
        scale = read_number(options, "scale")
        levels = config_of(plugin.name, scale=scale).levels
        if read_number(flow, "L") != levels:
            raise ValueError(f"options: L must be {levels} for {kind} at scale {scale}, got {flow['L']}")
        affine, stacked = flow.get("CondAffineSeparatedAndCond") or {}, flow.get("stackRRDB") or {}
        fields: dict[str, Any] = {
            "scale": scale,
            "steps": _steps(flow, levels),
            "transition_steps": read_number(flow, "additionalFlowNoAffine"),
            "hidden_channels": read_number(affine, "hidden_channels", default=64),
            "features": read_number(network, "nf"),
            "growth": growth,
            "blocks": read_number(network, "nb"),
            "stacked_blocks": tuple(stacked.get("blocks") or ()),
            **publication.read_options(options),
        }
    except KeyError as error:
        raise ValueError(f"options must have the entry {error}") from None
    if affine.get("eps", 1e-4) != 1e-4:
        raise ValueError(f"options: eps must be 1e-4, got {affine['eps']}")
    if not stacked.get("concat", True):
        raise ValueError(f"options: concat of stackRRDB must be true, got {stacked['concat']}")
    return plugin.name, _checked(plugin.name, fields)


def _checked(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that options tell, if the model takes them."""
    try:
        config_of(name, **fields)
    except ValueError as error:
        raise ValueError(f"options: {error}") from None
    return fields


def _steps(flow: Mapping[str, Any], levels: int) -> int | tuple[int, ...]:
    """Read the option K: one number for every level, or a list whose entry l is level l's and entry 0 is unused."""
    if not isinstance(flow["K"], list | tuple):
        return check_steps("options: K", read_number(flow, "K"), levels)
    if len(flow["K"]) != levels + 1:
        raise ValueError(
            f"options: K must be a number or a list of {levels + 1}, an unused one and one a level, got {flow['K']}"
        )
    return check_steps("options: K", flow["K"][1:], levels)
