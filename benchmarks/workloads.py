"""Work of whole models: a training step, or samples, by our flow or by the published composition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

import sr_models
from benchmarks.gpu import Replayed, tf32
from benchmarks.published import PublishedFlow, published
from invflow import ActNorm, FlowSequential, FlowStep, ZeroConv2d
from sr_models import SuperResolutionFlow

__all__ = ["MODELS", "Variant", "Work", "Workload", "Workshop", "full_size_model", "variants_of", "workloads"]

MODELS = ("srflow", "srflow-da", "ncsr")

Precision = Literal["fp32", "tf32", "bf16"]

#: Settings of models that are small enough to see that a command runs.
_TINY: dict[str, Any] = {
    "steps": 2,
    "hidden_channels": 8,
    "features": 8,
    "growth": 4,
    "blocks": 2,
    "stacked_blocks": (0, 1),
}


@dataclass(frozen=True)
class Workload:
    """What is computed, at scale 4.

    Attributes:
        model: name of a registered model.
        kind: "train" is a step of forward, backward and Adam; "sample" draws samples of one image.
        number: images of a step, or samples.
        size: height and width, of the high-resolution crops of a step, or of the low-resolution image.
        tiny: a small model instead of the released one.
    """

    model: str
    kind: Literal["train", "sample"]
    number: int
    size: tuple[int, int]
    tiny: bool = False

    @property
    def name(self) -> str:
        return f"{self.model} {self.kind} {self.number} of {self.size[0]}x{self.size[1]}"


@dataclass(frozen=True)
class Variant:
    """A way to compute it.

    Attributes:
        flow: "ours", or "published" for :class:`benchmarks.published.PublishedFlow`.
        precision: "fp32"; "tf32" for matrix products of float32 numbers on a GPU; "bf16" for networks in bfloat16.
            The published composition has its networks' precision by ``torch.autocast``.
        option: "invert" trains with ``memory="invert"``; "graph" replays a CUDA graph.
    """

    flow: Literal["ours", "published"]
    precision: Precision
    option: Literal["", "invert", "graph"] = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.flow, self.precision, self.option) if part)


def workloads(device: str, *, tiny: bool = False) -> list[Workload]:
    """List what is measured on a kind of device.

    Args:
        device: "cpu" or "cuda".
        tiny: small models and images instead.
    """
    if tiny:
        return [
            Workload(model, kind, 2, (32, 32) if kind == "train" else (8, 8), tiny=True)
            for model in MODELS
            for kind in cast(tuple[Literal["train", "sample"], ...], ("train", "sample"))
        ]
    found = []
    for model in MODELS:
        found.append(Workload(model, "train", 2 if device == "cpu" else 16, (160, 160)))
        found += [Workload(model, "sample", number, (64, 64)) for number in (1, 10, 1000)]
        if device == "cuda":
            found.append(Workload(model, "sample", 1, (270, 480)))
    return found


def variants_of(kind: str, device: str) -> list[Variant]:
    """List the ways to compute a kind of work on a kind of device, the published one in float32 first."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if device == "cpu" else ("fp32", "tf32", "bf16")
    found = [Variant(flow, precision) for flow in _FLOWS for precision in precisions]
    if kind == "train":
        found += [Variant("ours", precision, "invert") for precision in precisions]
    if device == "cuda":
        found += [Variant("ours", precision, "graph") for precision in precisions]
    return found


_FLOWS: tuple[Literal["published", "ours"], ...] = ("published", "ours")


@dataclass(frozen=True)
class Work:
    """One variant of a workload, ready to run.

    Attributes:
        call: does it once.
        check: computes what variants must agree in: the loss of a step, or the first sample.
        calls: number of such calls that the workload takes.
    """

    call: Callable[[], object]
    check: Callable[[], Tensor]
    calls: int = 1


@dataclass
class Workshop:
    """Models, batches and optimizers of one workload, which its variants share.

    Attributes:
        workload: what is computed.
        device: "cpu" or "cuda".
    """

    workload: Workload
    device: str
    _flows: dict[str, nn.Module] = field(default_factory=dict)
    _optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)

    def work(self, variant: Variant) -> Work:
        """Prepare a variant. Training steps of a flow, of whatever variant, go on from the same weights."""
        flow = self._flow(variant.flow)
        if self.workload.kind == "train":
            return self._training(variant, flow)
        return self._sampling(variant, flow)

    def _flow(self, kind: str) -> nn.Module:
        if kind not in self._flows:
            model = full_size_model(self.workload.model, tiny=self.workload.tiny)
            made = published(model) if kind == "published" else model
            self._flows[kind] = made.to(self.device).train(self.workload.kind == "train")
        return self._flows[kind]

    def _random(self, *shape: int, seed: int) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _training(self, variant: Variant, flow: nn.Module) -> Work:
        encode = cast(SuperResolutionFlow | PublishedFlow, flow).encode
        optimizer = self._optimizers.get(variant.flow)
        if optimizer is None:
            on_gpu = self.device == "cuda"
            # a rate that leaves the weights where they are, to their last bits, so that variants stay comparable
            optimizer = torch.optim.Adam(flow.parameters(), lr=1e-9, fused=on_gpu, capturable=on_gpu)
            self._optimizers[variant.flow] = optimizer
        number, (height, width) = self.workload.number, self.workload.size
        hr, lr = (
            self._random(number, 3, height, width, seed=1),
            self._random(number, 3, height // 4, width // 4, seed=2),
        )
        noise = 0.1 * self._random(number, 3, height, width, seed=3) if self.workload.model == "ncsr" else None
        levels = [module for module in flow.modules() if isinstance(module, FlowSequential)]

        def loss() -> Tensor:
            for level in levels:
                level.memory = "invert" if variant.option == "invert" else "store"
            with _networks_in(variant, self.device):
                return encode(hr, lr, noise).bits_per_dim.mean()

        def step() -> None:
            with tf32(variant.precision == "tf32"):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()

        def check() -> Tensor:
            with tf32(variant.precision == "tf32"), torch.no_grad():
                return loss()

        return Work(Replayed(self.device, [step]) if variant.option == "graph" else step, check)

    def _sampling(self, variant: Variant, flow: nn.Module) -> Work:
        lr = self._random(1, 3, *self.workload.size, seed=1)
        sample: Any = cast(SuperResolutionFlow | PublishedFlow, flow).sample
        options = {"graph": True} if variant.option == "graph" else {}

        def draw(number: int) -> Tensor:
            with tf32(variant.precision == "tf32"), _networks_in(variant, self.device):
                drawn = sample(lr, number, **options)
                assert isinstance(drawn, Tensor)
                return drawn

        number = self.workload.number
        if variant.flow == "published":  # samples are equal, independent calls
            return Work(lambda: draw(1), lambda: draw(1), calls=number)
        return Work(lambda: draw(number), lambda: draw(1))


def _networks_in(variant: Variant, device: str) -> torch.autocast:
    """Compute networks in the variant's precision."""
    return torch.autocast(device, torch.bfloat16, enabled=variant.precision == "bf16")


def full_size_model(name: str, *, tiny: bool = False) -> SuperResolutionFlow:
    """Return a 4x model with every part away from its initial identity, and states of moderate size.

    Args:
        name: name of a registered model.
        tiny: few channels and steps instead of the released ones.
    """
    torch.manual_seed(0)
    noisy = {"noise_steps": (0, 1, 1)} if tiny and name == "ncsr" else {}
    model = sr_models.create(name, scale=4, **({**_TINY, **noisy} if tiny else {}))
    with torch.no_grad():
        for module in model.levels.modules():
            if isinstance(module, ZeroConv2d):
                module.weight.normal_(std=0.003)
            if isinstance(module, ActNorm):
                module.bias.normal_(std=0.05)
                module.log_scale.normal_(std=0.05)
                module.mark_initialized()
        for module in model.levels.modules():
            if isinstance(module, FlowStep):
                module.actnorm.log_scale.add_(0.2)  # makes up for the couplings' scales, which are less than 1
    return model.eval()
