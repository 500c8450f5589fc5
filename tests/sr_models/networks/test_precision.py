"""Which dtype networks compute in, and which calls it concerns."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from sr_models.networks.precision import network_dtype, network_precision, resolved, uses_matrix_units, uses_tf32

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_every_precision_is_a_dtype() -> None:
    assert [network_dtype(name, CPU) for name in ("fp32", "bf16", "fp16")] == [None, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_bfloat16_on_cpus_with_amx(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolved("auto", CPU) == ("bf16" if amx else "fp32")
    assert network_dtype("auto", CPU) is (torch.bfloat16 if amx else None)


@pytest.mark.parametrize("native", [False, True])
def test_auto_is_bfloat16_on_gpus_that_multiply_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # emulated bfloat16 is supported too, and slow
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolved("auto", CUDA) == ("bf16" if native else "fp32")


def test_auto_is_float32_on_other_devices() -> None:
    assert resolved("auto", torch.device("meta")) == "fp32"


@pytest.mark.parametrize("name", ["bfloat16", "BF16", "", "bf16-mixed"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"precision must be one of 'fp32', 'bf16', 'fp16', 'auto', got '{name}'"):
        network_dtype(name, CPU)


def test_only_models_in_float32_have_networks_in_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert network_dtype("fp32", CPU, dtype) is None
        assert network_dtype("auto", CPU, dtype) is None
    assert network_dtype("bf16", CPU, torch.bfloat16) is None
    for name, dtype in (("bf16", torch.float64), ("bf16", torch.float16), ("fp16", torch.bfloat16)):
        with pytest.raises(
            ValueError, match=f"precision must be 'fp32' or 'auto' for a model in {dtype}, got '{name}'"
        ):
            network_dtype(name, CPU, dtype)


def product() -> torch.dtype:
    """Return the dtype in which a convolution runs here."""
    return F.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)).dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_context_ends_where_it_ends(dtype: torch.dtype) -> None:
    with network_precision(dtype, CPU):
        assert product() is dtype
        with network_precision(None, CPU):
            assert product() is torch.float32
        assert product() is dtype
    assert product() is torch.float32


def test_threads_do_not_disturb_each_other() -> None:
    found: dict[torch.dtype | None, list[torch.dtype]] = {}
    together = threading.Barrier(3)

    def work(dtype: torch.dtype | None) -> None:
        with network_precision(dtype, CPU):
            together.wait()
            found[dtype] = [product()]
            together.wait()
        found[dtype].append(product())

    threads = [threading.Thread(target=work, args=[dtype]) for dtype in (None, torch.bfloat16, torch.float16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {
        None: [torch.float32] * 2,
        torch.bfloat16: [torch.bfloat16, torch.float32],
        torch.float16: [torch.float16, torch.float32],
    }


def test_a_device_without_autocast_has_one_precision() -> None:
    with network_precision(torch.bfloat16, torch.device("meta")):
        assert product() is torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_weight_is_remembered(dtype: torch.dtype) -> None:
    """A CUDA graph that is captured inside the context would read a copy that lives no longer than the context."""
    conv, x = torch.nn.Conv2d(1, 1, 1, bias=False), torch.ones(1, 1, 2, 2)
    with network_precision(dtype, CPU), torch.no_grad():
        before = conv(x)
        conv.weight.mul_(2)
        assert torch.equal(conv(x), 2 * before)


def test_tf32_is_known_from_older_and_newer_settings(set_precision: Callable[..., None]) -> None:
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        assert uses_tf32() == uses_matrix_units(CUDA) == allowed
    for precision in ("tf32", "ieee"):
        set_precision(precision, "ieee")
        assert uses_tf32() == (precision == "tf32")
    assert not uses_matrix_units(CPU)
