"""The package as a user gets it: built in isolation from the sources, without nvcc, installed elsewhere."""

import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from packaging_tools import build_wheel, compiler_in_a_hurry, copy_sources, path_without, run
from processes import run_python
from third_party import data_files, unlicensed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    base = tmp_path_factory.mktemp("wheel")
    path = path_without("nvcc", base)
    assert shutil.which("nvcc", path=path) is None
    source = base / "source"
    source.mkdir()
    # from the source distribution, which must hold everything that the build needs
    done = run(sys.executable, "-m", "build", "--sdist", "--outdir", str(base / "sdist"), str(copy_sources(source)))
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = (base / "sdist").glob("invflow-*.tar.gz")
    done = build_wheel(sdist, base / "dist", PATH=path, CXX=str(compiler_in_a_hurry(base / "c++")))
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (base / "dist").glob("invflow-*.whl")
    return found


def test_wheel_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.startswith("invflow/_C") and name.endswith(".so")]
    for name in ("invflow/__init__.py", "invflow/py.typed", "sr_models/__init__.py", "sr_models/py.typed"):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    unwanted = [
        name for name in names if "__pycache__" in name or not name.startswith(("invflow/", "sr_models/", "invflow-"))
    ]
    assert not unwanted
    assert data_files(names)
    assert unlicensed(names) == []


STEP = """
import torch, invflow
layer = invflow.FlowStep(12, coupling=invflow.AffineCoupling(12, invflow.ZeroConv2d(6, 12)))
x = torch.randn(2, 12, 8, 8)
with invflow.use_backend("cpu"):
    z, log_det = layer(x)
    back, _ = layer.inverse(z)
assert (back - x).abs().max() < 1e-4
print(invflow.__file__)
"""


def test_installed_wheel_runs_its_kernels(wheel, tmp_path):
    target = tmp_path / "site"
    done = run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel))
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_python(STEP, cwd=tmp_path, PYTHONPATH=str(target))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(target)


def test_a_build_without_a_compiler_says_what_is_missing(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    done = build_wheel(copy_sources(source), tmp_path / "dist", CXX="/nonexistent")
    assert done.returncode != 0
    assert "invflow: building the native extension failed" in done.stdout + done.stderr
    assert (
        "It needs a C++17 compiler, GCC or Clang (apt install g++); set CXX to name one. "
        "INVFLOW_CPU=off installs without it, several times slower." in done.stdout + done.stderr
    )
    assert not list(tmp_path.glob("dist/*.whl"))


def test_without_kernels_it_runs_and_says_that_it_is_slow(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    # neither a compiler nor CMake is asked
    done = build_wheel(copy_sources(source), tmp_path / "dist", CXX="/nonexistent", INVFLOW_CPU="off")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("invflow-*.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    target = tmp_path / "site"
    done = run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel))
    assert done.returncode == 0, done.stdout + done.stderr
    # the tests' own editable installation would lend its kernels
    step = "import sys; sys.meta_path = [found for found in sys.meta_path if '__editable__' not in found.__module__]\n"
    step += STEP.replace('with invflow.use_backend("cpu"):', "if True:")
    done = run_python(step, cwd=tmp_path, PYTHONPATH=str(target))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(target)
    assert done.stderr.count("invflow runs plain PyTorch, up to six times slower than its kernels") == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"INVFLOW_CPU": "auto"}, "INVFLOW_CPU must be on or off, got 'auto'"),
        ({"INVFLOW_CPU": "off", "INVFLOW_CUDA": "on"}, "INVFLOW_CUDA=on cannot be had"),
    ],
)
def test_variables_that_cannot_be_met(tmp_path, variables, message):
    source = tmp_path / "source"
    source.mkdir()
    done = build_wheel(copy_sources(source), tmp_path / "dist", **variables)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
