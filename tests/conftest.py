"""Setup of all tests: seeds, threads, poisoned kernel outputs, the header, the report of round-trip errors."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accuracy import ROUND_TRIP
from under_test import PTX, SLOW, kernels_on_cpu

from invflow import _numerics
from invflow.backends import _cuda, cpu, native, rows, triton


def pytest_report_header() -> str:
    reason = cpu.unavailable()
    kernels = f"not available: {reason}" if reason else f"instruction set {cpu.build_facts()['instruction set']}"
    return f"invflow: torch {torch.__version__}, {torch.get_num_threads()} threads, CPU kernels {kernels}"


def pytest_configure() -> None:
    torch.backends.cudnn.allow_tf32 = False  # networks on a GPU are to give what they give on the CPU
    if os.environ.get("INVFLOW_TEST_UNTUNED"):
        # Triton then compiles one configuration of every kernel and times none: hundreds of kernels, not thousands
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    # One thread here, in the workers of pytest-xdist and in the processes that tests start, unless the user wants more:
    # tensors are small.
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    # A script that starts the tests in the background lets them ignore Ctrl-C, and with them the processes that they
    # start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out files without tests of kernels where only those run: to import them takes ten seconds."""
    if SLOW and collection_path.is_file() and "each_kernels" not in collection_path.read_text(errors="ignore"):
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SLOW:
        # nothing else is to run with kernels that are a thousand times too slow
        others = [item for item in items if "kernels" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    worst: dict[str, tuple[float, str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for key, value in report.user_properties:
            if key.startswith(ROUND_TRIP):
                worst[key] = max(worst.get(key, (-1.0, "")), (value, report.nodeid))
    for key, (value, test) in sorted(worst.items()):
        terminalreporter.write_line(f"largest {key}: {value:.2e} in {test}")


class _PoisonedTorch(ModuleType):
    """The module ``torch`` as a backend sees it, with fresh memory full of NaN."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        memory = torch.empty(*args, **kwargs)
        return memory.fill_(math.nan if memory.is_floating_point() else 255)  # as bytes, a NaN too

    @staticmethod
    def empty_like(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.empty_like(*args, **kwargs).fill_(math.nan)


@pytest.fixture(scope="session", autouse=True)
def poisoned_kernel_outputs() -> Any:
    """Every buffer that a kernel writes holds NaN before: an element it leaves out cannot look right by accident."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (native, rows, _numerics, _cuda):
            patch.setattr(module, "torch", _PoisonedTorch())
        if PTX or not triton.unavailable():
            patch.setattr("invflow.backends.triton.operators.torch", _PoisonedTorch())
        if cpu.extension is not None:
            cpu.extension.know(_PoisonedTorch())
        yield
        if cpu.extension is not None:
            cpu.extension.know(torch)


@pytest.fixture(scope="session", autouse=True)
def chosen_kernels() -> Any:
    with kernels_on_cpu():
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Undo the number of threads that a test has set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
