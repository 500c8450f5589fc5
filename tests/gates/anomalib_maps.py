"""Anomaly maps and times of anomalib's models, with FrEIA's block and with ours.

It needs ``pip install anomalib`` (2.7 was tried), which is not among the tests' packages because it is large. Networks
have random weights, and so have the flows: every parameter is moved, global scales too. Both models of a pair have the
same. Times are of one thread of the processor, both models in turn. CS-Flow has a coupling of its own.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from invflow.interop.freia import AllInOneBlock

#: Model -> the module that builds it, and the module whose AllInOneBlock it uses.
PLACES = {
    "FastFlow": ("anomalib.models.image.fastflow.torch_model", "anomalib.models.image.fastflow.torch_model"),
    "U-Flow": ("anomalib.models.image.uflow.torch_model", "anomalib.models.image.uflow.torch_model"),
    "CFlow": ("anomalib.models.image.cflow.torch_model", "anomalib.models.image.cflow.utils"),
}


def build(name: str) -> Any:
    """Build a model over a ResNet-18 without trained weights."""
    module: Any = importlib.import_module(PLACES[name][0])
    if name == "FastFlow":
        return module.FastflowModel((256, 256), "resnet18", pre_trained=False, flow_steps=8)
    if name == "U-Flow":
        return module.UflowModel((256, 256), backbone="resnet18")
    layers = ["layer2", "layer3", "layer4"]
    return module.CflowModel("resnet18", layers=layers, pre_trained=False, fiber_batch_size=64)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Return a model with FrEIA's block, and one with ours, of the same weights."""
    timm: Any = importlib.import_module("timm")

    create = timm.create_model
    with mock.patch.object(
        timm, "create_model", lambda *given, **more: create(*given, **{**more, "pretrained": False})
    ):
        torch.manual_seed(0)
        theirs = build(name)
        with mock.patch.object(importlib.import_module(PLACES[name][1]), "AllInOneBlock", AllInOneBlock):
            torch.manual_seed(0)
            ours = build(name)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "feature_extractor" not in key and "encoder" not in key and parameter.is_floating_point():
                # a flow that is moved too far gives the same map everywhere
                parameter.add_((0.1 if "global" in key else 0.01) * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert sum(type(module) is AllInOneBlock for module in ours.modules()) > 1
    assert not any(type(module) is AllInOneBlock for module in theirs.modules())
    return theirs, ours


def anomaly_map(model: nn.Module, images: Tensor) -> Tensor:
    """Return the map of a model in evaluation mode."""
    model.eval()
    with torch.no_grad():
        result = model(images)
    found: Tensor = getattr(result, "anomaly_map", result)
    return found


def training_step(model: nn.Module, images: Tensor) -> None:
    """Compute the gradients of what anomalib minimises: the flow's negative log-likelihood."""
    model.train()
    hidden, jacobians = model(images)
    loss = sum(
        (0.5 * z.flatten(1).square().sum(1) - jac).mean() for z, jac in zip(hidden, listed(jacobians), strict=False)
    )
    loss.backward()
    model.zero_grad()


def listed(jacobians: Any) -> list[Tensor]:
    """Return log-determinants as a list, of one or of several flows."""
    return list(jacobians) if isinstance(jacobians, (list, tuple)) else [jacobians]


def ratio(models: tuple[nn.Module, nn.Module], call: Callable[[nn.Module], object], rounds: int) -> float:
    """Return how many times as fast the second model is, as the median of rounds after a first one."""
    ratios = []
    for _ in range(rounds + 1):
        seconds = []
        for model in models:
            begun = process_time()
            call(model)
            seconds.append(process_time() - begun)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])


def keep_features(model: nn.Module, images: Tensor) -> None:
    """Let the network that extracts features return what it makes of these images, without computing it again."""
    name = next(name for name in ("feature_extractor", "encoder") if hasattr(model, name))
    extractor, kept = getattr(model, name), []
    handle = extractor.register_forward_hook(lambda module, given, result: kept.append(result))
    anomaly_map(model, images)
    handle.remove()
    extractor.forward = lambda *given, **more: dict(kept[0]) if isinstance(kept[0], dict) else kept[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the measurement, after one that does not count")
    parser.add_argument("--batch", type=int, default=8, help="images at a time")
    given = parser.parse_args()
    rounds, batch = given.rounds, given.batch
    try:
        importlib.import_module("anomalib")
    except ModuleNotFoundError:
        print("anomalib is not installed: pip install anomalib", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    print("| model | difference of maps | range of the map | inference | of flows | training step | of flows |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    worst = 0.0
    for name in PLACES:
        models, images = pair(name), torch.rand(batch, 3, 256, 256)
        theirs, ours = (anomaly_map(model, images) for model in models)
        difference = float((theirs - ours).abs().max())
        worst = max(worst, difference)
        infer, train = partial(anomaly_map, images=images), partial(training_step, images=images)
        whole = [ratio(models, infer, rounds), float("nan") if name == "CFlow" else ratio(models, train, rounds)]
        for model in models:
            keep_features(model, images)
        # CFlow trains by vectors, in a loop of anomalib's own
        flows = [ratio(models, infer, rounds), float("nan") if name == "CFlow" else ratio(models, train, rounds)]
        times = [f"{value:.2f}" for pair_ in zip(whole, flows, strict=True) for value in pair_]
        span = f"{float(theirs.min()):.2f} to {float(theirs.max()):.2f}"
        print(f"| {name} | {difference:.1e} | {span} | {' | '.join(times)} |", flush=True)
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
