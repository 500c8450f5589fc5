"""Builds the native extension with CMake. torch is not needed, and never imported, at build time.

A wheel is built in a temporary folder: no earlier build can have a part in it, and the source tree stays as it is. An
editable installation keeps its objects in ``build/``, one folder for each kind of Python. CMake looks at the machine
anew each time, and Ninja compiles what another command, another compiler or a changed file asks for.

Environment: ``MAX_JOBS`` limits parallel compilation; ``CXX`` chooses the compiler; ``CMAKE_ARGS`` is passed on.
``INVFLOW_CUDA`` is ``auto`` (the default: builds the CUDA kernels if nvcc works), ``on`` (a failure to build them is an
error) or ``off``. ``CUDACXX`` names nvcc. ``INVFLOW_CUDA_ARCHS`` lists architectures, as ``80;90`` or in any other way
that CMake knows. ``INVFLOW_CPU=off`` builds nothing at all: what is installed runs plain PyTorch, several times slower.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds ``_C``, and ``_CUDA`` where CMake found a working nvcc: one configuration, a target for each module."""

    def run(self) -> None:
        self.editable = bool(self.inplace or self.editable_mode)  # inplace is not to be seen while it builds
        super().run()

    def build_extension(self, ext: Extension) -> None:
        cuda = os.environ.get("INVFLOW_CUDA", "auto").lower()
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"invflow: environment variable INVFLOW_CUDA must be auto, on or off, got {cuda!r}")
        cpu = os.environ.get("INVFLOW_CPU", "on").lower()
        if cpu not in ("on", "off"):
            raise SystemExit(f"invflow: environment variable INVFLOW_CPU must be on or off, got {cpu!r}")
        if cpu == "off" and cuda == "on":
            raise SystemExit("invflow: INVFLOW_CPU=off builds no kernels, so that INVFLOW_CUDA=on cannot be had")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        if not jobs.isdecimal() or int(jobs) < 1:
            raise SystemExit(f"invflow: environment variable MAX_JOBS must be a whole number from 1 on, got {jobs!r}")
        build = ROOT / "build" / f"editable-{sysconfig.get_config_var('SOABI')}"
        if not self.editable:
            build = Path(self.build_temp).resolve() / "cmake"
        module = ext.name.rpartition(".")[2]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        if cpu == "off":
            if self.editable:
                (ROOT / "invflow" / target.name).unlink(missing_ok=True)  # made by an earlier build
            return
        make = [_program("cmake"), "--build", str(build), "--parallel", jobs, "--target", module]
        needed = "It needs a C++17 compiler, GCC or Clang (apt install g++); set CXX to name one."
        if cuda == "on":
            needed += " INVFLOW_CUDA=on also needs nvcc; set CUDACXX to name it."
        try:
            if module == "_C":
                self._configure(build, cuda)
                subprocess.run(make, check=True)
            elif not (build / "with_cuda").exists() or subprocess.run(make, check=cuda == "on").returncode:
                if (build / "with_cuda").exists():
                    print("invflow: the CUDA kernels could not be built, see the output above; going on without them")
                if self.editable:
                    (ROOT / "invflow" / target.name).unlink(missing_ok=True)  # made by an earlier build
                return
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"invflow: building the native extension failed (exit code {error.returncode}): see the output above. "
                f"{needed} INVFLOW_CPU=off installs without it, several times slower."
            ) from None
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(build / "modules" / target.name, target)

    def _configure(self, build: Path, cuda: str) -> None:
        try:
            import pybind11
        except ModuleNotFoundError:
            raise SystemExit(f"invflow: pybind11 is missing. {_WITHOUT_ISOLATION}") from None
        try:
            build.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(
                f"invflow: an editable installation is built in the source tree, and {build} cannot be made there "
                f"({error.strerror}). pip install without -e builds elsewhere."
            ) from None
        _forget(build)
        archs = os.environ.get("INVFLOW_CUDA_ARCHS")
        command = [
            _program("cmake"),
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build / 'modules'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DINVFLOW_VERSION={self.distribution.get_version()}",
            f"-DINVFLOW_CUDA={cuda.upper()}",
            *([f"-DCMAKE_CUDA_ARCHITECTURES={archs}"] if archs else []),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(command, check=True)


_WITHOUT_ISOLATION = "pip install without --no-build-isolation brings what the build needs."


def _program(name: str) -> str:
    """cmake or ninja: the one that pip installed beside the interpreter's packages, else the first on PATH."""
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        files = []
    installed = [str(file.locate()) for file in files if file.name == name and file.parent.name == "bin"]
    found = next(filter(os.path.exists, installed), None) or shutil.which(name)
    if found is None:
        raise SystemExit(f"invflow: {name} is missing. {_WITHOUT_ISOLATION}")
    return found


def _forget(build: Path) -> None:
    """Remove what CMake found out last time, and leave the objects (``*.dir``) to Ninja, which knows their commands."""
    for name in ("CMakeCache.txt", "with_cuda"):
        (build / name).unlink(missing_ok=True)
    for entry in (build / "CMakeFiles").glob("*"):
        if not entry.is_dir():
            entry.unlink()
        elif entry.suffix != ".dir":
            shutil.rmtree(entry)


# an optional extension that was not built is not missed
EXTENSIONS = [
    Extension("invflow._C", sources=[], optional=os.environ.get("INVFLOW_CPU", "").lower() == "off"),
    Extension("invflow._CUDA", sources=[], optional=True),
]

with tempfile.TemporaryDirectory(prefix="invflow-") as scratch:
    # a source distribution lists what lies in its egg-info, which therefore has to lie in the tree
    elsewhere = {} if "sdist" in sys.argv else {"egg_info": {"egg_base": scratch}}
    setup(
        ext_modules=EXTENSIONS,
        cmdclass={"build_ext": CMakeBuild},
        options={"build": {"build_base": scratch}, **elsewhere},
    )
