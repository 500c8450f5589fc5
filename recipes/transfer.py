"""Turn an SRFlow-DA into an NCSR that computes the same: ``python -m recipes.transfer MODEL FILE``.

The preset ``tiny`` of NCSR is that of SRFlow-DA with noise-conditional layers. MODEL is a trained SRFlow-DA, a file or
``srflow-da-tiny``. FILE then has its likelihoods and samples, whatever the noise, and only the use of the noise is left
to be learned: ``python -m recipes.robust FILE PHOTOGRAPHS --output FOLDER``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import sr_models
from invflow import AffineCoupling, ZeroConv2d
from sr_models.checkpoints.files import read_weights, save_model
from sr_models.models.ncsr import NoiseConditionalStep

__all__ = ["with_noise"]


@torch.no_grad()
def with_noise(start: str | Path) -> sr_models.SuperResolutionFlow:
    """Return an NCSR, preset ``tiny``, that encodes and samples like a given SRFlow-DA, preset ``tiny``, in float32.

    The first layers of the noise networks wait for a first batch, as those of a new model do.

    Args:
        start: a file, or the name of a model that comes with the package.
    """
    model = sr_models.create("ncsr", preset="tiny")
    given = {name: tensor.float() for name, tensor in read_weights(start).tensors.items()}
    own = model.state_dict()
    noisy = {f"{name}." for name, module in model.named_modules() if isinstance(module, NoiseConditionalStep)}
    for name, tensor in given.items():
        target = next((name.replace(step, f"{step}step.", 1) for step in noisy if name.startswith(step)), name)
        own[target if target in own else name].copy_(tensor)
    for module in model.modules():
        if isinstance(module, NoiseConditionalStep) and module.noise is not None:
            _undo(module, module.noise)
    return model


def _undo(step: NoiseConditionalStep, noise: AffineCoupling) -> None:
    """Amplify what enters a noise-conditional layer by as much as the layer, in its first state, reduces it."""
    start = noise.start
    factor = 1 / float(torch.sigmoid(torch.tensor(2.0)) + noise.form.eps)
    step.step.conv1x1.weight[start:] *= factor
    # the injector's shifts come before its scales: y = (x + shift) scale
    for parameter in _last_layer(step):
        parameter[0::2][start:] *= factor


def _last_layer(step: NoiseConditionalStep) -> tuple[Tensor, Tensor]:
    injector = step.step.injector
    assert injector is not None
    *_, last = (module for module in injector.net.modules() if isinstance(module, ZeroConv2d))
    assert last.bias is not None
    return last.weight, last.bias


def main() -> None:
    """Read the command line, and write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="SRFlow-DA to begin with")
    parser.add_argument("file", type=Path, help="file to write, which ends in .safetensors")
    given = parser.parse_args()
    save_model(with_noise(given.model), given.file)


if __name__ == "__main__":
    main()
