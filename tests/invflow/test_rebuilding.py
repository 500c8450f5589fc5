"""Builds after other builds: again, moved, copied, interrupted, with other tools. A stand-in compiles nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging_tools import copy_sources, path_without, run, stand_in

pytestmark = pytest.mark.slow

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
OTHER = ".cpython-39-other.so"


@dataclass
class Checkout:
    """A source tree, a compiler, and an environment to install it in."""

    tree: Path
    compiler: Path
    python: Path

    def pip(self, *arguments: str, isolated: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments, "--no-deps", "-v"]
        if not isolated:
            command += ["--no-build-isolation", "--no-index"]
        variables = {"CXX": str(self.compiler), "INVFLOW_CUDA": "off", "PYTHONPATH": "", **environment}
        return run(*command, cwd=self.tree, **variables)

    def install(self, *arguments: str, **options: object) -> None:
        done = self.pip("install", *arguments, **options)
        assert done.returncode == 0, done.stdout + done.stderr

    def wheel(self, **options: object) -> dict[str, bytes]:
        """The extensions in the wheel, and the names of everything else in it."""
        to = self.python.parents[1] / "wheels"
        shutil.rmtree(to, ignore_errors=True)
        done = self.pip("wheel", "-w", str(to), ".", **options)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = to.glob("invflow-*.whl")
        with zipfile.ZipFile(path) as file:
            return {name: file.read(name) if name.endswith(".so") else b"" for name in file.namelist()}

    def compiled(self, compiler: Path | None = None) -> list[str]:
        """The sources that were compiled since this was last asked."""
        log = (compiler or self.compiler).with_suffix(".log")
        names = [Path(line[6:].strip()).name for line in log.read_text().splitlines() if line.startswith("begin ")]
        log.write_text("")
        return sorted(names)

    def installed(self) -> Path:
        """The folder of the installed package, as an interpreter elsewhere sees it."""
        code = "import importlib.util as util; print(util.find_spec('invflow').submodule_search_locations[0])"
        done = run(str(self.python), "-c", code, cwd=self.python.parent, PYTHONPATH="")
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def built(self) -> set[str]:
        return {path.name for path in (self.tree / "invflow").glob("*.so")}


@pytest.fixture
def checkout(tmp_path):
    tree = tmp_path / "Quellen, möglichst übersichtlich"
    tree.mkdir()
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/*/site-packages")
    (site / "tools.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Checkout(copy_sources(tree), stand_in(tmp_path / "c++", "first"), environment / "bin" / "python")


def test_an_editable_build_again_compiles_what_changed(checkout):
    checkout.install("-e", ".")
    everything = checkout.compiled()
    assert {
        "bindings.cpp",
        "conv3x3.cpp",
        "dispatch.cpp",
        "kernels.cpp",
        "ordinary.cpp",
        "tensors.cpp",
        "vector_block.cpp",
        "vectors.cpp",
    } == set(everything)
    checkout.install("-e", ".")
    assert checkout.compiled() == []
    source = checkout.tree / "csrc" / "cpu" / "dispatch.cpp"
    source.write_text(source.read_text() + "\n")
    checkout.install("-e", ".")
    assert checkout.compiled() == ["dispatch.cpp"]
    checkout.install("-e", ".", CXXFLAGS="-DANOTHER")
    assert checkout.compiled() == everything


def test_another_version_of_the_compiler_compiles_everything(checkout):
    checkout.install("-e", ".")
    everything = checkout.compiled()
    stand_in(checkout.compiler, "second", options="-U__GNUC_PATCHLEVEL__ -D__GNUC_PATCHLEVEL__=99")
    checkout.install("-e", ".")
    assert checkout.compiled() == everything
    assert b"second" in (checkout.tree / "invflow" / f"_C{SUFFIX}").read_bytes()


@pytest.mark.parametrize("change", ["moved", "copied"])
def test_a_tree_that_comes_from_elsewhere_is_built_from_its_own_sources(checkout, change, tmp_path):
    checkout.wheel()
    checkout.compiled()
    checkout.install("-e", ".")
    everything = checkout.compiled()
    old, checkout.tree = checkout.tree, tmp_path / "elsewhere"
    if change == "moved":
        old.rename(checkout.tree)
    else:
        shutil.copytree(old, checkout.tree, symlinks=True)
    stand_in(checkout.compiler, "second")
    extension = checkout.wheel()[f"invflow/_C{SUFFIX}"]
    assert checkout.compiled() == everything
    assert b"second" in extension
    checkout.install("-e", ".")
    assert checkout.compiled() == everything
    assert checkout.installed() == checkout.tree / "invflow"
    assert b"second" in (checkout.tree / "invflow" / f"_C{SUFFIX}").read_bytes()


def test_after_a_compiler_that_does_not_work_another_is_taken(checkout):
    wheels = str(checkout.compiler.parent / "wheels")
    done = checkout.pip("wheel", "-w", wheels, ".", CXX="/bin/false")
    assert done.returncode != 0
    assert (
        "It needs a C++17 compiler, GCC or Clang (apt install g++); set CXX to name one." in done.stdout + done.stderr
    )
    assert b"first" in checkout.wheel()[f"invflow/_C{SUFFIX}"]


def test_installing_in_every_way_after_every_other(checkout, tmp_path):
    """Every time with a compiler of its own, which is gone afterwards."""
    for number, how in enumerate([".", ".[sr]", "-e .", ".", "-e .", ".[sr]"]):
        mark = f"build {number}"
        checkout.compiler = stand_in(tmp_path / f"c++-{number}", mark)
        checkout.install(*how.split())
        assert len(checkout.compiled()) >= 3, how
        checkout.compiler.unlink()
        folder = checkout.installed()
        assert (folder == checkout.tree / "invflow") == (how == "-e ."), how
        (extension,) = folder.glob("_C*.so")
        assert mark.encode() in extension.read_bytes(), how


def listing(tree: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in tree.rglob("*")}


def test_a_wheel_holds_this_build_and_leaves_the_tree_alone(checkout):
    """Whatever lies in the tree: extensions of an editable installation, of another Python, modules since removed."""
    gone = checkout.tree / "sr_models" / "gone.py"
    gone.touch()
    assert "sr_models/gone.py" in checkout.wheel()
    gone.unlink()
    for name in ("_C", "_CUDA"):
        for suffix in (SUFFIX, OTHER):
            (checkout.tree / "invflow" / f"{name}{suffix}").write_text("of an earlier build")
    before = listing(checkout.tree)
    contents = checkout.wheel()
    assert listing(checkout.tree) == before
    assert "sr_models/gone.py" not in contents
    assert [name for name in contents if name.endswith(".so")] == [f"invflow/_C{SUFFIX}"]
    assert b"first" in contents[f"invflow/_C{SUFFIX}"]


def test_sources_that_cannot_be_written(checkout, tmp_path):
    mount = ["unshare", "-rm", "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"']
    mount.append(str(checkout.tree))
    if shutil.which("unshare") is None or run(*mount, "true").returncode:
        pytest.skip("this user may not mount a folder read-only")
    pip = [sys.executable, "-m", "pip", "--python", str(checkout.python)]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    variables = {"CXX": str(checkout.compiler), "INVFLOW_CUDA": "off"}
    done = run(*mount, *pip, "wheel", "-w", str(tmp_path / "wheels"), str(checkout.tree), *options, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(*mount, *pip, "install", "-e", str(checkout.tree), *options, **variables)
    assert done.returncode != 0
    text = " ".join((done.stdout + done.stderr).split())
    assert "invflow: an editable installation is built in the source tree, and" in text
    assert "(Read-only file system). pip install without -e builds elsewhere." in text


def test_an_editable_build_without_cuda_removes_kernels_of_an_earlier_one(checkout):
    for suffix in (SUFFIX, OTHER):
        (checkout.tree / "invflow" / f"_CUDA{suffix}").touch()
    checkout.install("-e", ".")
    assert checkout.built() == {f"_C{SUFFIX}", f"_CUDA{OTHER}"}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_cuda_kernels_come_and_go(checkout, tmp_path):
    nvcc = stand_in(tmp_path / "nvcc", "kernels", compiler=shutil.which("nvcc"))
    both = {f"_C{SUFFIX}", f"_CUDA{SUFFIX}"}
    for choice, compiled, built in (("on", True, both), ("off", False, {f"_C{SUFFIX}"}), ("auto", False, both)):
        checkout.install("-e", ".", INVFLOW_CUDA=choice, CUDACXX=str(nvcc), INVFLOW_CUDA_ARCHS="")
        assert checkout.built() == built, choice
        assert ("sums.cu" in checkout.compiled(nvcc)) == compiled, choice
    assert b"kernels" in (checkout.tree / "invflow" / f"_CUDA{SUFFIX}").read_bytes()
    (ninja,) = checkout.tree.glob("build/editable-*/build.ninja")
    # unless INVFLOW_CUDA_ARCHS says otherwise: PTX, and machine code for two
    assert set(re.findall(r",code=\[(\w+)", ninja.read_text())) == {"compute_75", "sm_80", "sm_90"}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_nvcc_that_appears_is_found(checkout, tmp_path):
    folder = tmp_path / "cuda"  # CMake also looks where the C++ compiler lies
    folder.mkdir()
    nvcc = stand_in(folder / "nvcc", "kernels", compiler=shutil.which("nvcc"))
    without = {"INVFLOW_CUDA": "auto", "PATH": path_without("nvcc", tmp_path), "CUDACXX": "", "CUDA_PATH": ""}
    assert f"invflow/_CUDA{SUFFIX}" not in checkout.wheel(**without)
    extension = checkout.wheel(INVFLOW_CUDA="auto", CUDACXX=str(nvcc))[f"invflow/_CUDA{SUFFIX}"]
    assert b"kernels" in extension


def test_after_an_interrupted_build(checkout):
    """Killed while it compiles, with half an object written."""
    stand_in(checkout.compiler, "cut short", command='echo half > "$object"; sleep 60')
    log = checkout.compiler.with_suffix(".log")
    command = [sys.executable, "-m", "pip", "--python", str(checkout.python), "install", "-e", ".", "--no-deps"]
    environment = {**os.environ, "CXX": str(checkout.compiler), "INVFLOW_CUDA": "off", "MAX_JOBS": "2"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen([*command, "--no-build-isolation"], cwd=checkout.tree, env=environment, **quiet) as process:
        deadline = time.monotonic() + 120
        while log.read_text().count("begin") < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert log.read_text().count("begin") == 2
        os.killpg(process.pid, signal.SIGKILL)
    assert checkout.built() == set()
    checkout.compiled()
    stand_in(checkout.compiler, "whole")
    checkout.install("-e", ".")
    assert len(checkout.compiled()) >= 4
    extension = (checkout.tree / "invflow" / f"_C{SUFFIX}").read_bytes()
    assert b"whole" in extension
    assert b"cut short" not in extension


def test_max_jobs_limits_the_compilers_at_work(checkout):
    stand_in(checkout.compiler, "slow", command="sleep 0.2")
    log = checkout.compiler.with_suffix(".log")
    for jobs in (1, 3):
        log.write_text("")
        checkout.wheel(MAX_JOBS=str(jobs))
        running = [0]
        for line in log.read_text().splitlines():
            running.append(running[-1] + (1 if line.startswith("begin ") else -1))
        assert max(running) == jobs


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_max_jobs_that_is_no_number(checkout, jobs):
    done = checkout.pip("wheel", "-w", str(checkout.compiler.parent / "wheels"), ".", MAX_JOBS=jobs)
    assert done.returncode != 0
    assert checkout.compiled() == []
    message = f"invflow: environment variable MAX_JOBS must be a whole number from 1 on, got {jobs!r}"
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize("tool", ["cmake", "ninja", "pybind11"])
def test_without_isolation_a_missing_tool_is_named(checkout, tool, tmp_path):
    first = tmp_path / "first on the path"  # of a package without files, and of a module that cannot be imported
    (first / f"{tool}-0.dist-info").mkdir(parents=True)
    (first / f"{tool}-0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {tool}\nVersion: 0\n")
    (first / f"{tool}.py").write_text("raise ModuleNotFoundError")
    environment = {"PATH": path_without(tool, tmp_path), "PYTHONPATH": str(first)}
    done = checkout.pip("wheel", "-w", str(tmp_path / "wheels"), ".", **environment)
    assert done.returncode != 0
    message = f"invflow: {tool} is missing. pip install without --no-build-isolation brings what the build needs."
    assert message in (line.strip() for line in (done.stdout + done.stderr).splitlines())


@pytest.mark.parametrize("how", [["."], ["-e", "."]], ids=["wheel", "editable"])
def test_twice_in_isolation(checkout, how):
    """Every build has its own CMake, Ninja and pybind11, in a folder that is gone afterwards."""
    checkout.install(*how, isolated=True)
    everything = checkout.compiled()
    checkout.install(*how, isolated=True)
    only_bindings = [name for name in everything if name not in ("conv3x3.cpp", "kernels.cpp", "vector_block.cpp")]
    assert checkout.compiled() == (everything if how == ["."] else only_bindings)
