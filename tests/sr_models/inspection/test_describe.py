"""Parameter counts and cost of every model, against the published figures."""

from __future__ import annotations

import pytest
import torch

import sr_models

#: Model, scale, preset; parameters of the encoder, of the flow as published, and of it never evaluated.
COUNTS = [
    ("srflow", 4, "released", 16_697_987, 22_843_824, 276_576),
    ("srflow", 8, "released", 16_734_915, 34_086_976, 276_576),
    ("srflow", 8, "faces", 5_943_555, 34_086_976, 276_576),
    ("srflow-da", 4, "released", 16_697_987, 8_690_640, 276_576),
    ("srflow-da", 8, "released", 16_734_915, 13_279_968, 276_576),
    ("srflow-da-r", 4, "released", 16_697_987, 8_690_640, 276_576),
    ("srflow-da-r", 8, "released", 16_734_915, 13_279_968, 276_576),
    ("srflow-da-s", 4, "released", 16_697_987, 8_781_312, 276_576),
    ("srflow-da-s", 8, "released", 16_734_915, 15_014_016, 276_576),
    ("srflow-da-d", 4, "released", 16_697_987, 6_407_584, 276_576),
    ("srflow-da-d", 8, "released", 16_734_915, 9_542_064, 276_576),
    ("ncsr", 4, "released", 16_697_987, 24_964_656, 276_576 + 263_552),
    ("ncsr", 8, "released", 16_734_915, 47_785_248, 276_576 + 1_746_720),
]


@pytest.mark.parametrize(("name", "scale", "preset", "encoder", "flow", "unused"), COUNTS)
def test_parameter_counts_are_the_published_ones(
    name: str, scale: int, preset: str, encoder: int, flow: int, unused: int
) -> None:
    found = sr_models.describe(name, scale=scale, preset=preset)
    assert (found.name, found.scale) == (name, scale)
    assert found.encoder_parameters == encoder
    assert found.published_flow_parameters == flow
    assert found.flow_parameters == flow - unused
    assert f"encoder {encoder:,}, flow {flow - unused:,}, total {encoder + flow - unused:,}\n" in str(found)
    assert f"flow {flow:,}, total {encoder + flow:,})" in str(found)


def test_counts_are_those_of_the_model() -> None:
    overrides = {"steps": 2, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}
    model = sr_models.create("ncsr", noise_steps=(0, 1, 2), **overrides)
    found = sr_models.describe("ncsr", noise_steps=(0, 1, 2), **overrides)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert found.encoder_parameters + found.flow_parameters == count
    # a published file has a convolution for the features and two blocks, and noise networks in the other three steps
    networks = [9 * (half + 3) * 4 + 4 * 4 + 4 * 4 + 9 * 4 * 2 * half + 4 * half for half in (6, 6, 12)]
    unused = 96 * (64 * 3 * 9 + 1) + sum(networks)
    assert found.published_flow_parameters == found.flow_parameters + unused
    assert f"published files hold {unused:,} more that are never evaluated" in str(found)


def test_no_published_file_has_the_couplings_of_the_paper() -> None:
    found = sr_models.describe("srflow", preset="paper")
    assert found.published_flow_parameters is None
    assert "published" not in str(found)


def test_structure() -> None:
    levels = sr_models.describe("ncsr", scale=8).levels
    assert [level.reduction for level in levels] == [2, 4, 8, 16]
    assert [level.channels for level in levels] == [12, 24, 48, 192]
    assert [level.latents for level in levels] == [(6,), (12,), (), (192,)]
    assert [(level.transition_steps, level.steps, level.noise_steps) for level in levels] == [
        (2, 20, 0),
        (2, 20, 0),
        (2, 20, 16),
        (2, 20, 16),
    ]
    assert [level.latents for level in sr_models.describe("srflow-da-s", scale=8).levels] == [(96, 48, 24, 24)]


@pytest.mark.parametrize(
    ("name", "channels", "latents", "noise"),
    [
        ("srflow", [12, 48], [(), (48,)], [0, 0]),
        ("srflow-da", [12], [(12,)], [0]),
        ("srflow-da-s", [12], [(6, 6)], [0]),
        ("ncsr", [12, 48], [(), (48,)], [16, 16]),
    ],
)
def test_structure_at_scale_2(name: str, channels: list[int], latents: list[tuple[int, ...]], noise: list[int]) -> None:
    """The first level is at the low resolution, so there is no finer one to split off."""
    levels = sr_models.describe(name, scale=2).levels
    assert [level.channels for level in levels] == channels
    assert [level.latents for level in levels] == latents
    assert [level.noise_steps for level in levels] == noise


@pytest.mark.parametrize(
    ("name", "scale"),
    [("srflow", 2), ("srflow", 4), ("srflow", 8), ("srflow-da", 4), ("srflow-da-s", 2), ("srflow-da-s", 4)],
)
def test_multiply_adds_are_those_of_the_convolutions_that_run(name: str, scale: int) -> None:
    overrides = {"steps": 2, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}
    model = sr_models.create(name, scale=scale, **overrides)
    total = 0

    def count(conv: torch.nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += conv.weight.numel() * output.shape[2] * output.shape[3]

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    size = 2 * scale
    with torch.no_grad():
        model.eval().encode(torch.rand(1, 3, size, size), torch.rand(1, 3, 2, 2))
        model.encoder.image(torch.rand(1, 3, 2, 2))
    found = sr_models.describe(name, scale=scale, **overrides)
    mixing = sum(
        conv.weight.numel() / level.reduction**2
        for level, layers in zip(found.levels, model.levels, strict=True)
        for conv in layers.modules()
        if type(conv).__name__ == "InvertibleConv1x1"
    )
    expected = found.encoder_multiply_adds + found.unused_multiply_adds + found.flow_multiply_adds - mixing
    # the image was predicted on top, with a second run of everything that the flow needs of the encoder
    assert total / size**2 == pytest.approx(expected + found.encoder_multiply_adds)


def test_cost_of_the_published_model() -> None:
    """The 28.7 billion multiply-adds of the encoder for 160 x 160 pixels, of which the flow needs all but 1.9."""
    found = sr_models.describe("srflow", scale=4)
    assert (found.encoder_multiply_adds + found.unused_multiply_adds) * 160**2 == pytest.approx(28.7e9, abs=0.05e9)
    assert found.unused_multiply_adds * 160**2 == pytest.approx(1.9e9, abs=0.05e9)
    total = found.encoder_multiply_adds + found.unused_multiply_adds + found.flow_multiply_adds
    assert total == pytest.approx(3.29e6, abs=0.01e6)
