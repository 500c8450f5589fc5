"""Flow steps on a GPU: kernels apart from the host, cold and warm caches, and a copy of as many bytes beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu import Replayed, device_seconds, host_seconds
from benchmarks.markdown import markdown
from benchmarks.spread import quartiles
from invflow.backends import KERNELS
from invflow.backends.protocol import Call, Settings
from invflow.ops import AffineForm, flow_step_reference

__all__ = ["OperatorCase", "OperatorResult", "call_once", "measure_operator", "operator_cases", "operators_table"]

#: The states of SRFlow 4x: a batch of 16 crops of 160 x 160 pixels, and one image of 1920 x 1080.
_SHAPES = (
    (16, 12, 80, 80),
    (16, 24, 40, 40),
    (16, 96, 20, 20),
    (1, 12, 540, 960),
    (1, 24, 270, 480),
    (1, 96, 135, 240),
)
_TINY_SHAPES = ((2, 12, 4, 4), (1, 24, 2, 3))

#: Least traffic in units of the state. A coupling's h has the size of the state, an injector's twice that. The backward
#: pass reads state, gradient and both h, and writes the gradients of the state and of both h.
_TRAFFIC = {"forward": 5, "inverse": 5, "backward": 9, "transition": 2}

#: Caches are cold if the buffers in turn are this many times as large as the L2.
_COLD = 4
_MOST_SETS = 48


@dataclass(frozen=True)
class OperatorCase:
    """A flow step of coupling, channel map and injector, at one size.

    Attributes:
        shape: (B, C, H, W) of the state.
        direction: "forward", "inverse", "backward", or "transition", which is forward without coupling and injector.
        dtype: name of the dtype of state and networks' outputs.
        layout: "contiguous" or "channels_last".
    """

    shape: tuple[int, int, int, int]
    direction: str
    dtype: str
    layout: str

    @property
    def name(self) -> str:
        return f"flow_step {'x'.join(map(str, self.shape))} {self.direction} {self.dtype} {self.layout}"

    @property
    def bytes(self) -> int:
        """Least traffic to and from memory."""
        return _TRAFFIC[self.direction] * math.prod(self.shape) * torch.empty(0, dtype=self._dtype).element_size()

    @property
    def _dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


def operator_cases(*, tiny: bool = False) -> Iterator[OperatorCase]:
    """Yield the cases, those in float32 and NCHW first."""
    for layout in ("contiguous", "channels_last"):
        for dtype in ("float32", "bfloat16"):
            for shape in _TINY_SHAPES if tiny else _SHAPES:
                for direction in _TRAFFIC:
                    yield OperatorCase(shape, direction, dtype, layout)


@dataclass(frozen=True)
class OperatorResult:
    """One implementation of one case.

    Attributes:
        case, implementation: names.
        cold, low, high: seconds of a call on data that no cache holds: median and quartiles of the rounds.
        warm: median seconds of a call on the same data again and again.
        host: seconds that it takes the host to queue a call.
        bytes: least traffic.
        copy: seconds of a copy that moves as many bytes, on cold data.
        difference: largest absolute difference to float64, relative to the largest result.
        error: why it could not be measured; all figures are then zero.
    """

    case: str
    implementation: str
    cold: float = 0.0
    low: float = 0.0
    high: float = 0.0
    warm: float = 0.0
    host: float = 0.0
    bytes: int = 0
    copy: float = 0.0
    difference: float = 0.0
    error: str = ""


class _Given(NamedTuple):
    """Arguments of one call.

    Attributes:
        call: those of the forward pass.
        grad_y, grad_log_det: gradients of its results.
    """

    call: Call
    grad_y: Tensor
    grad_log_det: Tensor


def measure_operator(
    case: OperatorCase, implementations: Sequence[str], device: str, rounds: int
) -> list[OperatorResult]:
    """Time the kernels of a case by CUDA graphs of many calls, all implementations and a copy in turn.

    Calls of a cold graph take turns on buffers that are together several times as large as the L2 cache.

    Args:
        case: what is computed.
        implementations: names of backends, or "compile" for ``torch.compile`` of the reference.
        device: "cuda", or "cpu" to see that it runs: calls are then made one by one.
        rounds: timed replays of every graph, at least 2.
    """
    sets = _sets_of(case, device)
    exact = _results(case, _as_double(sets[0]), "reference")
    graphs: dict[str, tuple[Replayed, Replayed]] = {}
    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for name in implementations:
        try:
            calls = [_bound(case, given, name) for given in sets]
            difference = max(map(_distance, calls[0](), exact))
            graphs[name] = Replayed(device, calls), Replayed(device, [calls[0]] * 10)
            for graph in graphs[name]:
                graph()
            found[name] = {"difference": difference, "host": host_seconds(calls[0], device)}
        except RuntimeError as error:
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    copies = _copies(case.bytes, len(sets), device)
    cold: dict[str, list[float]] = {name: [] for name in found}
    warm: dict[str, list[float]] = {name: [] for name in found}
    copied: list[list[float]] = [[] for _ in copies]
    for _ in range(rounds):
        for name in found:
            cold[name].append(device_seconds(graphs[name][0], device) / len(sets))
            warm[name].append(device_seconds(graphs[name][1], device) / 10)
        for times, graph in zip(copied, copies, strict=True):
            times.append(device_seconds(graph, device) / len(sets))
    copy = min(statistics.median(times) for times in copied)
    results = []
    for name in implementations:
        if name in failures:
            results.append(OperatorResult(case.name, name, error=failures[name]))
            continue
        low, median, high = quartiles(cold[name])
        warmed = statistics.median(warm[name])
        results.append(
            OperatorResult(case.name, name, median, low, high, warm=warmed, bytes=case.bytes, copy=copy, **found[name])
        )
    return results


def call_once(case: OperatorCase, implementation: str, device: str) -> None:
    """Make one call of a case, for a profiler that looks at every launch."""
    _results(case, _sets_of(case, device, most=1)[0], implementation)


def operators_table(results: Sequence[OperatorResult]) -> str:
    """Format a Markdown table. A share is the time of a copy of as many bytes over the time of the call."""
    head = "case | implementation | cold us | quartiles | GB/s | of copy | warm us | host us | difference"
    rows = []
    for r in results:
        cells = [r.case, r.implementation]
        if r.error:
            rows.append([*cells, r.error])
            continue
        cells += [
            f"{1e6 * r.cold:.1f}",
            f"{1e6 * r.low:.1f} to {1e6 * r.high:.1f}",
            f"{1e-9 * r.bytes / r.cold:.0f}",
            f"{r.copy / r.cold:.0%}",
            f"{1e6 * r.warm:.1f}",
            f"{1e6 * r.host:.0f}",
            f"{r.difference:.0e}",
        ]
        rows.append(cells)
    return markdown(head.split(" | "), rows)


def _sets_of(case: OperatorCase, device: str, most: int = _MOST_SETS) -> list[_Given]:
    """Make arguments of at most so many calls, as many as empty the caches between two calls on the same."""
    batch, channels, height, width = case.shape
    l2: int = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0
    count = min(max(math.ceil(_COLD * l2 / case.bytes), 2), most)
    torch.manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q.float().to(device)
    shift = torch.randn(channels, device=device)
    form = AffineForm().for_kernels()
    settings = Settings(form, form, channels // 2, case.direction == "inverse")

    def random(channels: int) -> Tensor:
        state = torch.randn(batch, channels, height, width, device=device).to(getattr(torch, case.dtype))
        return state.contiguous(memory_format=getattr(torch, f"{case.layout}_format", torch.channels_last))

    sets = []
    for _ in range(count):
        maps = case.direction != "transition"
        coupling, injector = (random(channels), random(2 * channels)) if maps else (None, None)
        call = Call(random(channels), matrix, shift, coupling, injector, settings)
        sets.append(_Given(call, random(channels), torch.randn(batch, device=device)))
    return sets


_TENSORS = ("x", "matrix", "shift", "coupling", "injector")


def _changed(call: Call, change: Callable[[Tensor], Tensor]) -> Call:
    tensors = {name: getattr(call, name) for name in _TENSORS}
    changed: dict[str, Any] = {name: None if tensor is None else change(tensor) for name, tensor in tensors.items()}
    return call._replace(**changed)


def _as_double(given: _Given) -> _Given:
    return _Given(_changed(given.call, Tensor.double), given.grad_y.double(), given.grad_log_det.double())


def _bound(case: OperatorCase, given: _Given, implementation: str) -> Callable[[], list[Tensor]]:
    return lambda: _results(case, given, implementation)


def _results(case: OperatorCase, given: _Given, implementation: str) -> list[Tensor]:
    """Compute the case once. Only kernels know a backward pass without the forward pass before it."""
    call = given.call
    if implementation in KERNELS:
        if case.direction != "backward":
            return list(KERNELS[implementation].flow_step(call))
        gradients = KERNELS[implementation].flow_step_backward(given.grad_y, given.grad_log_det, call)
        return [gradient for gradient in gradients if gradient is not None]
    plain = _compiled if implementation == "compile" else _reference
    if case.direction == "backward":
        return _differentiated(plain, given)
    with torch.no_grad():
        return list(plain(call))


def _reference(call: Call) -> tuple[Tensor, Tensor]:
    x, matrix, shift, coupling, injector, settings = call
    return flow_step_reference(x, matrix, shift, coupling, injector, start=settings.start, inverse=settings.inverse)


@cache
def _compiler() -> Callable[[Call], tuple[Tensor, Tensor]]:
    return torch.compile(_reference, dynamic=False)


def _compiled(call: Call) -> tuple[Tensor, Tensor]:
    return _compiler()(call)


def _differentiated(plain: Callable[[Call], tuple[Tensor, Tensor]], given: _Given) -> list[Tensor]:
    call = _changed(given.call, lambda tensor: tensor.detach().requires_grad_())
    with torch.enable_grad():
        results = plain(call)
    leaves = [tensor for tensor in call[:5] if tensor is not None]
    return list(torch.autograd.grad(results, leaves, [given.grad_y, given.grad_log_det]))


def _distance(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)).item()


def _copies(traffic: int, count: int, device: str) -> list[Replayed]:
    """Capture cold copies that move so many bytes: by the memory's own engine, and by a kernel."""
    pairs = [
        (torch.randn(max(traffic // 8, 1), device=device), torch.empty(max(traffic // 8, 1), device=device))
        for _ in range(count)
    ]
    by_engine = [lambda a=a, b=b: b.copy_(a) for a, b in pairs]
    by_kernel = [lambda a=a, b=b: torch.neg(a, out=b) for a, b in pairs]
    graphs = [Replayed(device, by_engine), Replayed(device, by_kernel)]
    for graph in graphs:
        graph()
    return graphs
