"""Published files and options of HCFlow: names of tensors, and the architecture that they tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sr_models.models.config import check_steps
from sr_models.models.publication import Shapes, find_convolution, read_number

__all__ = ["detect_hcflow", "detect_rescaling", "hcflow_name", "hcflow_options"]

#: Prefixes of parameters within a flow step, and the published prefixes.
_PARTS = {
    "conv1x1.": "permute.",
    # the rescaling model's step is a sequence of two layers
    "layers.0.": "actnorm.",
    "layers.1.net.convs.": "affine.f.conv",
    "coupling.net.layers.0.": "affine.f.conv1.",
    "coupling.net.layers.2.": "affine.f.conv2.",
    "coupling.net.layers.4.": "affine.f.conv3.",
}
_LEVEL = r"flow\.level(\d+)_condFlow\."


def hcflow_name(name: str, layers_before: Sequence[int]) -> str:
    """Return the published name of one of the model's parameters.

    See :class:`~sr_models.models.publication.Publication`.
    """
    name = re.sub(r"\.log_scale$", ".logs", name)
    if match := re.match(r"levels\.(\d+)\.layers\.(\d+)\.", name):
        number = layers_before[int(match[1])] + int(match[2])
        return f"flow.layers.{number}.{_part(name[match.end() :])}"
    match = re.match(r"conditional\.(\d+)\.(features|flow)\.", name)
    assert match is not None
    level, rest = f"flow.level{match[1]}_condFlow.", name[match.end() :]
    if match[2] == "flow":
        match = re.match(r"layers\.(\d+)\.", rest)
        assert match is not None
        part = rest[match.end() :]
        # the prior is the last layer
        return level + (
            part.replace("net.", "f.", 1)
            if part.startswith("net.")
            else f"additional_flow_steps.{match[1]}.{_part(part)}"
        )
    if match := re.match(r"trunks\.(\d+)\.(\d+)\.dense\.(\d+)\.convs\.(\d+)\.", rest):
        trunk, block, dense, conv = map(int, match.groups())
        return f"{level}RRDB_trunk{trunk}.{block}.RDB{dense + 1}.conv{conv + 1}.{rest[match.end() :]}"
    return level + rest.replace("trunk_conv.", "trunk_conv1.", 1)


def _part(name: str) -> str:
    for own, published in _PARTS.items():
        if name.startswith(own):
            rest = name.removeprefix(own)
            # convolutions of a dense network are numbered from 1
            return published + (
                re.sub(r"^\d+", lambda match: str(int(match[0]) + 1), rest) if own[-6:] == "convs." else rest
            )
    return name


def detect_hcflow(shapes: Shapes) -> dict[str, Any] | None:
    """Return all fields of the config of a published file; ``None`` for the file of another model.

    Raises:
        ValueError: a file of HCFlow whose parts do not belong together.
    """
    levels = _count(shapes, _LEVEL)
    return _sizes(shapes, levels) if levels and not _has_wavelets(shapes) else None


def detect_rescaling(shapes: Shapes) -> dict[str, Any] | None:
    """Return the same of a published file of the rescaling model."""
    levels = _count(shapes, _LEVEL)
    return _sizes(shapes, levels) if levels and _has_wavelets(shapes) else None


def _has_wavelets(shapes: Shapes) -> bool:
    return any(name.endswith(".haar_weights") for name in shapes)


def _sizes(shapes: Shapes, levels: int) -> dict[str, Any]:
    """Return the fields that both models have."""
    layers = _numbers(shapes, r"flow\.layers\.(\d+)\.actnorm\.")
    # squeezes and splits have numbers in the list of layers, but no tensors
    steps = [0]
    for number in layers:
        if number - 1 not in layers and steps[-1]:
            steps.append(0)
        steps[-1] += 1
    conditional = [
        _count(shapes, rf"flow\.level{level}_condFlow\.additional_flow_steps\.(\d+)\.") for level in range(levels)
    ]
    return {
        "scale": 2**levels,
        "steps": check_steps("steps of the file", steps, levels),
        "conditional_steps": check_steps("conditional steps of the file", conditional, levels),
        "hidden_channels": find_convolution(shapes, r"flow\.layers\.1\.affine\.f\.conv1\.weight")[0],
        "conditional_hidden_channels": find_convolution(
            shapes, r"flow\.level0_condFlow\.additional_flow_steps\.0\.affine\.f\.conv1\.weight"
        )[0],
        "features": find_convolution(shapes, r"flow\.level0_condFlow\.conv_first\.weight")[0],
        "growth": find_convolution(shapes, r"flow\.level0_condFlow\.RRDB_trunk0\.0\.RDB1\.conv1\.weight")[0],
        "blocks": tuple(_count(shapes, rf"flow\.level0_condFlow\.RRDB_trunk{part}\.(\d+)\.") for part in (0, 1)),
    }


def hcflow_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of the config that a published options file tells.

    See :class:`~sr_models.models.publication.Publication`.
    """
    flow = options["network_G"]["flowDownsampler"]
    conditional = flow["splitOff"]
    levels = read_number(flow, "L")
    # K counts the steps of a level and of its conditional flow together
    both = _a_level("K", flow["K"], levels)
    after = _a_level("after_flowstep", conditional["after_flowstep"], levels)
    return {
        "scale": read_number(options, "scale"),
        "steps": tuple(total - count for total, count in zip(both, after, strict=True)),
        "conditional_steps": tuple(after),
        "hidden_channels": read_number(flow, "hidden_channels"),
        "conditional_hidden_channels": read_number(conditional, "hidden_channels"),
        "features": read_number(conditional, "RRDB_nf"),
        "growth": read_number(conditional, "RRDB_gc"),
        "blocks": tuple(conditional["RRDB_nb"]),
    }


def _a_level(name: str, given: Any, levels: int) -> Sequence[int]:
    counts = check_steps(f"options: {name}", given, levels)
    return [counts] * levels if isinstance(counts, int) else counts


def _numbers(shapes: Shapes, pattern: str) -> list[int]:
    """List the numbers that occur in names that begin with the pattern, in ascending order."""
    return sorted({int(match[1]) for name in shapes if (match := re.match(pattern, name))})


def _count(shapes: Shapes, pattern: str) -> int:
    return len(_numbers(shapes, pattern))
