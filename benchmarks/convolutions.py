"""``python -m benchmarks.convolutions``: the convolutions of SRFlow 4x by :func:`invflow.ops.conv3x3` and by PyTorch.

Calls alternate, so that none finds its data in the cache, and are timed in seconds of the processor, on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.markdown import markdown
from invflow.backends import conv3x3 as kernels

#: Batch, inputs, outputs, height and width, repetitions of a pixel: dense blocks, conditions and couplings of a
#: training step of two crops of 160 x 160, then of a sample of 256 x 256.
SHAPES = (
    (2, 64, 32, 40, 1),
    (2, 128, 32, 40, 1),
    (2, 192, 64, 40, 1),
    (2, 320, 64, 40, 1),
    (2, 320, 64, 20, 1),
    (2, 64, 64, 80, 1),
    (2, 64, 24, 80, 1),
    (2, 256, 64, 40, 2),
    (1, 192, 64, 64, 1),
    (1, 320, 64, 64, 1),
    (1, 64, 64, 128, 1),
    (1, 256, 64, 64, 2),
)
_ROUNDS = 9


def _calls(batch: int, inputs: int, outputs: int, size: int, repeat: int) -> dict[str, Callable[[], object]]:
    """Return, by name, PyTorch's and our forward and backward pass."""
    x = torch.randn(batch, inputs, size, size).to(memory_format=torch.channels_last)
    grad = torch.randn(batch, outputs, repeat * size, repeat * size).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(outputs, inputs, 3, 3), torch.randn(outputs)
    enlarged = repeat > 1
    # repetition and convolution together are a transposed convolution
    kernel = torch.randn(inputs, outputs, repeat + 2, repeat + 2) if enlarged else weight
    strides = [repeat, repeat]

    def forward() -> object:
        if enlarged:
            return F.conv_transpose2d(x, kernel, bias, stride=repeat, padding=1)
        return F.conv2d(x, kernel, bias, padding=1)

    def backward() -> object:
        return torch.ops.aten.convolution_backward(
            grad, x, kernel, None, strides, [1, 1], [1, 1], enlarged, [0, 0], 1, [True, True, False]
        )

    def our_backward() -> object:
        return kernels.conv3x3(grad, weight, None, repeat, True), kernels.weight_gradient(x, grad, repeat)

    return {
        "forward": forward,
        "our forward": lambda: kernels.conv3x3(x, weight, bias, repeat, False),
        "backward": backward,
        "our backward": our_backward,
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        calls = _calls(*shape)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_ROUNDS + 1):
            for name, call in calls.items():
                start = time.process_time()
                call()
                times[name].append(time.process_time() - start)
        median = {name: statistics.median(found[1:]) for name, found in times.items()}
        batch, inputs, outputs, size, repeat = shape
        row = [f"{batch} x {inputs} -> {outputs}", f"{size} x {size}", str(repeat)]
        for name in ("forward", "backward"):
            theirs, ours = median[name], median[f"our {name}"]
            row += [f"{1e3 * theirs:.2f}", f"{1e3 * ours:.2f}", f"{theirs / ours:.2f}"]
        rows.append(row)
    head = ["batch x channels", "pixels", "repeat", "forward, ms", "ours", "ratio", "backward, ms", "ours", "ratio"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
