"""State dicts of the published implementations, translated to and from the names of this library.

The published layout numbers the layers of all levels in one list and stores actnorms as (1, C, 1, 1). Its files also
carry tensors that are never evaluated: one convolution (``flowUpsamplerNet.f``) and, in NCSR's, the noise networks of
couplings without noise. They are kept beside the model's own tensors so that a file can be given back as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invflow import ActNorm
from sr_models.checkpoints.files import UNUSED
from sr_models.flow.model import SuperResolutionFlow
from sr_models.networks.coupling import ShallowNet
from sr_models.registry import config_of, create

__all__ = [
    "check_layout",
    "config_of_options",
    "encoder_layout",
    "from_published",
    "load_published",
    "published_layout",
    "published_name",
    "to_own",
    "to_published",
    "without_module",
]

#: Output channels of the published convolution that is never evaluated, of every model.
_DEAD_CHANNELS = 96
#: Channels of the features that condition the flow, the same in every published model.
_CONTEXT_CHANNELS = 320

# our name -> published name; {n} is a number that the published names count from 1
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"encoder\.trunk\.(\d+)\.dense\.(\d+)\.convs\.(\d+)\.", r"RRDB.RRDB_trunk.\1.RDB{\2}.conv{\3}."),
    (r"encoder\.upconvs\.(\d+)\.", r"RRDB.upconv{\1}."),
    (r"encoder\.hr_conv\.", "RRDB.HRconv."),
    (r"encoder\.last_conv\.", "RRDB.conv_last."),
    (r"encoder\.", "RRDB."),
    (r"(layer\.\d+)\.conv1x1\.weight", r"\1.invconv.weight"),
    (r"(layer\.\d+)\.net\.", r"\1.conv."),
)
_NETWORKS = {"injector": "fFeatures", "coupling": "fAffine", "noise": "fAffine_std"}
#: Parts of a network, as suffixes of its name.
_PARTS = {"layers": "", "first": "1", "body": "2", "last": "3"}
#: The order of a published layer's parts.
_ORDER = ("actnorm", "invconv", "conv", "affine.fAffine", "affine.fFeatures", "affine.fAffine_std")

#: Published name -> our name, or ``None`` if we have no such tensor, and published shape.
Layout = dict[str, tuple[str | None, tuple[int, ...]]]


def published_name(name: str, layers_before: Iterable[int] = ()) -> str:
    """The published name of one of our parameters; ``layers_before``: for every level, the layers of those before."""
    if match := re.match(r"levels\.(\d+)\.layers\.(\d+)\.(?:step\.)?", name):
        before = list(layers_before)[int(match[1])]
        name = f"layer.{before + int(match[2])}.{name[match.end() :]}"
    if match := re.match(r"(layer\.\d+)\.(injector|coupling|noise)\.net\.(\w+)\.", name):
        name = f"{match[1]}.affine.{_NETWORKS[match[2]]}{_PARTS[match[3]]}.{name[match.end() :]}"
    for pattern, replacement in _RENAMES:
        if re.match(pattern, name):
            name = re.sub(pattern, replacement, name, count=1)
            break
    name = re.sub(r"\{(\d+)\}", lambda number: str(int(number[1]) + 1), name)
    name = re.sub(r"^layer\.", "flowUpsamplerNet.layers.", name)
    return re.sub(r"\.log_scale$", ".logs", name)


def published_layout(model: SuperResolutionFlow) -> Layout:
    """All tensors of the published file of a model like this one (which may be on the meta device), in its order.

    Raises:
        ValueError: a model that the published implementations do not have.
    """
    known = model.name in _MODELS.values() and getattr(model.config, "affine", "sigmoid") == "sigmoid"
    if not known or model.encoder.context_channels != _CONTEXT_CHANNELS:
        raise ValueError(f"the published implementations have no {model.name} like this one")
    before = [sum(map(len, model._levels()[:level])) for level in range(len(model.levels))]
    own = {published_name(name, before): (name, tensor) for name, tensor in _parameters(model).items()}
    layout: Layout = {name: (ours, _published_shape(name, tensor)) for name, (ours, tensor) in own.items()}
    if model.noise_channels:
        for name, tensor in _dead_noise_networks(model).items():
            name = published_name(name, before)
            layout.setdefault(name, (None, _published_shape(name, tensor)))
    layout["flowUpsamplerNet.f.0.weight"] = None, (_DEAD_CHANNELS, _CONTEXT_CHANNELS, 3, 3)
    layout["flowUpsamplerNet.f.0.bias"] = None, (_DEAD_CHANNELS,)
    return dict(sorted(layout.items(), key=lambda item: _position(item[0])))


def encoder_layout(encoder: nn.Module) -> Layout:
    """All tensors of the published file of an encoder alone, in its order."""
    return {
        published_name(f"encoder.{name}").removeprefix("RRDB."): (name, tuple(tensor.shape))
        for name, tensor in encoder.state_dict().items()
    }


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(".initialized")}


def _published_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    if ".actnorm." in name:
        return (1, *tensor.shape, 1, 1)
    return (*tensor.shape, 1, 1) if name.endswith(".logs") else tuple(tensor.shape)


def _dead_noise_networks(model: SuperResolutionFlow) -> dict[str, Tensor]:
    """The noise network that a published file has in every coupling, by the name that ours would have."""
    found: dict[str, Tensor] = {}
    for level, layers in enumerate(model._levels()):
        for index, layer in enumerate(layers):
            coupling = getattr(layer, "coupling", None)
            if coupling is None:
                continue
            with torch.device("meta"):
                net = ShallowNet(
                    coupling.start + model.noise_channels,
                    model.config.hidden_channels,
                    2 * (coupling.channels - coupling.start),
                )
            found |= {
                f"levels.{level}.layers.{index}.noise.net.{name}": tensor for name, tensor in _parameters(net).items()
            }
    return found


def _position(name: str) -> tuple[int, int, int]:
    """Sorts names like a published file: the encoder, the flow's layers with their parts in order, the dead one."""
    match = re.match(r"flowUpsamplerNet\.layers\.(\d+)\.(affine\.fAffine_std|affine\.[a-zA-Z]+|\w+)", name)
    if match is None:
        return (0, 0, 0) if name.startswith("RRDB.") else (2, 0, 0)
    return 1, int(match[1]), _ORDER.index(match[2])


def check_layout(given: Mapping[str, Tensor], layout: Layout, what: str) -> None:
    """Raise ``ValueError`` unless these are the tensors of the layout; those that we have not may be missing."""
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
    """Our tensors, from a published state dict: those of ``model``, and under the prefix ``unused.`` the rest.

    As in the published code, an actnorm with a bias other than zero counts as initialised. Tensors are views where
    possible.

    Args:
        model: of the same architecture; may be on the meta device.
        state_dict: published names and tensors.

    Raises:
        ValueError: naming missing, unexpected or misshapen tensors.
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
    for prefix, module in model.named_modules():
        if isinstance(module, ActNorm):
            own[f"{prefix}.initialized"] = (own[f"{prefix}.bias"] != 0).any()
    return own


def to_published(model: SuperResolutionFlow, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict, from our tensors: what :func:`to_own` returned. Tensors that are never evaluated are zero
    where ``tensors`` has none.

    Raises:
        ValueError: a model that the published implementations do not have.
    """
    found = {}
    for name, (ours, shape) in published_layout(model).items():
        tensor = tensors.get(UNUSED + name) if ours is None else tensors[ours]
        found[name] = torch.zeros(shape) if tensor is None else tensor.reshape(shape)
    return found


def without_module(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that data-parallel training leaves in names."""
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def load_published(model: SuperResolutionFlow, state_dict: Mapping[str, Tensor]) -> None:
    """Load a published state dict into a model of the same architecture.

    As in the published code, an actnorm with a bias other than zero counts as initialised.

    Raises:
        ValueError: naming missing, unexpected or misshapen tensors.
    """
    own = to_own(model, state_dict)
    model.load_state_dict({name: tensor for name, tensor in own.items() if not name.startswith(UNUSED)})


#: Published ``model`` option -> our name.
_MODELS = {
    "SRFlow": "srflow",
    "SRFlow-DA": "srflow-da",
    "SRFlow-DA-R": "srflow-da-r",
    "SRFlow-DA-D": "srflow-da-d",
    "SRFlow-DA-S": "srflow-da-s",
    "NCSR": "ncsr",
}


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
    """Name and config of the model that a published options file describes; arguments of :func:`sr_models.create`.

    Raises:
        ValueError: an option that is missing or that this library does not have.
    """
    try:
        network = options["network_G"]
        flow = network["flow"]
        kind = options["model"]
        if kind not in _MODELS:
            raise ValueError(f"options: model must be one of {', '.join(map(repr, _MODELS))}, got {kind!r}")
        affine = flow.get("CondAffineSeparatedAndCond", {})
        fields: dict[str, Any] = {
            "scale": int(options["scale"]),
            "steps": int(flow["K"]),
            "transition_steps": int(flow["additionalFlowNoAffine"]),
            "hidden_channels": int(affine.get("hidden_channels", 64)),
            "features": int(network["nf"]),
            "growth": growth,
            "blocks": int(network["nb"]),
            "stacked_blocks": tuple(flow["stackRRDB"]["blocks"]),
        }
        if kind == "NCSR":
            fields |= {"noise_steps": tuple(flow["S"]), "noise_std": float(options["std"])}
            fields["noise_channels"] = int(flow.get("std_channels", 3))
        levels = int(flow["L"])
    except KeyError as error:
        raise ValueError(f"options must have the entry {error}") from None
    if affine.get("eps", 1e-4) != 1e-4:
        raise ValueError(f"options: eps must be 1e-4, got {affine['eps']}")
    expected = config_of(_MODELS[kind], **fields).levels
    if levels != expected:
        raise ValueError(f"options: L must be {expected} for {kind} at scale {fields['scale']}, got {levels}")
    return _MODELS[kind], fields
