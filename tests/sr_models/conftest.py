"""Setup of the tests of the super-resolution models."""

import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browser, page, screenshot  # noqa: F401
from hypothesis import settings

# No deadline, for a busy machine, and the same examples in every run: a failure here is a failure everywhere.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# Slice, index and shape of AlexNet's convolutions in the fixtures' key "net.slice<n>.<i>".
ALEXNET = {
    "slice1.0": (64, 3, 11, 11),
    "slice2.3": (192, 64, 5, 5),
    "slice3.6": (384, 192, 3, 3),
    "slice4.8": (256, 384, 3, 3),
    "slice5.10": (256, 256, 3, 3),
}


def procedural(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    gain = 1.2 / math.sqrt(math.prod(shape[1:])) if len(shape) == 4 else 0.05
    # The fixtures are defined by the legacy generator.
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape) * gain
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture
def set_precision() -> Iterator[Callable[..., None]]:
    """Return a function that sets the precision of cuDNN's convolutions, and of its RNNs, in the newer way."""
    cudnn: Any = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        pytest.skip("this version of torch has the older settings only")
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision

    def set_both(conv: str, rnn: str) -> None:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = conv, rnn

    yield set_both
    set_both(*before)


@pytest.fixture(scope="session")
def alexnet_weights():
    """The random AlexNet of the fixtures, under torchvision's names."""
    weights = {}
    for name, shape in ALEXNET.items():
        index = name.partition(".")[2]
        weights[f"features.{index}.weight"] = procedural(f"net.{name}.weight", shape)
        weights[f"features.{index}.bias"] = procedural(f"net.{name}.bias", shape[:1])
    return weights


@pytest.fixture(scope="session")
def linear_weights():
    """The linear weights published with LPIPS."""
    golden = np.load(Path(__file__).parents[1] / "data" / "golden" / "metrics.npz")
    keys = [f"lin{level}.model.1.weight" for level in range(5)]
    return {key: torch.from_numpy(golden[f"lpips_lin/{key}"]) for key in keys}


@pytest.fixture(scope="session")
def random_lpips(alexnet_weights, linear_weights):
    pytest.importorskip("lpips")
    from sr_models.evaluation.metrics import LPIPSDistance  # needs packages that machines with a GPU may lack

    return LPIPSDistance(alexnet_weights, linear_weights)
