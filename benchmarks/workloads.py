"""Work of whole models: a training step, or samples, by our flow or by the published composition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

import sr_models
from benchmarks.gpu import tf32
from benchmarks.published import PublishedFlow, published
from invflow import ActNorm, FlowSequential, FlowStep, ZeroConv2d
from sr_models import SuperResolutionFlow
from sr_models.networks.precision import network_precision
from sr_models.networks.rrdb import RRDB
from sr_models.training.device_step import DeviceStep, fused_adam

__all__ = [
    "MODELS",
    "Variant",
    "Work",
    "Workload",
    "Workshop",
    "compiled_variants_of",
    "full_size_model",
    "variants_of",
    "workloads",
]

MODELS = ("srflow", "srflow-da", "ncsr")

Precision = Literal["fp32", "tf32", "bf16"]

#: A learning rate that leaves the weights where they are, to their last bits, so that variants stay comparable.
_RATE = 1e-9
#: Steps until a training step that may become a CUDA graph is one.
_WARM_UP = 5
#: At least as many codes of a layer as a model has kinds and sizes of layers; torch compiles 8 at most by default.
_KINDS_OF_LAYERS = 64

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
    """A computation to time, at scale 4.

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
            The published composition is in bfloat16 by ``torch.autocast``.
        option: "invert" trains with ``memory="invert"``; "graph" replays a CUDA graph; "compile" compiles every layer,
            and every block of the encoder, by ``torch.compile``. Those alike share their code.
    """

    flow: Literal["ours", "published"]
    precision: Precision
    option: Literal["", "invert", "graph", "compile"] = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.flow, self.precision, self.option) if part)

    @property
    def weights(self) -> str:
        """Name of the weights that it shares with others."""
        return f"{self.flow}-compile" if self.option == "compile" else self.flow


def workloads(device: str, *, tiny: bool = False) -> list[Workload]:
    """List what is measured on a kind of device.

    Args:
        device: "cpu" or "cuda".
        tiny: small models and images instead.
    """
    found = []
    for model in MODELS:
        if tiny:
            found += [Workload(model, "train", 2, (32, 32), tiny=True), Workload(model, "sample", 2, (8, 8), tiny=True)]
            continue
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


def compiled_variants_of(kind: str, device: str) -> list[Variant]:
    """List the variants with compiled layers, which take minutes to compile.

    Our samples are not among them: they apply inverses of layers, and ``torch.compile`` compiles calls.
    """
    flows = _FLOWS if kind == "train" else _FLOWS[:1]
    precisions = [variant.precision for variant in variants_of(kind, device) if variant.flow == "published"]
    return [Variant(flow, precision, "compile") for flow in flows for precision in precisions]


_FLOWS: tuple[Literal["published", "ours"], ...] = ("published", "ours")


@dataclass(frozen=True)
class Work:
    """One variant of a workload, ready to run.

    Attributes:
        call: does it once.
        check: computes what variants must agree in: the loss of a step, or the first sample.
        calls: number of such calls that the workload takes.
        warm_up: calls until it is as fast as it will be.
    """

    call: Callable[[], object]
    check: Callable[[], Tensor]
    calls: int = 1
    warm_up: int = 1


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
        flow = self._flow(variant)
        work = self._training(variant, flow) if self.workload.kind == "train" else self._sampling(variant, flow)
        if variant.option != "compile":
            return work
        limited = torch._dynamo.config.patch(recompile_limit=_KINDS_OF_LAYERS)
        return replace(work, call=limited(work.call), check=limited(work.check))

    def _flow(self, variant: Variant) -> nn.Module:
        if variant.weights not in self._flows:
            model = full_size_model(self.workload.model, tiny=self.workload.tiny)
            compiled = variant.option == "compile"
            if variant.flow == "published":
                made: nn.Module = published(model, compiled=compiled)
            else:
                made = _with_compiled_layers(model) if compiled else model
            self._flows[variant.weights] = made.to(self.device).train(self.workload.kind == "train")
        return self._flows[variant.weights]

    def _networks_of(self, variant: Variant) -> AbstractContextManager[object]:
        """Return a context in which networks compute in the variant's precision."""
        dtype = torch.bfloat16 if variant.precision == "bf16" else None
        if variant.flow == "ours":
            return network_precision(dtype, torch.device(self.device))
        return torch.autocast(self.device, dtype or torch.bfloat16, enabled=dtype is not None)

    def _random(self, *shape: int, seed: int) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _training(self, variant: Variant, flow: nn.Module) -> Work:
        encode = cast(SuperResolutionFlow | PublishedFlow, flow).encode
        number, (height, width) = self.workload.number, self.workload.size
        hr = self._random(number, 3, height, width, seed=1)
        lr = self._random(number, 3, height // 4, width // 4, seed=2)
        noise = 0.1 * self._random(number, 3, height, width, seed=3) if self.workload.model == "ncsr" else None
        batch = hr, lr, noise
        levels = [module for module in flow.modules() if isinstance(module, FlowSequential)]

        def loss(hr: Tensor, lr: Tensor, noise: Tensor | None) -> Tensor:
            for level in levels:
                level.memory = "invert" if variant.option == "invert" else "store"
            with self._networks_of(variant):
                return encode(hr, lr, noise).bits_per_dim.mean()

        def check() -> Tensor:
            # compiled code without gradients would be another
            with tf32(variant.precision == "tf32"), torch.set_grad_enabled(variant.option == "compile"):
                return loss(*batch).detach()

        if variant.flow == "published" or self.device == "cpu":
            step, warm_up = self._plain_step(variant, flow, lambda: loss(*batch)), 1
        else:
            step, warm_up = self._device_step(variant, flow, loss, batch), _WARM_UP

        def call() -> None:
            with tf32(variant.precision == "tf32"):
                step()

        return Work(call, check, warm_up=warm_up)

    def _plain_step(self, variant: Variant, flow: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], object]:
        if variant.weights not in self._optimizers:
            adam = torch.optim.Adam(flow.parameters(), lr=_RATE, fused=self.device == "cuda")
            self._optimizers[variant.weights] = adam
        optimizer = self._optimizers[variant.weights]

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return step

    def _device_step(
        self, variant: Variant, flow: nn.Module, loss: Callable[..., Tensor], batch: tuple[Tensor | None, ...]
    ) -> Callable[[], object]:
        """Make the step of ``sr-models train`` on a GPU, which also watches and clips the gradient's norm."""
        if variant.weights not in self._optimizers:
            self._optimizers[variant.weights] = fused_adam([list(flow.parameters())])
        step = DeviceStep(loss, self._optimizers[variant.weights], graph=variant.option == "graph")
        return lambda: step([batch], [_RATE])

    def _sampling(self, variant: Variant, flow: nn.Module) -> Work:
        lr = self._random(1, 3, *self.workload.size, seed=1)
        options: dict[str, Any] = {}
        if variant.flow == "ours":
            options["precision"] = "bf16" if variant.precision == "bf16" else "fp32"
            # by default the second call of a size makes a graph
            options["graph"] = variant.option == "graph"
        sample = cast(SuperResolutionFlow | PublishedFlow, flow).sample

        def draw(number: int) -> Tensor:
            with tf32(variant.precision == "tf32"), self._networks_of(variant):
                return sample(lr, number, **options)

        number = self.workload.number
        if variant.flow == "published":  # samples are equal, independent calls
            return Work(lambda: draw(1), lambda: draw(1), calls=number)
        return Work(lambda: draw(number), lambda: draw(1))


def _with_compiled_layers(model: SuperResolutionFlow) -> SuperResolutionFlow:
    """Compile every layer and every block of the encoder in place, as a user does who compiles what is repeated."""
    for module in model.modules():
        if isinstance(module, FlowSequential):
            for layer in module:
                layer.compile(dynamic=False)
        elif isinstance(module, RRDB):
            module.compile(dynamic=False)
    return model


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
