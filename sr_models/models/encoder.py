"""The encoder of all models: built from a config, and recognised in published files."""

from __future__ import annotations

import re
from typing import cast

from torch import Tensor, nn

from sr_models.models.config import FlowConfig
from sr_models.models.publication import Shapes, find_convolution
from sr_models.networks.rrdb import RRDBEncoder

__all__ = ["detect_encoder", "encoder_of", "is_encoder", "published_encoder_name"]


def encoder_of(config: FlowConfig) -> RRDBEncoder:
    """Build the encoder that a model's config describes. That of a model with a base predicts the base at first."""
    encoder = RRDBEncoder(
        config.scale,
        features=config.features,
        growth=config.growth,
        blocks=config.blocks,
        stacked_blocks=config.stacked_blocks,
    )
    if config.base != "none":
        nn.init.zeros_(encoder.last_conv.weight)
        nn.init.zeros_(cast(Tensor, encoder.last_conv.bias))
    return encoder


def published_encoder_name(name: str) -> str:
    """Return the name of one of the encoder's parameters in the published file of an encoder alone."""
    if match := re.match(r"trunk\.(\d+)\.dense\.(\d+)\.convs\.(\d+)\.", name):
        block, dense, conv = map(int, match.groups())
        return f"RRDB_trunk.{block}.RDB{dense + 1}.conv{conv + 1}.{name[match.end() :]}"
    if match := re.match(r"upconvs\.(\d+)\.", name):
        return f"upconv{int(match[1]) + 1}.{name[match.end() :]}"
    return re.sub(r"^hr_conv\.", "HRconv.", re.sub(r"^last_conv\.", "conv_last.", name))


def is_encoder(shapes: Shapes) -> bool:
    """Tell whether a published file holds an encoder alone."""
    return "conv_first.weight" in shapes and "RRDB_trunk.0.RDB1.conv1.weight" in shapes


def detect_encoder(shapes: Shapes, prefix: str = "") -> dict[str, int]:
    """Return ``scale``, ``features``, ``growth`` and ``blocks`` of a published encoder.

    Args:
        shapes: names and shapes of a published file.
        prefix: what the names of the encoder's tensors begin with.

    Raises:
        ValueError: a file without an encoder.
    """
    return {
        "scale": 2 ** _count(shapes, rf"{prefix}upconv(\d+)\.weight"),
        "features": find_convolution(shapes, rf"{prefix}conv_first\.weight")[0],
        "growth": find_convolution(shapes, rf"{prefix}RRDB_trunk\.0\.RDB1\.conv1\.weight")[0],
        "blocks": _count(shapes, rf"{prefix}RRDB_trunk\.(\d+)\."),
    }


def _count(shapes: Shapes, pattern: str) -> int:
    """Count the numbers that occur in names that begin with the pattern."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})
