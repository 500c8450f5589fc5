"""Description of a model's structure, size and cost, without allocating it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from invflow import FlowStep, InvertibleConv1x1
from sr_models.checkpoints.published import published_layout
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.text_tables import align_columns
from sr_models.registry import create

__all__ = ["Description", "LevelDescription", "describe"]


@dataclass(frozen=True)
class LevelDescription:
    """One level of a flow.

    Attributes:
        reduction: the level works at 1 / reduction of the high resolution.
        channels: channels of the state after the squeeze.
        transition_steps: steps that nothing conditions, in most models of actnorm and 1x1 convolution only.
        steps: steps that the features of the low resolution condition.
        noise_steps: number of these steps that noise conditions as well.
        context_channels: channels of the features.
        latents: channels of the latents that leave the level; the last level's include the end of the flow.
        multiply_adds: multiply-adds of one pass in either direction, per pixel of the high resolution.
    """

    reduction: int
    channels: int
    transition_steps: int
    steps: int
    noise_steps: int
    context_channels: int
    latents: tuple[int, ...]
    multiply_adds: float


@dataclass(frozen=True)
class Description:
    """Result of :func:`describe`; printed, it is a table.

    Attributes:
        name: name of the model.
        scale: enlargement.
        config: config of the model.
        levels: the levels, from the highest resolution to the lowest.
        encoder_parameters: number of the encoder's parameters.
        flow_parameters: number of the flow's parameters.
        published_flow_parameters: the same with the tensors of published files that are never evaluated; ``None`` for a
            model that was not published.
        encoder_multiply_adds: multiply-adds of the convolutions that the flow needs, per pixel of the high resolution.
        unused_multiply_adds: multiply-adds of the encoder's other convolutions, which predict an image for the L1
            pretraining. The published code always computes them; this library never does for the flow.
    """

    name: str
    scale: int
    config: Any
    levels: tuple[LevelDescription, ...]
    encoder_parameters: int
    flow_parameters: int
    published_flow_parameters: int | None
    encoder_multiply_adds: float
    unused_multiply_adds: float

    @property
    def flow_multiply_adds(self) -> float:
        """Multiply-adds of one pass through the flow, per pixel of the high resolution."""
        return sum(level.multiply_adds for level in self.levels)

    def __str__(self) -> str:
        header = ["level", "size", "channels", "transition", "steps", "condition", "latents", "M multiply-adds"]
        noisy = any(level.noise_steps for level in self.levels)
        rows = [header] + [
            [
                str(number),
                f"1/{level.reduction}",
                str(level.channels),
                str(level.transition_steps),
                str(level.steps) + (f", {level.noise_steps} with noise" if noisy else ""),
                f"{level.context_channels} channels",
                ", ".join(map(str, level.latents)) or "-",
                f"{level.multiply_adds / 1e6:.3f}",
            ]
            for number, level in enumerate(self.levels, 1)
        ]
        encoder, flow = self.encoder_multiply_adds, self.flow_multiply_adds
        total, published = self.encoder_parameters + self.flow_parameters, self.published_flow_parameters
        parameters = f"parameters: encoder {self.encoder_parameters:,}, flow {self.flow_parameters:,}, total {total:,}"
        if published is not None and published > self.flow_parameters:
            parameters += (
                f"\n    (published files hold {published - self.flow_parameters:,} more that are never evaluated: "
                f"flow {published:,}, total {self.encoder_parameters + published:,})"
            )
        lines = [
            f"{self.name} at {self.scale}x: {self.config}",
            "",
            align_columns(rows),
            "",
            parameters,
            f"million multiply-adds per pixel of the high resolution, one sample: encoder {encoder / 1e6:.2f}, "
            f"flow {flow / 1e6:.2f}, total {(encoder + flow) / 1e6:.2f}",
        ]
        if self.unused_multiply_adds:
            lines.append(
                f"    ({(encoder + flow + self.unused_multiply_adds) / 1e6:.2f} with the encoder's last convolutions, "
                "which only the L1 pretraining needs)"
            )
        return "\n".join(lines)

    __repr__ = __str__


def describe(name: str, *, scale: int = 4, preset: str = "released", **overrides: Any) -> Description:
    """Describe structure, parameters and cost of a model without allocating it.

    Printed, it is a table: ``print(describe("srflow", scale=8))``. Multiply-adds count every convolution at every pixel
    of its level, as the published code evaluates them; condition sharing makes sampling cheaper (see
    ``docs/models.md``). Elementwise operations are not counted.

    Args:
        name, scale, preset, overrides: as for :func:`sr_models.create`.

    Raises:
        ValueError: an unknown model, scale, preset or field; the message lists the known ones.
    """
    with torch.device("meta"):
        model = create(name, scale=scale, preset=preset, **overrides)
    levels: list[LevelDescription] = []
    side = model.lr_multiple
    for shapes in model.level_shapes(side, side):
        channels, height, _ = shapes.state
        reduction = side * scale // height
        last = [shapes.rest] if len(levels) == len(model.levels) - 1 else []
        parts = nn.ModuleList(model.parts_of(len(levels)))
        steps = [part for part in parts.modules() if isinstance(part, FlowStep)]
        conditional = [part for part in parts.modules() if _is_conditional(part)]
        levels.append(
            LevelDescription(
                reduction=reduction,
                channels=channels,
                transition_steps=sum(step.injector is None and not _is_conditional(step) for step in steps),
                steps=len(conditional),
                noise_steps=model.noise_steps[len(levels)],
                context_channels=model.context_channels,
                latents=tuple(shape[0] for shape in (*shapes.leaving, *last)),
                multiply_adds=_multiply_adds(parts) / reduction**2,
            )
        )
    used, unused = _encoder_multiply_adds(model, max(scale / level.reduction for level in levels))
    return Description(
        name=model.name,
        scale=scale,
        config=model.config,
        levels=tuple(levels),
        encoder_parameters=_parameter_count(model.parameters_of_parts()[0]),
        flow_parameters=_parameter_count(model.parameters_of_parts()[1]),
        published_flow_parameters=_published_flow_parameters(model),
        encoder_multiply_adds=used,
        unused_multiply_adds=unused,
    )


def _multiply_adds(module: nn.Module) -> int:
    """Count the multiply-adds of all its convolutions at one pixel: as many as weights."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Conv2d | InvertibleConv1x1))


def _encoder_multiply_adds(model: SuperResolutionFlow, largest: float) -> tuple[float, float]:
    """Count multiply-adds for features up to the largest factor, and the rest, per pixel of the high resolution."""
    encoder, scale = model.encoder, model.scale
    if encoder is None:
        return 0.0, 0.0
    used = _multiply_adds(nn.ModuleList([encoder.conv_first, encoder.trunk, encoder.trunk_conv])) / scale**2
    unused = float(_multiply_adds(encoder.hr_conv) + _multiply_adds(encoder.last_conv))
    for stage, conv in enumerate(encoder.upconvs, 1):
        cost = _multiply_adds(conv) * (2**stage / scale) ** 2
        if 2**stage <= largest:
            used += cost
        else:
            unused += cost
    return used, unused


def _published_flow_parameters(model: SuperResolutionFlow) -> int | None:
    try:
        layout = published_layout(model)
    except ValueError:
        return None
    return sum(torch.Size(shape).numel() for name, (_, shape) in layout.items() if not name.startswith("RRDB."))


def _parameter_count(parameters: Mapping[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def _is_conditional(part: nn.Module) -> bool:
    """Return whether a part of a flow has a coupling that a context conditions."""
    return bool(getattr(getattr(part, "coupling", None), "context_channels", 0))
