"""The package as a user gets it: built in isolation from the sources, without nvcc, installed elsewhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import run_python

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(*command, cwd=ROOT, **environment):
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=900)


def copy_sources(to):
    """Everything that belongs to the repository, and nothing that was built in it."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    assert listed.returncode == 0, listed.stderr
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def path_without(tool, tmp_path):
    """PATH, with a stand-in for every folder that holds ``tool``: links to everything else in it."""
    folders = []
    for position, folder in enumerate(map(Path, os.environ["PATH"].split(os.pathsep))):
        if (folder / tool).exists():
            stand_in = tmp_path / f"path{position}"
            stand_in.mkdir()
            for program in folder.iterdir():
                if program.name != tool:
                    (stand_in / program.name).symlink_to(program)
            folder = stand_in
        folders.append(str(folder))
    return os.pathsep.join(folders)


def build_wheel(source, to, **environment):
    """``pip wheel`` in pip's default build isolation."""
    return run(sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", str(to), str(source), **environment)


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
    done = build_wheel(sdist, base / "dist", PATH=path)
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
    assert "It needs a C++17 compiler, GCC or Clang; set CXX to name one." in done.stdout + done.stderr
    assert not list(tmp_path.glob("dist/*.whl"))
