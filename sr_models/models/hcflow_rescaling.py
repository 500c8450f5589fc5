"""HCFlow's rescaling model: images are reduced by the flow itself, and restored from what it made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invflow import ActNorm, AffineCoupling, AffineForm, FlowSequential, HaarSqueeze
from sr_models.flow.hierarchy import HierarchicalFlow
from sr_models.flow.model import SuperResolutionFlow
from sr_models.models.hcflow import HCFLOW_FORM, HCFlowConfig, hierarchy
from sr_models.models.hcflow_files import detect_rescaling, hcflow_name, hcflow_options
from sr_models.models.publication import Publication
from sr_models.networks.dense_net import DenseNet
from sr_models.registry import register_model
from sr_models.training.recipe import Recipe

__all__ = ["HCFlowRescalingConfig", "build_hcflow_rescaling"]

#: Signs of the four pixels of a block, row by row, in every band.
_HAAR = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))


@dataclass(frozen=True)
class HCFlowRescalingConfig(HCFlowConfig):
    """Architecture of the rescaling model; the defaults are the released one. Fields as those of HCFlow."""

    steps: int | tuple[int, ...] = 8
    conditional_steps: int | tuple[int, ...] = 6
    hidden_channels: int = 32
    growth: int = 16
    blocks: tuple[int, int] = (2, 1)


def _haar_weights(model: SuperResolutionFlow) -> Mapping[str, Tensor]:
    """Return the wavelet as published files hold it: for every level (4 C, 1, 2, 2), the signs of the four bands."""
    found, number, channels = {}, 0, 3
    for level, shapes in zip(model.flows(), model.level_shapes(1, 1), strict=False):
        bands = torch.tensor(_HAAR, dtype=torch.float32).view(4, 1, 2, 2)
        found[f"flow.layers.{number}.haar_weights"] = bands.repeat(channels, 1, 1, 1)
        number, channels = number + len(level), shapes.rest[0]
    return found


@register_model(
    "hcflow-rescaling",
    config=HCFlowRescalingConfig,
    presets={"released": {4: {}}},
    recipes={"released": {4: Recipe(steps=500_000, batch_size=16, lr=2.5e-4, encoder_frozen=0.0)}},
    published=Publication(
        "HCFlow_Rescaling",
        detect=detect_rescaling,
        read_options=hcflow_options,
        naming=hcflow_name,
        constants=_haar_weights,
        prefix="flow.level0_condFlow.",
    ),
)
def build_hcflow_rescaling(config: HCFlowRescalingConfig) -> HierarchicalFlow:
    """HCFlow for images that it has reduced itself (Liang et al., ICCV 2021)."""
    form = AffineForm("bounded_atan_exp", order="scale_then_shift", bound=0.5)
    return hierarchy(config, HaarSqueeze(bands_first=True, means=True), _steps, prior=form, halfway=False)


def _steps(channels: int, hidden_channels: int, count: int) -> list[nn.Module]:
    """Build steps of an actnorm and a coupling, which in turn transform all but the first three channels, and these."""

    def coupling(step: int) -> AffineCoupling:
        if step % 2:
            net = DenseNet(channels - 3, hidden_channels, 3)
            return AffineCoupling(channels, net, stop=3, form=AffineForm("none"))
        net = DenseNet(3, hidden_channels, 2 * (channels - 3))
        return AffineCoupling(channels, net, start=3, form=HCFLOW_FORM)

    return [FlowSequential([ActNorm(channels), coupling(step)]) for step in range(count)]
