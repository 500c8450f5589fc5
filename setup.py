"""Builds the native extension with CMake. torch is not needed, and never imported, at build time.

Environment: ``MAX_JOBS`` limits parallel compilation; ``CXX`` chooses the compiler; ``CMAKE_ARGS`` is passed on.
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
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
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
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        for command in (configure, ["cmake", "--build", str(build), "--parallel", jobs]):
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as error:
                raise SystemExit(
                    f"invflow: building the native extension failed (exit code {error.returncode}): see the output "
                    "above. It needs a C++17 compiler, GCC or Clang; set CXX to name one."
                ) from None


setup(ext_modules=[Extension("invflow._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
