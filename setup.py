"""Builds the native extension with CMake. torch is not needed, and never imported, at build time.

Environment: ``MAX_JOBS`` limits parallel compilation; ``CXX`` chooses the compiler; ``CMAKE_ARGS`` is passed on.
``INVFLOW_CUDA`` is ``auto`` (the default: the CUDA kernels are built where nvcc works), ``on`` (that they cannot be
built is an error) or ``off``; ``CUDACXX`` names nvcc; ``INVFLOW_CUDA_ARCHS`` lists architectures, as ``80;90`` or in
any other way that CMake knows.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds ``_C``, and ``_CUDA`` where CMake found a working nvcc: one configuration, a target for each module."""

    def build_extension(self, ext: Extension) -> None:
        cuda = os.environ.get("INVFLOW_CUDA", "auto").lower()
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"invflow: environment variable INVFLOW_CUDA must be auto, on or off, got {cuda!r}")
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        module = ext.name.rpartition(".")[2]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        make = ["cmake", "--build", str(build), "--parallel", jobs, "--target", module]
        needed = "It needs a C++17 compiler, GCC or Clang; set CXX to name one."
        if cuda == "on":
            needed += " INVFLOW_CUDA=on also needs nvcc; set CUDACXX to name it."
        try:
            if module == "_C":
                self._configure(build, destination, cuda)
                subprocess.run(make, check=True)
                return
            for stale in (*destination.glob("_CUDA.*"), *(ROOT / "invflow").glob("_CUDA.*")):
                stale.unlink()
            if (build / "with_cuda").exists() and subprocess.run(make, check=cuda == "on").returncode:
                print("invflow: the CUDA kernels could not be built, see the output above; going on without them")
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"invflow: building the native extension failed (exit code {error.returncode}): see the output above. "
                f"{needed}"
            ) from None

    def _configure(self, build: Path, destination: Path, cuda: str) -> None:
        import pybind11

        build.mkdir(parents=True, exist_ok=True)
        (build / "with_cuda").unlink(missing_ok=True)  # made anew where nvcc works
        archs = os.environ.get("INVFLOW_CUDA_ARCHS")
        command = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={destination}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DINVFLOW_VERSION={self.distribution.get_version()}",
            f"-DINVFLOW_CUDA={cuda.upper()}",
            *([f"-DCMAKE_CUDA_ARCHITECTURES={archs}"] if archs else []),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(command, check=True)


# an optional extension that was not built is not missed
EXTENSIONS = [Extension("invflow._C", sources=[]), Extension("invflow._CUDA", sources=[], optional=True)]
setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": CMakeBuild})
