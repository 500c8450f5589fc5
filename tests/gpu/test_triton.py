"""The Triton backend where its kernels cannot run: reasons, configurations, and in which precision they calculate."""

import re

import pytest
import torch
from processes import run_python

import invflow
from invflow.backends import triton

NO_DEVICE = (
    "torch finds no CUDA or ROCm device, and Triton's interpreter, which runs on the CPU, was not asked for "
    "(set TRITON_INTERPRET=1 before Python starts)"
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
x, matrix, shift = torch.ones(1, 2, 3, 3), torch.eye(2), torch.zeros(2)


@without_gpu
def test_use_backend_without_a_gpu_says_what_is_missing():
    with pytest.raises(RuntimeError) as caught:
        invflow.use_backend("triton")
    assert str(caught.value) == f"backend 'triton' cannot run: {NO_DEVICE}"
    assert invflow.current_backend() == "auto"


@without_gpu
def test_a_tensor_of_the_cpu_without_a_gpu():
    with pytest.raises(RuntimeError) as caught:
        invflow.channel_affine(x, matrix, shift, backend="triton")
    assert str(caught.value) == f"backend 'triton' cannot run channel_affine: {NO_DEVICE}"


def test_a_tensor_of_the_cpu_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with invflow.use_backend("triton"), pytest.raises(RuntimeError) as caught:
        invflow.channel_affine(x, matrix, shift)
    assert str(caught.value) == (
        "backend 'triton' cannot run channel_affine: it needs tensors on a CUDA or ROCm device, got cpu"
    )


def test_without_triton(monkeypatch):
    monkeypatch.setattr(triton, "_INSTALLED", False)
    with pytest.raises(RuntimeError, match=r"the package triton is not installed \(pip install triton\)"):
        invflow.use_backend("triton")


def test_dtypes_without_kernels(monkeypatch):
    class OnGpu:
        device, dtype = torch.device("cuda", 0), torch.float8_e4m3fn

    assert triton.why_not("flow_step", OnGpu()) == (
        "it needs float32, float64, bfloat16 or float16, got torch.float8_e4m3fn"
    )


INTERPRETED = """
import torch, invflow
x, matrix, shift = torch.randn(1, 2, 3, 3), torch.randn(2, 2), torch.randn(2)
assert invflow.ops.select_backend(None, "channel_affine", x) == "cpu"
expected = invflow.channel_affine(x, matrix, shift)
with invflow.use_backend("triton"):
    torch.testing.assert_close(invflow.channel_affine(x, matrix, shift), expected)
    try:
        invflow.channel_affine(x.to("meta"), matrix.to("meta"), shift.to("meta"))
    except RuntimeError as error:
        print(error)
"""


def test_the_interpreter_runs_when_asked_for_and_only_then():
    done = run_python(INTERPRETED.replace("invflow.ops.", "invflow.backends."), TRITON_INTERPRET="1")
    assert done.stdout.strip() == (
        "backend 'triton' cannot run channel_affine: under TRITON_INTERPRET=1 it needs tensors on the CPU, got meta"
    ), done.stderr


@pytest.mark.parametrize("lanes", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_launch_has_a_configuration(dtype, lanes):
    """At most six, of which the first is the same whatever was timed."""
    from invflow.backends.triton import tuning
    from tests.gates.compile_report import instances

    for channels in (1, 2, 8, 9, 12, 13, 16, 17, 24, 33, 48, 65, 96, 129, 192, 200, 257, 1000):
        shape = (2, channels, 4, 4)
        launched = [*instances.flow_step(shape, False, dtype), *instances.channel_affine(shape, dtype)]
        for inverse in (False, True):
            launched += instances.flow_step_backward(shape, inverse, dtype)
            launched += instances.affine_coupling(shape, inverse, dtype)
        for instance in launched:
            configurations = tuning.fitting(instance.kernel, instance.arguments, lanes)
            assert 1 <= len(configurations) <= 6, instance.name
            assert all(configuration.num_warps * lanes <= 1024 for configuration in configurations)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_calculates_in_float32(dtype):
    """In the compiler's first representation of each kernel, half numbers are loaded, converted, moved and stored."""
    from invflow.backends.triton.tuning import fitting
    from tests.gates.compile_report import compiling, instances

    target, half = compiling.TARGETS["sm_80"], getattr(torch, dtype)
    launched = [*instances.flow_step((2, 4, 8, 16), False, half), *instances.affine_coupling((2, 4, 8, 16), True, half)]
    launched += instances.flow_step_backward((2, 4, 8, 16), True, half)
    launched += [*instances.flow_step((2, 40, 8, 16), True, half)]
    launched += instances.flow_step_backward((2, 40, 8, 16), False, half)
    assert len({instance.kernel for instance in launched}) == len(compiling_kernels())
    for instance in launched:
        configuration = fitting(instance.kernel, instance.arguments, 32)[0]
        source = compiling.source_of(instance.kernel, instance.arguments, configuration, target)
        compiled, _ = compiling.compile_for(instance.kernel, source, target)
        short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
        used = {
            re.search(r"\b(?:arith|math|tt)\.\w+", line)[0]
            for line in compiled.asm["ttir"].splitlines()
            if re.search(rf"x{short}\b|: {short}\b", line) and re.search(r"\b(?:arith|math|tt)\.\w+", line)
        }
        moves = {"tt.load", "tt.store", "tt.func", "tt.splat", "tt.broadcast", "arith.constant", "arith.select"}
        assert used <= {*moves, "arith.extf", "arith.truncf"}, (instance.name, used)
        assert "arith.extf" in used, instance.name


def compiling_kernels():
    from invflow.backends.triton import tuning

    return tuning.CONFIGS
