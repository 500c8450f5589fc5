"""Decoding as a CUDA graph: thousands of launches become one, for batches of a shape that come again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from invflow.backends import current_backend
from invflow.layers import FactorStore
from invflow.layers.protocol import is_watched, watches_all
from invflow.ops._transforms import is_intercepted
from sr_models.flow.explosions import Watch
from sr_models.networks.precision import uses_tf32

__all__ = ["Decode", "GraphedDecoding", "check_graph", "has_room"]

#: Packages whose layers wait for nothing when they decode.
_KNOWN = ("torch", "invflow", "sr_models")

#: ``decode(latents, lr, watch)`` computes images; it takes the latents off their list.
Decode = Callable[[list[Tensor], Tensor, Watch], Tensor]


def check_graph(graph: bool | None, device: torch.device) -> None:
    """Raise ``ValueError`` if a graph is wanted of a device that has none."""
    if graph and device.type != "cuda":
        raise ValueError(f"graph must be None or False on {device.type}: CUDA graphs need a CUDA device, got True")


class GraphedDecoding(threading.local):
    """Decode batches, by a graph where one fits.

    One graph is kept, with the memory that it needs. It reads the present values of the weights. Other weights in
    their place, other modes or other settings of torch make a new one. A copy keeps none, and every thread has its own:
    two cannot use a graph's memory at once.
    """

    def __init__(self) -> None:
        self._last: Hashable = None
        self._store = FactorStore()
        self._graph: _Graph | None = None

    def __reduce__(self) -> tuple[type[GraphedDecoding], tuple[()]]:
        return GraphedDecoding, ()

    def __call__(
        self, model: nn.Module, decode: Decode, latents: list[Tensor], lr: Tensor, watch: Watch, graph: bool | None
    ) -> Tensor:
        """Return images (B M, 3, scale h, scale w), which belong to the caller.

        Args:
            model: whose weights ``decode`` uses.
            decode: computes the images; it waits for nothing.
            latents, lr: arguments of ``decode``.
            watch: looks at every layer's result.
            graph: make a graph at once; ``None``: for the second batch of a shape, in the main thread only, since what
                another thread does meanwhile could spoil it; ``False``: use none.

        Raises:
            RuntimeError: a graph is asked for, and something is computed that no graph can hold.
        """
        main = threading.current_thread() is threading.main_thread()
        if graph is False or not (graph or main) or not is_on_gpu(lr):
            return decode(latents, lr, watch)
        if _is_observed(model):
            if graph:
                raise RuntimeError(
                    "graph must be None or False while hooks or modes of torch watch the model, got True"
                )
            return decode(latents, lr, watch)
        key = _key(model, [*latents, lr], watch.clamp)
        if self._graph is not None and self._graph.key == key:
            return self._graph(latents, lr, watch)
        self._graph = None  # frees its memory first
        if key != self._last:
            # libraries choose and allocate what they need, and the store learns which factors are needed
            self._last, self._store = key, FactorStore()
            with self._store:
                images = decode(list(latents), lr, Watch(clamp=watch.clamp)) if graph else decode(latents, lr, watch)
            if not graph:
                return images
        # a capture that fails leaves torch's random generator of the device unusable: none that may fail is tried
        if not graph and not (_is_known(model) and has_room(lr.device)):
            return decode(latents, lr, watch)
        self._graph = _Graph(key, decode, latents, lr, watch.clamp, self._store)
        return self._graph(latents, lr, watch)


class _Graph:
    """A graph of the decoding of one shape.

    Attributes:
        key: what it was made for.
    """

    def __init__(
        self,
        key: Hashable,
        decode: Decode,
        latents: Sequence[Tensor],
        lr: Tensor,
        clamp: bool,
        store: FactorStore,
    ) -> None:
        self.key, self._store = key, store
        self._latents, self._lr = [latent.clone() for latent in latents], lr.clone()
        watch = Watch(clamp=clamp)
        self._graph = torch.cuda.CUDAGraph()
        with store, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._images = decode(list(self._latents), self._lr, watch)
            self._largest = torch.cat([each.largest for each in watch.seen])
        self._seen = [(each._replace(largest=each.largest[:0]), len(each.largest)) for each in watch.seen]
        self._pixels = watch.pixels

    def __call__(self, latents: list[Tensor], lr: Tensor, watch: Watch) -> Tensor:
        for own, given in zip([*self._latents, self._lr], [*latents, lr], strict=True):
            own.copy_(given, non_blocking=True)
        latents.clear()
        self._store.refresh()
        self._graph.replay()
        parts = self._largest.clone().split([count for _, count in self._seen])
        watch.add(
            [seen._replace(largest=part) for (seen, _), part in zip(self._seen, parts, strict=True)], self._pixels
        )
        return self._images.clone()


def is_on_gpu(lr: Tensor) -> bool:
    """Return whether images can be decoded by a graph of their own."""
    return lr.is_cuda and not torch.cuda.is_current_stream_capturing()


def has_room(device: torch.device) -> bool:
    """Return whether there is memory for a graph of what has just been computed, beside that of the computation."""
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return free + reserved - torch.cuda.memory_allocated(device) > 1.5 * reserved


def _is_known(model: nn.Module) -> bool:
    """Return whether the model consists of layers that are known to be no obstacle to a graph."""
    known = all(type(part).__module__.partition(".")[0] in _KNOWN for part in model.modules())
    return known and FactorStore.serves(model)


def _is_observed(model: nn.Module) -> bool:
    return is_intercepted() or watches_all() or any(map(is_watched, model.modules()))


def _key(model: nn.Module, tensors: Sequence[Tensor], clamp: bool) -> Hashable:
    """Return all that a graph depends on but for values in memory."""
    state = [*model.parameters(), *model.buffers()]
    device = tensors[0].device.type
    return (
        tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors),
        tuple((id(tensor), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) for tensor in state),
        tuple((id(module), module.training) for module in model.modules()),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        uses_tf32(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_inference_mode_enabled(),
        current_backend(),
        clamp,
    )
