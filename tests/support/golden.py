"""Fixtures made with the published implementations: arrays, options and state dicts."""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "data" / "golden"
#: More fixtures, too large to be kept with the code, may lie in the folder that this variable names.
MORE = os.environ.get("INVFLOW_GOLDEN", "")


#: Our float32 error against a float64 result may be twice that of plain PyTorch or of the published float32 run, plus a
#: few roundings of the largest value, since the order of additions differs.
FLOAT32_FLOOR = 16 * torch.finfo(torch.float32).eps

#: Factor of the last convolutions of the networks of full-size fixtures.
ZERO_CONV_GAIN = {"hcflow": 0.1}
OTHER_ZERO_CONV_GAIN = 0.25


@dataclass
class Golden:
    """One fixture: ``fixture["fwd/nll"]`` is an array as a tensor; float64 results stand under ``f64/``."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def expected(self, key: str, dtype: torch.dtype) -> Tensor:
        """The published result in the given dtype."""
        return self[f"f64/{key}" if dtype == torch.float64 else key]

    def section(self, prefix: str) -> dict[str, Tensor]:
        """All arrays whose key begins with the prefix, which is removed."""
        return {key.removeprefix(prefix): self[key] for key in self.arrays if key.startswith(prefix)}

    def latents(self, case: str, dtype: torch.dtype) -> list[Tensor]:
        """Published latents of a case, in encode order."""
        prefix = f"f64/{case}/eps_" if dtype == torch.float64 and f"f64/{case}/eps_0" in self.arrays else f"{case}/eps_"
        return [tensor.to(dtype) for _, tensor in sorted(self.section(prefix).items())]

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The published weights; those of full-size networks are made from their names."""
        if self.facts["full_size_procedural"]:
            name = self.facts["fixture"].removesuffix("_full")
            shapes = json.loads((FOLDER / "keys" / f"{name}.json").read_text())["state_dict"]
            weights = {key: procedural_weight(key, shape, self.facts["seed"]) for key, shape in shapes.items()}
            for key in weights:
                # the last convolution of a network, which has an output scale beside its weight
                network, _, kind = key.rpartition(".")
                if kind == "weight" and f"{network}.logs" in shapes:
                    weights[key] *= ZERO_CONV_GAIN.get(self.facts["model"], OTHER_ZERO_CONV_GAIN)
        else:
            weights = self.section("sd/")
        return {**weights, **self.section("sd_override/")}


def assert_agree(published: Tensor, runs: dict[str, Tensor], what: str, magnitude: float = 1.0) -> None:
    """Compare with a result published in float32 only.

    It, and ours of the ``cpu`` backend, must be close to ours in float64 (``exact``). They may err at most twice as
    much as plain PyTorch in float32 (``plain``), plus a floor. The floor is some roundings of the largest value, or of
    ``magnitude`` if larger terms cancel.
    """
    exact = runs["exact"].double()
    assert published.shape == exact.shape, what
    error = {
        name: (result.double() - exact).abs().max().item()
        for name, result in (("published", published), ("plain", runs["plain"]), ("cpu", runs["cpu"]))
    }
    floor = FLOAT32_FLOOR * max(magnitude, exact.abs().max().item())
    assert max(error["published"], error["cpu"]) <= 2 * error["plain"] + floor, (what, error)


def load_golden(name: str) -> Golden:
    """Read a fixture."""
    folder = next(folder for folder in (FOLDER, Path(MORE)) if (folder / f"{name}.npz").is_file())
    with np.load(folder / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return Golden(arrays, json.loads((folder / f"{name}.json").read_text()))


def available(*names: str) -> list[str]:
    """Those of the fixtures that are here."""
    return [name for name in names if any((Path(f) / f"{name}.npz").is_file() for f in (FOLDER, MORE))]


def procedural_weight(key: str, shape: list[int], seed: int) -> Tensor:
    """The weight that a full-size fixture has under this name: noise seeded by the name, scaled by what it is."""
    # the fixtures are defined by the legacy generator
    random = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    if key.endswith(("invconv.weight", "permute.weight")):
        channels = shape[0]
        permutation = np.eye(channels)[random.permutation(channels)]
        values = permutation + 0.3 * random.standard_normal(shape) / np.sqrt(channels)
    else:
        values = random.standard_normal(shape)
        if re.fullmatch(r"flowUpsamplerNet\.layers\.\d+\.actnorm\.logs", key):
            values = 0.15 + 0.05 * values
        elif key.endswith(".logs"):
            values = (0.1 if "actnorm" in key else 0.05) * values
        elif key.endswith("bias"):
            values = 0.1 * values
        else:
            gain = 1.0 if key.startswith("RRDB.") else 0.6
            values = gain / np.sqrt(np.prod(shape[1:])) * values
    return torch.from_numpy(values.astype(np.float32))
