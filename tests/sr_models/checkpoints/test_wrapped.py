"""Weights are found where training code of others puts them, and what a file holds instead is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sr_models.checkpoints.convert import convert_published, write_published
from sr_models.checkpoints.files import read_file
from sr_models.checkpoints.published import encoder_layout
from sr_models.networks.rrdb import RRDBEncoder

BASICSR = {"RRDB_trunk.": "body.", ".RDB": ".rdb", "trunk_conv": "conv_body", "upconv": "conv_up", "HRconv": "conv_hr"}


@pytest.fixture
def encoder() -> RRDBEncoder:
    torch.manual_seed(0)
    return RRDBEncoder(scale=4, features=4, growth=2, blocks=2, stacked_blocks=())


def published(encoder: RRDBEncoder) -> dict[str, Tensor]:
    tensors = encoder.state_dict()
    return {name: tensors[own or ""] for name, (own, _) in encoder_layout(encoder).items()}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def basicsr(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for own, other in BASICSR.items():
            name = name.replace(own, other)
        renamed[name] = tensor
    assert set(renamed).isdisjoint(
        set(tensors) - {f"conv_{end}.{p}" for end in ("first", "last") for p in ("weight", "bias")}
    )
    return renamed


def zeros_like(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"params_ema": t},
        lambda t: {"params": zeros_like(t), "params_ema": t},
        lambda t: {"params": t},
        lambda t: {"state_dict": t, "epoch": 1, "optimizer": {"state": {}}},
        lambda t: prefixed("module.", t),
        lambda t: prefixed("_orig_mod.", t),
        lambda t: {"state_dict": prefixed("module._orig_mod.", t)},
        basicsr,
        lambda t: {"params_ema": basicsr(t)},
        lambda t: {"params": prefixed("module.", basicsr(t))},
    ],
)
def test_the_weights_inside(encoder: RRDBEncoder, tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = published(encoder)
    torch.save(wrap(tensors), tmp_path / "x.pth")
    convert_published(tmp_path / "x.pth", tmp_path / "x.safetensors")
    description, found = read_file(tmp_path / "x.safetensors")
    assert description == {"encoder": {"scale": 4, "features": 4, "growth": 2, "blocks": 2}}
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(found[name], tensor), name
    write_published(tmp_path / "x.safetensors", tmp_path / "back.pth")
    assert list(torch.load(tmp_path / "back.pth", weights_only=True)) == list(tensors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "best": 0.5}, r"it does not hold a state dict but 'epoch' \(int\), 'best' \(float\)$"),
        ({}, "it does not hold a state dict but an empty dict$"),
        ([1, 2], "it does not hold a state dict but a list$"),
        (torch.zeros(2), "it does not hold a state dict but a Tensor$"),
        (
            {"generator": {"a": torch.zeros(1)}, "discriminator": {"a": torch.zeros(1), "b": torch.zeros(1)}},
            r"but 'generator' \(a dict of 1 tensor\), 'discriminator' \(a dict of 2 tensors\)$",
        ),
        (
            {f"layer{i}.weight": torch.zeros(i, 3) for i in range(7)},
            r"neither a published super-resolution flow nor an RRDB encoder, "
            r"but 'layer0.weight' \(float32 tensor of shape \(0, 3\)\), .* and 3 more$",
        ),
        # another super-resolution network with a convolution of that name
        (
            {"params": {"conv_first.weight": torch.zeros(4, 3, 3, 3), "layers.0.norm.weight": torch.zeros(4)}},
            "neither a published super-resolution flow nor an RRDB encoder, but 'conv_first.weight'",
        ),
    ],
)
def test_other_contents_are_said(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"cannot read {tmp_path}/x.pth: .*{message}"):
        convert_published(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_an_encoder_of_other_inputs_is_not_taken_for_ours(encoder: RRDBEncoder, tmp_path: Path) -> None:
    """Real-ESRGAN's encoder at 2x takes images whose pixels were folded into 12 channels."""
    tensors = published(encoder)
    tensors["conv_first.weight"] = torch.zeros(4, 12, 3, 3)
    torch.save({"params_ema": basicsr(tensors)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"conv_first.weight has shape \(4, 12, 3, 3\), expected \(4, 3, 3, 3\)"):
        convert_published(tmp_path / "x.pth", tmp_path / "x.safetensors")
