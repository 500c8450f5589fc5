"""The extension of CUDA kernels: where it is built, that it imports without a GPU, what it says where it cannot run."""

import os
import shutil
import zipfile

import pytest
import torch
from packaging_tools import build_wheel, copy_sources, path_without, stand_in
from processes import run_python

import invflow
from invflow import channel_affine
from invflow.backends import _cuda, cuda

built = pytest.mark.skipif(cuda.extension is None, reason=f"the CUDA kernels are not built: {cuda.unavailable()}")
without_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")

IMPORT = """
import invflow._CUDA
maps = open("/proc/self/maps").read()
assert "libcudart" not in maps and "libcuda.so" not in maps, maps
print(invflow._CUDA.architectures)
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.skipif(os.environ.get("INVFLOW_CUDA", "auto").lower() == "off", reason="INVFLOW_CUDA=off")
def test_an_installation_for_development_has_the_module_where_nvcc_is():
    assert cuda.extension is not None, cuda.unavailable()


@built
def test_it_imports_without_driver_and_needs_no_library_of_cuda(tmp_path):
    # without torch, which brings the run time of its own
    package = tmp_path / "invflow"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(cuda.extension.__file__, package)
    done = run_python(IMPORT, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == cuda.extension.architectures


@built
def test_facts_of_the_build():
    facts = cuda.build_facts()
    assert facts["version"] == invflow.__version__, "the extension is older than the package: install again"
    assert facts["compiler"].startswith("nvcc ")
    assert facts["architectures"]


@built
@without_device
def test_without_a_device_the_reason_is_exact():
    with pytest.raises(RuntimeError) as caught:
        invflow.use_backend("cuda")
    assert str(caught.value) == "backend 'cuda' cannot run: torch finds no CUDA device"
    with pytest.raises(RuntimeError) as caught:
        channel_affine(torch.ones(1, 1, 1, 1), torch.ones(1, 1), torch.ones(1), backend="cuda")
    assert str(caught.value) == ("backend 'cuda' cannot run channel_affine: it needs tensors on a CUDA device, got cpu")


@built
@without_device
def test_an_error_of_cuda_names_kernel_shape_and_device():
    reason = cuda.extension.why_not(3)
    assert reason
    no_view, place = (0, 0, 0, 0, 0), (3, 0, 0)
    step = (2, 12, 64, no_view, 1, 1, [], [])
    with pytest.raises(RuntimeError) as caught:
        cuda.extension.flow_step(place, step, no_view, 0)
    assert str(caught.value) == (
        f"flow_step cannot run for a state of 2 samples, 12 channels and 64 pixels on CUDA device 3: {reason}"
    )


def test_a_missing_extension_is_the_reason(monkeypatch):
    monkeypatch.setattr(cuda, "extension", None)
    monkeypatch.setattr(cuda, "import_error", "no such file, says the test")
    reason = "the extension invflow._CUDA could not be imported (no such file, says the test)"
    assert cuda.unavailable() == cuda.why_not("flow_step", torch.ones(1, 1, 1, 1)) == reason
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "extension", object())
    monkeypatch.setattr(torch.version, "cuda", None)
    assert (
        cuda.unavailable()
        == cuda.why_not("flow_step", torch.ones(1, 1, 1, 1))
        == ("this PyTorch was not built with CUDA")
    )


class OnDevice:
    """As much of a tensor on a CUDA device as the choice of a backend looks at."""

    dtype, is_cuda = torch.float32, True

    def __init__(self, index, channels=12):
        self.device, self.shape = torch.device("cuda", index), (1, channels, 8, 8)

    def dim(self):
        return len(self.shape)


class Extension:
    compiler, architectures = "nvcc 0.1", "1-real"

    def __init__(self):
        self.asked = []

    def why_not(self, device):
        self.asked.append(device)
        return "it is too old" if device == 1 else ""

    def most_channels(self, device, dtype):
        return 300


@pytest.fixture
def extension(monkeypatch):
    found = Extension()
    monkeypatch.setattr(cuda, "extension", found)
    monkeypatch.setattr(_cuda, "_refusals", {})
    monkeypatch.setattr(_cuda, "_most_channels", {})
    return found


def test_a_device_that_cannot_run_the_kernels_is_asked_again(extension):
    """The reason may pass; that a device can run them stays true."""
    for _ in range(2):
        assert cuda.why_not("flow_step", OnDevice(1)) == (
            "cuda:1 cannot run kernels for 1-real made by nvcc 0.1: it is too old"
        )
        assert cuda.why_not("flow_step", OnDevice(0)) == ""
    assert extension.asked == [1, 0, 1]


def test_what_a_device_said_holds_while_compiling(extension, monkeypatch):
    said = [cuda.why_not("flow_step", OnDevice(index, channels=301)) for index in (0, 1)]
    assert all(said)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert [cuda.why_not("flow_step", OnDevice(index, channels=301)) for index in (0, 1)] == said
    assert cuda.why_not("flow_step", OnDevice(2)) == ""  # nobody knows
    assert extension.asked == [0, 1]


def test_more_channels_than_a_block_has_memory_for_are_refused(extension):
    assert cuda.why_not("flow_step", OnDevice(0, channels=300)) == ""
    for op in ("flow_step", "channel_affine"):
        reason = "cuda:0 has shared memory for 300 channels of torch.float32, got 301"
        assert cuda.why_not(op, OnDevice(0, channels=301)) == reason
    assert cuda.why_not("affine_coupling", OnDevice(0, channels=301)) == ""


def sources(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    return copy_sources(source)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["on", "perhaps"])
def test_a_build_that_cannot_be_had_says_what_to_set(tmp_path, choice):
    path = path_without("nvcc", tmp_path)
    done = build_wheel(sources(tmp_path), tmp_path / "dist", INVFLOW_CUDA=choice, PATH=path, CUDACXX="", CUDA_PATH="")
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert {
        "on": "INVFLOW_CUDA=on, but no working nvcc was found. Put nvcc on PATH or set CUDACXX to name it, or set "
        "INVFLOW_CUDA=auto to build without CUDA kernels.",
        "perhaps": "environment variable INVFLOW_CUDA must be auto, on or off, got 'perhaps'",
    }[choice] in output


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_cuda_kernels_that_do_not_compile_leave_the_rest(tmp_path):
    source = sources(tmp_path)
    broken = source / "csrc" / "cuda" / "sums.h"
    broken.write_text("#error of the test\n" + broken.read_text())
    compiler = stand_in(tmp_path / "c++", "of the CPU")
    done = build_wheel(source, tmp_path / "dist", INVFLOW_CUDA_ARCHS="80", CXX=str(compiler))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "the CUDA kernels could not be built, see the output above; going on without them" in done.stdout + done.stderr
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (extension,) = [name for name in names if name.startswith("invflow/_C.")]
        assert b"of the CPU" in file.read(extension)
    assert not [name for name in names if name.startswith("invflow/_CUDA")]
