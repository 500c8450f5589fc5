"""Models of anomalib with its copy of FrEIA's ``AllInOneBlock`` and with ours: anomaly maps and times."""

from __future__ import annotations

import copy
import functools
import importlib
import statistics
from collections.abc import Callable
from time import process_time
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.markdown import markdown

__all__ = ["measure_anomalib"]

_IMAGES = "anomalib.models.image."


def measure_anomalib(rounds: int) -> str:
    """Compare both blocks in FastFlow, U-Flow and CFlow on a ResNet-18 of random weights, and return a table.

    All parameters of the flows are moved, so that no global scale or offset is what it began as. The images are two of
    256x256. Ratios are medians of those of the rounds, by processor time.

    Args:
        rounds: at least 2.

    Raises:
        ModuleNotFoundError: anomalib or FrEIA is not installed.
    """
    from invflow.interop.freia import AllInOneBlock

    rows = []
    x = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    for name, (_, _, train) in _MODELS.items():
        theirs, ours = _pair(name)
        blocks = sum(isinstance(part, AllInOneBlock) for part in ours.modules())
        maps = [_map(model.eval(), x) for model in (theirs, ours)]
        difference, extent = (maps[0] - maps[1]).abs().max(), maps[0].max() - maps[0].min()
        row = [name, f"{blocks}", f"{float(difference):.0e}", f"{float(extent):.2f}"]
        for work in (train, _map):
            ratios = []
            for _ in range(rounds + 1):
                slow, fast = (_seconds(functools.partial(work, model, x)) for model in (theirs, ours))
                ratios.append(slow / fast)
            row.append(f"{statistics.median(ratios[1:]):.2f}")  # the first is a warm-up
        rows.append(row)
    return markdown(["model", "blocks", "difference of maps", "extent of maps", "training step", "maps"], rows)


def _pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Return a model with its own blocks and one with ours, of the same parameters."""
    from invflow.interop.freia import AllInOneBlock

    module, make, _ = _MODELS[name]
    torch.manual_seed(0)
    theirs = make()
    with mock.patch.object(importlib.import_module(_IMAGES + module), "AllInOneBlock", AllInOneBlock):
        ours = make()
    _move(theirs)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()), strict=True)
    return theirs, ours


def _fast_flow() -> nn.Module:
    from anomalib.models.image.fastflow.torch_model import FastflowModel

    made: nn.Module = FastflowModel((256, 256), "resnet18", pre_trained=False, flow_steps=8)
    return made


def _u_flow() -> nn.Module:
    import timm
    from anomalib.models.image.uflow.torch_model import UflowModel

    create = timm.create_model
    with mock.patch.object(
        timm, "create_model", lambda *given, **rest: create(*given, **{**rest, "pretrained": False})
    ):
        made: nn.Module = UflowModel((256, 256), backbone="resnet18")
    return made


def _c_flow() -> nn.Module:
    from anomalib.models.image.cflow.torch_model import CflowModel

    layers = ["layer2", "layer3", "layer4"]
    made: nn.Module = CflowModel("resnet18", layers, pre_trained=False, fiber_batch_size=64)
    return made


@torch.no_grad()
def _move(model: nn.Module) -> None:
    """Move every parameter of the blocks but their permutations, which stay what they are."""
    for part in model.modules():
        if hasattr(part, "global_scale"):
            for parameter in part.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * parameter.std(correction=0).clamp_min(0.1) * torch.randn_like(parameter))


@torch.no_grad()
def _map(model: nn.Module, x: Tensor) -> Tensor:
    result: Any = model.eval()(x)
    found: Tensor = getattr(result, "anomaly_map", result)
    return found


def _train(model: nn.Module, x: Tensor) -> None:
    """Run a training step of a model that returns latents and log-determinants while it trains."""
    model.train().zero_grad()
    latents, log_dets = model(x)
    pairs = zip(latents, log_dets, strict=True) if isinstance(log_dets, list) else [(latents, log_dets)]
    total = torch.zeros(())
    for z, log_det in pairs:
        each = [z] if isinstance(z, Tensor) else z
        total = total + (0.5 * sum(one.square().flatten(1).sum(1) for one in each) - log_det).mean()
    total.backward()


def _train_decoders(model: nn.Module, x: Tensor) -> None:
    """Run a training step of CFlow's decoders on 64 vectors each, as its fibers are."""
    model.zero_grad()
    decoders: Any = model.decoders
    for decoder in decoders:
        (width,), ((condition,), *_) = decoder.shapes[0], decoder.module_list[0].dims_c
        generator = torch.Generator().manual_seed(2)
        vectors, places = (torch.randn(64, size, generator=generator) for size in (width, condition))
        z, log_det = decoder(vectors, [places])
        (0.5 * z.square().sum(1) - log_det).mean().backward()


def _seconds(call: Callable[[], Any]) -> float:
    start = process_time()
    call()
    return process_time() - start


#: Module that has the name of the block, the model, and a training step.
_MODELS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[nn.Module, Tensor], None]]] = {
    "FastFlow": ("fastflow.torch_model", _fast_flow, _train),
    "U-Flow": ("uflow.torch_model", _u_flow, _train),
    "CFlow": ("cflow.utils", _c_flow, _train_decoders),
}
