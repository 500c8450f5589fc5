"""Which kernels the tests of operators run: those of the CPU, and where there is a GPU its own.

In a process with ``TRITON_INTERPRET=1`` in its environment, Triton's kernels run in Triton's interpreter, and only the
tests of kernels are collected: ``TRITON_INTERPRET=1 python -m pytest``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings

from invflow.backends.triton import is_interpreting

INTERPRETED = is_interpreting()


@dataclass(frozen=True)
class Kernels:
    """A backend, and the device on which its tensors are."""

    backend: str
    device: str = "cpu"


KERNELS = (
    [Kernels("triton")]
    if INTERPRETED
    else [Kernels("cpu"), pytest.param(Kernels("triton", "cuda"), marks=pytest.mark.gpu)]
)

#: For every test that takes ``kernels``.
each_kernels = pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: f"{kernels.backend}-{kernels.device}")


def fuzz(examples: int) -> settings:
    """The same examples in every run: a failure here is a failure everywhere. Fewer in the slow interpreter."""
    return settings(max_examples=examples // 6 if INTERPRETED else examples, deadline=None, derandomize=True)
