"""Which model a published state dict belongs to, from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sr_models.registry import config_of, get_plugin

__all__ = ["detect_encoder", "detect_model", "is_encoder"]

#: What of the config cannot be read off a file, because no shape depends on it.
_NOT_IN_FILE = {"stacked_blocks", "noise_steps", "noise_std"}


def is_encoder(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether this is the file of an encoder alone."""
    return "conv_first.weight" in state_dict


def detect_encoder(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, int]:
    """``scale``, ``features``, ``growth`` and ``blocks`` of a published encoder whose names begin with ``prefix``.

    Raises:
        ValueError: a state dict without one.
    """
    return {
        "scale": 2 ** _count(state_dict, rf"{prefix}upconv(\d+)\.weight"),
        "features": _convolution(state_dict, rf"{prefix}conv_first\.weight").shape[0],
        "growth": _convolution(state_dict, rf"{prefix}RRDB_trunk\.0\.RDB1\.conv1\.weight").shape[0],
        "blocks": _count(state_dict, rf"{prefix}RRDB_trunk\.(\d+)\."),
    }


def detect_model(
    state_dict: Mapping[str, Tensor], stacked_blocks: Iterable[int] | None = None
) -> tuple[str, dict[str, Any], str]:
    """Name, config and preset of the model that a published state dict belongs to.

    Which RRDB blocks condition the flow is not in the file, nor which steps of an NCSR see the noise: they are those of
    the preset that agrees with everything that is in it.

    Args:
        state_dict: published names and tensors.
        stacked_blocks: the RRDB blocks whose outputs condition the flow, from 0; ``None``: those of the preset.

    Returns:
        Arguments of :func:`sr_models.create`, and the name of the preset that was used; empty if none was needed.

    Raises:
        ValueError: not a published model, or no preset to take from what the file does not say.
    """
    fields: dict[str, Any] = detect_encoder(state_dict, "RRDB.")
    name = _variant(state_dict, fields["scale"])
    flow = [key for key in state_dict if key.startswith("flowUpsamplerNet.layers.")]
    conditional = {int(key.split(".")[2]) for key in flow if ".affine." in key}
    steps = {int(key.split(".")[2]) for key in flow if ".invconv." in key}
    first = _convolution(state_dict, r".*\.affine\.fFeatures1?\.0\.weight")
    levels = config_of(name, scale=fields["scale"]).levels
    fields |= {
        "steps": len(conditional) // levels,
        "transition_steps": len(steps - conditional) // levels,
        "hidden_channels": first.shape[0],
    }
    if name == "ncsr":
        noise = _convolution(state_dict, r".*\.affine\.fAffine_std\.0\.weight")
        fields["noise_channels"] = noise.shape[1] - 6  # after half of the 12 channels of the first level
    count = first.shape[1] // fields["features"] - 1
    fields, preset = _completed(name, fields, stacked_blocks)
    if len(fields["stacked_blocks"]) != count:
        raise ValueError(f"blocks must be {count} numbers for this file, got {len(fields['stacked_blocks'])}")
    return name, fields, preset


def _variant(state_dict: Mapping[str, Tensor], scale: int) -> str:
    """Our name, by what only this model's file has."""
    text = "\n".join(state_dict)
    if ".affine.fAffine_std." in text:
        return "ncsr"
    if ".affine.fAffine.0.actnorm." in text:
        return "srflow"
    if ".affine.fAffine2.0.0." in text:
        return "srflow-da-d"
    if ".affine.fAffine2." in text:
        return "srflow-da-r"
    if ".affine.fAffine.10." in text:
        convolution = state_dict.get("flowUpsamplerNet.layers.1.invconv.weight")
        return "srflow-da-s" if convolution is not None and len(convolution) == 3 * scale**2 else "srflow-da"
    raise ValueError("not a published super-resolution flow: it has no coupling networks that this library knows")


def _completed(name: str, fields: dict[str, Any], stacked_blocks: Iterable[int] | None) -> tuple[dict[str, Any], str]:
    """With what is not in the file, from the first preset that agrees with what is."""
    plugin, scale = get_plugin(name), fields["scale"]
    if scale not in plugin.scales:
        raise ValueError(f"scale of {name} must be one of {', '.join(map(str, plugin.scales))}, the file's is {scale}")
    given = {} if stacked_blocks is None else {"stacked_blocks": tuple(stacked_blocks)}
    for preset in (preset for preset, scales in plugin.presets.items() if scale in scales):
        config = config_of(name, scale=scale, preset=preset)
        if getattr(config, "affine", "sigmoid") == "sigmoid" and all(
            getattr(config, field) == value for field, value in fields.items()
        ):
            missing = {field: getattr(config, field) for field in _NOT_IN_FILE if hasattr(config, field)}
            return {**missing, **_variant_field(config), **fields, **given}, preset if missing.keys() - given else ""
    if name == "ncsr":
        raise ValueError(
            "no preset of ncsr has these sizes, and the file does not say which steps see the noise: "
            "use sr_models.from_published with its options"
        )
    if stacked_blocks is None:
        raise ValueError(
            f"no preset of {name} has these sizes, and the file does not say which of its {fields['blocks']} RRDB "
            "blocks condition the flow: give --blocks"
        )
    return {**_variant_field(config_of(name, scale=scale)), **fields, **given}, ""


def _variant_field(config: Any) -> dict[str, Any]:
    return {"variant": config.variant} if hasattr(config, "variant") else {}


def _convolution(state_dict: Mapping[str, Tensor], pattern: str) -> Tensor:
    """The first weight of a convolution with this name."""
    for name, tensor in state_dict.items():
        if re.fullmatch(pattern, name) and tensor.dim() == 4:
            return tensor
    name = re.sub(r"\.\*|\\|\?", "", pattern)
    raise ValueError(f"not a published super-resolution flow: it has no convolution {name}")


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers occur in names that begin with the pattern."""
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})
