"""Build, install and try the package in fresh environments: ``make check-package``.

Every row is a Python with versions of torch and NumPy. A source distribution is built once. Each row installs it with
pip's own isolation, in an empty environment, runs ``package_smoke.py`` in an empty folder, runs tests of the layers
against the installed package, and finally installs the extra ``sr`` and enlarges a picture. The row ``clang`` compiles
the CPU kernels with Clang for three platforms. It needs the Python package ziglang, which it installs.

This file needs nothing but Python's own library. The table goes to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "package"
#: Tests of the layers and operators: those of the range's ends take a minute together, the others seconds.
TESTS = ("actnorm", "backends", "couplings", "flow_step", "layers", "rows", "torch_features", "transforms")
FEW_TESTS = ("couplings", "flow_step")
TRIPLES = ("x86_64-linux-gnu", "aarch64-linux-gnu", "aarch64-macos")


class Row(NamedTuple):
    """Versions that are tried together; an empty one is the newest that pip finds."""

    name: str
    python: str
    torch: str
    numpy: str
    nvcc: bool
    kernels: bool = True


ROWS = (
    Row("lowest", "3.10", "2.11.0", "1.26.4", nvcc=False),
    Row("cuda", "3.11", "2.14.1", "", nvcc=True),
    Row("middle", "3.12", "2.14.1", "", nvcc=False),
    Row("newest", "3.13", "", "", nvcc=False),
    Row("plain", "3.11", "2.14.1", "", nvcc=False, kernels=False),
)


class Failed(Exception):
    """A command that failed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(row.name for row in ROWS), "clang"]
    parser.add_argument("rows", nargs="*", help=f"some of {', '.join(names)}; all by default")
    given = parser.parse_args().rows
    for name in given:
        if name not in names:
            parser.error(f"rows must be some of {', '.join(names)}, got {name!r}")
    shutil.rmtree(BUILD / "dist", ignore_errors=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    source = source_distribution()
    failed = False
    print(
        "| row | Python | torch | NumPy | nvcc | result | seconds |\n| --- | --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    for row in ROWS:
        if given and row.name not in given:
            continue
        begun = time.monotonic()
        versions = [row.python, row.torch or "newest", row.numpy or "newest", "yes" if row.nvcc else "no"]
        try:
            found, result = try_row(row, source)
            versions[:3] = found
        except Failed as error:
            failed, result = True, f"FAILED: {error}"
        cells = [row.name, *versions, result, f"{time.monotonic() - begun:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    if not given or "clang" in given:
        begun = time.monotonic()
        try:
            result = try_clang()
        except Failed as error:
            failed, result = True, f"FAILED: {error}"
        print(f"| clang | | | | no | {result} | {time.monotonic() - begun:.0f} |", flush=True)
    return int(failed)


def source_distribution() -> Path:
    """Build the source distribution from what git knows."""
    tools = environment("tools", sys.executable)
    run("build", tools / "bin" / "pip", "install", "-q", "build")
    run("sdist", tools / "bin" / "python", "-m", "build", "--sdist", "--outdir", BUILD / "dist", ROOT)
    (found,) = (BUILD / "dist").glob("*.tar.gz")
    return found


def try_row(row: Row, source: Path) -> tuple[list[str], str]:
    """Return the versions of Python, torch and NumPy that were tried, and what was done.

    Raises:
        Failed: the first command that failed.
    """
    env = environment(row.name, interpreter(row.python))
    pip, python = env / "bin" / "pip", env / "bin" / "python"
    constraints = BUILD / f"{row.name}.txt"
    pins = [f"{name}=={version}" for name, version in (("torch", row.torch), ("numpy", row.numpy)) if version]
    constraints.write_text("\n".join(pins) + "\n")
    limits = {"PIP_CONSTRAINT": str(constraints), "PATH": path(row.nvcc), "OMP_NUM_THREADS": "1"}
    # one architecture, which takes a third of the time of all
    limits |= {"INVFLOW_CUDA_ARCHS": "90"} if row.nvcc else {}
    limits |= {} if row.kernels else {"INVFLOW_CPU": "off", "CXX": "/nonexistent"}
    run("torch", pip, "install", "-q", "torch", "numpy", variables=limits)
    # the build has an environment of its own, which these limits do not concern
    run("build", pip, "install", "-q", "--no-deps", source, variables={**limits, "PIP_CONSTRAINT": os.devnull})
    with_cuda = list(env.glob("lib/*/site-packages/invflow/_CUDA*.so"))
    if bool(with_cuda) != row.nvcc:
        raise Failed(f"CUDA kernels {'are' if with_cuda else 'are not'} built")
    empty = BUILD / f"{row.name}-empty"
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir()
    smoke = shutil.copy(ROOT / "tests" / "gates" / "package_smoke.py", empty)
    run("smoke", python, smoke, *([] if row.kernels else ["--without-kernels"]), cwd=empty, variables=limits)
    told = subprocess.run(
        [env / "bin" / "sr-models", "list"], capture_output=True, text=True, check=False, cwd=empty
    ).stderr
    if "pip install 'invflow[sr]'" not in told or len(told.splitlines()) != 1:
        raise Failed(f"sr-models without its packages says {told[-200:]!r}")
    done = ["kernels agree with PyTorch, training" if row.kernels else "training, and a word that it is slow"]
    if row.kernels:
        run("test tools", pip, "install", "-q", "pytest", "hypothesis", "pillow", "scipy", variables=limits)
        for name in ("support", "invflow"):
            shutil.copytree(ROOT / "tests" / name, empty / "tests" / name)
        shutil.copy(ROOT / "tests" / "conftest.py", empty / "tests")
        shutil.copy(ROOT / "pyproject.toml", empty)
        without = "not the_page_names"  # of features, which is not installed
        chosen = [
            empty / "tests" / "invflow" / f"test_{name}.py"
            for name in (TESTS if row.name in ("lowest", "newest") else FEW_TESTS)
        ]
        said = run(
            "tests", python, "-m", "pytest", "-q", "-m", "not slow", "-k", without, *chosen, cwd=empty, variables=limits
        )
        done.append(f"tests of layers: {said.splitlines()[-1].split(' in ')[0].strip()}")
    run("extra", pip, "install", "-q", f"invflow[sr] @ {source.as_uri()}", variables=limits)
    draw = "from PIL import Image; Image.new('RGB', (24, 16), (200, 90, 40)).save('a.png')"
    run("picture", python, "-c", draw, cwd=empty)
    run("sample", env / "bin" / "sr-models", "sample", "a.png", "-n", "2", cwd=empty, variables=limits)
    if len(list((empty / "samples").glob("*.png"))) != 2:
        raise Failed("sr-models sample has written no samples")
    done.append("`sr-models sample`")
    asked = "import platform, torch, numpy; print(platform.python_version(), torch.__version__, numpy.__version__)"
    found = run("versions", python, "-c", asked).split()
    shutil.rmtree(env)
    return found, ", ".join(done)


def try_clang() -> str:
    """Compile the CPU kernels with Clang for each platform, as far as its headers allow."""
    env = environment("clang", sys.executable)
    run("clang", env / "bin" / "pip", "install", "-q", "ziglang", "pybind11")
    include = Path(
        run("pybind11", env / "bin" / "python", "-c", "import pybind11; print(pybind11.get_include())").strip()
    )
    headers = run("headers", sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('include'))").strip()
    common = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        f"-I{ROOT / 'csrc' / 'include'}",
    ]
    common += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", '-DINVFLOW_COMPILER="clang"']
    common += ['-DINVFLOW_VERSION="0"', f"-isystem{include}", f"-isystem{headers}"]
    sources = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    for triple in TRIPLES:
        isas = ["baseline", "avx2", "avx512"] if triple.startswith("x86") else ["neon"]
        for isa in isas:
            options = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512dq", "-mfma"]}.get(isa, [])
            size = {"avx2": 32, "avx512": 64}.get(isa, 16)
            platform = "-DINVFLOW_X86" if triple.startswith("x86") else "-DINVFLOW_NEON"
            macros = [f"-DINVFLOW_ISA={isa}", f"-DINVFLOW_VECTOR_BYTES={size}", platform]
            for source in sources:
                # one instruction set is enough for what is compiled once
                if isa in ("avx2", "avx512") and source.name not in ("kernels.cpp", "conv3x3.cpp"):
                    continue
                compiler: list[str | Path] = [env / "bin" / "python", "-m", "ziglang", "c++", "-target", triple]
                output = BUILD / "clang.o"
                run(f"{triple} {isa} {source.name}", *compiler, *common, *options, *macros, "-c", source, "-o", output)
    return f"kernels compile for {', '.join(TRIPLES)}; they were not run there"


def environment(name: str, python: str) -> Path:
    """Make an empty virtual environment."""
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    run("environment", python, "-m", "venv", folder)
    return folder


def interpreter(version: str) -> str:
    """Find a Python of this version, on PATH or among those of pyenv."""
    places = [shutil.which(f"python{version}"), *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for place in map(str, filter(None, places)):
        try:
            if subprocess.run([place, "-c", ""], capture_output=True, check=False).returncode == 0:
                return place
        except OSError:
            continue
    raise Failed(f"no Python {version} was found")


def path(nvcc: bool) -> str:
    """Return PATH, without the folders that hold nvcc unless it is wanted."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if nvcc or not (Path(folder) / "nvcc").exists())


def run(what: str, *command: str | Path, cwd: Path = BUILD, variables: Mapping[str, str] | None = None) -> str:
    """Run a command, and return what it prints.

    Raises:
        Failed: the command failed; its output is in ``build/package/failed.txt``.
    """
    given = {**os.environ, **(variables or {})}
    # nothing of the environment that this runs in
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"):
        given.pop(name, None)
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=given, capture_output=True, text=True, check=False)
    if done.returncode:
        (BUILD / "failed.txt").write_text(done.stdout + done.stderr)
        last = " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])[-300:]
        raise Failed(f"{what}: {last}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
