"""Detection of the model that a published state dict belongs to, from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sr_models.models.config import check_steps
from sr_models.models.encoder import detect_encoder
from sr_models.models.publication import Publication, Shapes, find_convolution, shapes_of
from sr_models.registry import ModelPlugin, config_of, published_models

__all__ = ["detect_model", "told_by"]

#: The first convolution of a network that sees the encoder's features only.
_INJECTOR = r".*\.affine\.fFeatures1?\.0\.weight"


def detect_model(
    state_dict: Mapping[str, Tensor], stacked_blocks: Iterable[int] | None = None
) -> tuple[str, dict[str, Any], str]:
    """Detect name, config and preset of the model that a published state dict belongs to.

    No file tells which RRDB blocks condition the flow, and for some models more is missing. Such fields are taken from
    the first preset that agrees with everything that the file tells.

    Args:
        state_dict: published names and tensors.
        stacked_blocks: the RRDB blocks whose outputs condition the flow, from 0; ``None``: those of the preset.

    Returns:
        Arguments of :func:`sr_models.create`, and the name of the preset that was used; empty if none was needed.

    Raises:
        ValueError: not a published model, or no preset that agrees with the file.
    """
    shapes = shapes_of(state_dict)
    plugin, published, fields = _told(shapes)
    if published.naming is not None:
        if stacked_blocks is not None:
            raise ValueError(f"blocks must be left out: {plugin.name} has no encoder whose blocks condition the flow")
        return plugin.name, fields, ""
    _, context, *_ = find_convolution(shapes, _INJECTOR)
    count = context // fields["features"] - 1
    if count == 0 and stacked_blocks is None:
        stacked_blocks = ()
    fields, preset = _completed(plugin, published, fields, count, stacked_blocks)
    if len(fields["stacked_blocks"]) != count:
        raise ValueError(f"blocks must be {count} numbers for this file, got {len(fields['stacked_blocks'])}")
    return plugin.name, fields, preset


def told_by(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the model that a published state dict belongs to, and the fields of its config that the shapes tell.

    Raises:
        ValueError: not a published model.
    """
    plugin, _, fields = _told(shapes_of(state_dict))
    return plugin.name, fields


def _told(shapes: Shapes) -> tuple[ModelPlugin, Publication, dict[str, Any]]:
    plugin, published, own = _recognised(shapes)
    if published.naming is not None:
        config_of(plugin.name, **own)
        return plugin, published, dict(own)
    encoder = detect_encoder(shapes, "RRDB.")
    if encoder["scale"] not in plugin.scales:
        allowed = ", ".join(map(str, plugin.scales))
        raise ValueError(f"scale of {plugin.name} must be one of {allowed}, the file's is {encoder['scale']}")
    hidden, context, *_ = find_convolution(shapes, _INJECTOR)
    if context % encoder["features"]:
        raise ValueError(
            f"{context} channels condition its flow, not a multiple of the encoder's {encoder['features']}"
        )
    steps = _steps(shapes, plugin, encoder["scale"])
    return plugin, published, {**encoder, **steps, "hidden_channels": hidden, **own}


def _recognised(shapes: Shapes) -> tuple[ModelPlugin, Publication, Mapping[str, Any]]:
    """Ask the models whose file it is; return the first that says yes, and the fields that only this model has."""
    for plugin, published in reversed(published_models()):
        own = published.detect(shapes)
        if own is not None:
            return plugin, published, own
    raise ValueError("not a published super-resolution flow: it has no coupling networks that this library knows")


def _steps(shapes: Shapes, plugin: ModelPlugin, scale: int) -> dict[str, Any]:
    """Count ``steps`` and ``transition_steps`` of the file's levels.

    A level begins with a squeeze, which has a number in the list of layers, but no tensors.
    """
    layers: dict[int, set[str]] = {}
    for name in shapes:
        if match := re.match(r"flowUpsamplerNet\.layers\.(\d+)\.(\w+)\.", name):
            layers.setdefault(int(match[1]), set()).add(match[2])
    levels: list[list[set[str]]] = []
    for number, parts in sorted(layers.items()):
        if not levels or number - 1 not in layers:
            levels.append([])
        levels[-1].append(parts)
    expected = config_of(plugin.name, scale=scale).levels
    if len(levels) != expected:
        raise ValueError(
            f"its layers form {len(levels)} levels, each after a number without tensors, "
            f"but {plugin.name} has {expected} at scale {scale}"
        )
    conditional = [sum("affine" in parts for parts in level) for level in levels]
    transition = [
        sum("invconv" in parts for parts in level) - count for level, count in zip(levels, conditional, strict=True)
    ]
    if len(set(transition)) > 1:
        raise ValueError(f"its levels have unequal numbers of steps without coupling: {transition}")
    return {"steps": check_steps("steps of the file", conditional, expected), "transition_steps": transition[0]}


def _completed(
    plugin: ModelPlugin,
    published: Publication,
    fields: dict[str, Any],
    count: int,
    stacked_blocks: Iterable[int] | None,
) -> tuple[dict[str, Any], str]:
    """Fill in the fields that no file tells from the first preset that agrees with those that the file tells."""
    given = {} if stacked_blocks is None else {"stacked_blocks": tuple(stacked_blocks)}
    unknown = {
        **published.not_in_file,
        "stacked_blocks": f"which of its {fields['blocks']} RRDB blocks condition the flow",
    }
    for preset in (preset for preset, scales in plugin.presets.items() if fields["scale"] in scales):
        config = config_of(plugin.name, scale=fields["scale"], preset=preset)
        agrees = all(getattr(config, field) == value for field, value in fields.items())
        if agrees and published.covers(config) and (given or len(config.stacked_blocks) == count):
            missing = {field: getattr(config, field) for field in unknown}
            return {**missing, **fields, **given}, preset if missing.keys() - given.keys() else ""
    if untold := [words for field, words in unknown.items() if field not in given]:
        advice = "use sr_models.from_published with its options" if published.not_in_file else "give --blocks"
        raise ValueError(
            f"no preset of {plugin.name} has these sizes, and the file does not say {' and '.join(untold)}: {advice}"
        )
    return {**fields, **given}, ""
