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
from sr_models.registry import create

__all__ = ["from_published", "load_published", "published_name"]

_MODELS = {"SRFlow-DA": "srflow-da"}
_UNUSED = "flowUpsamplerNet.f."

# our name -> published name; {n} is filled with the layer's number in the list of all levels
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"encoder\.trunk\.(\d+)\.dense\.(\d+)\.convs\.(\d+)\.", r"RRDB.RRDB_trunk.\1.RDB{\2}.conv{\3}."),
    (r"encoder\.upconvs\.(\d+)\.", r"RRDB.upconv{\1}."),
    (r"encoder\.hr_conv\.", "RRDB.HRconv."),
    (r"encoder\.last_conv\.", "RRDB.conv_last."),
    (r"encoder\.", "RRDB."),
    (r"(layer\.\d+)\.conv1x1\.weight", r"\1.invconv.weight"),
    (r"(layer\.\d+)\.actnorm\.log_scale", r"\1.actnorm.logs"),
    (r"(layer\.\d+)\.injector\.net\.layers\.", r"\1.affine.fFeatures."),
    (r"(layer\.\d+)\.coupling\.net\.layers\.", r"\1.affine.fAffine."),
    (r"(layer\.\d+)\.net\.", r"\1.conv."),
)


def published_name(model: SuperResolutionFlow, name: str) -> str:
    """The published name of a parameter of ``model``."""
    if match := re.match(r"levels\.(\d+)\.layers\.(\d+)\.", name):
        before = sum(len(level) for level in model._levels()[: int(match[1])])
        name = f"layer.{before + int(match[2])}.{name[match.end() :]}"
    for pattern, replacement in _RENAMES:
        if re.match(pattern, name):
            name = re.sub(pattern, replacement, name, count=1)
            break
    # published convolutions count from 1
    name = re.sub(r"\{(\d+)\}", lambda number: str(int(number[1]) + 1), name)
    name = re.sub(r"^layer\.", "flowUpsamplerNet.layers.", name)
    return re.sub(r"(affine\.f\w+\.\d+|conv)\.log_scale$", r"\1.logs", name)


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
    if unexpected := sorted(name for name in set(given) - set(names.values()) if not name.startswith(_UNUSED)):
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
    try:
        network = options["network_G"]
        flow = network["flow"]
        kind, scale = options["model"], int(options["scale"])
        fields: dict[str, Any] = {
            "steps": int(flow["K"]),
            "transition_steps": int(flow["additionalFlowNoAffine"]),
            "hidden_channels": int(flow.get("CondAffineSeparatedAndCond", {}).get("hidden_channels", 64)),
            "features": int(network["nf"]),
            "growth": growth,
            "blocks": int(network["nb"]),
            "stacked_blocks": tuple(flow["stackRRDB"]["blocks"]),
        }
        levels = int(flow["L"])
    except KeyError as error:
        raise ValueError(f"options must have the entry {error}") from None
    if kind not in _MODELS:
        raise ValueError(f"options: model must be one of {', '.join(map(repr, _MODELS))}, got {kind!r}")
    if 2**levels != scale:
        raise ValueError(f"options: L must be log2(scale) for {kind}, got L = {levels} at scale {scale}")
    model = create(_MODELS[kind], scale=scale, **fields)
    dtype = next(tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point())
    model = model.to(dtype if dtype == torch.float64 else torch.float32)
    load_published(model, state_dict)
    return model
