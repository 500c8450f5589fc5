"""State dicts of the published implementations, translated to and from the names of this library.

The published layout numbers the layers of all levels in one list and stores actnorms as (1, C, 1, 1); its files also
carry one convolution that is never evaluated (``flowUpsamplerNet.f``), which is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from invflow import ActNorm
from sr_models.model import SuperResolutionFlow
from sr_models.registry import config_of, create

__all__ = ["config_of_options", "from_published", "load_published", "published_name"]

_UNUSED = "flowUpsamplerNet.f."
#: Networks of the noise-conditional layers, which published files hold for every step, used or not.
_NOISE = ".affine.fAffine_std."

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


def published_name(model: SuperResolutionFlow, name: str) -> str:
    """The published name of a parameter of ``model``."""
    if match := re.match(r"levels\.(\d+)\.layers\.(\d+)\.(?:step\.)?", name):
        before = sum(len(level) for level in model._levels()[: int(match[1])])
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


def load_published(model: SuperResolutionFlow, state_dict: Mapping[str, Tensor]) -> None:
    """Load a published state dict into a model of the same architecture.

    As in the published code, an actnorm with a bias other than zero counts as initialised.

    Raises:
        ValueError: naming missing, unexpected or misshapen tensors.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".initialized")}
    names = {name: published_name(model, name) for name in own}
    problems = []
    if missing := sorted(set(names.values()) - set(given)):
        problems.append(f"missing {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    if unexpected := sorted(name for name in set(given) - set(names.values()) if not _is_unused(model, name)):
        problems.append(f"unexpected {', '.join(unexpected[:5])}{' ...' if len(unexpected) > 5 else ''}")
    for name, tensor in own.items():
        other = given.get(names[name])
        if other is not None and other.numel() != tensor.numel():
            problems.append(f"{names[name]} has shape {tuple(other.shape)}, expected {tuple(tensor.shape)}")
    if problems:
        raise ValueError(f"the state dict does not fit the model: {'; '.join(problems)}")
    converted = {name: given[names[name]].reshape(tensor.shape) for name, tensor in own.items()}
    model.load_state_dict(converted, strict=False)
    for module in model.modules():
        if isinstance(module, ActNorm) and bool((module.bias != 0).any()):
            module.mark_initialized()


def _is_unused(model: SuperResolutionFlow, name: str) -> bool:
    """Whether published files hold this tensor although the published network never evaluates it."""
    return name.startswith(_UNUSED) or (model.noise_channels > 0 and _NOISE in name)


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
