"""Report of ``python -m invflow.info``: the backends that are built, those that can run here, and reasons if not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import torch

import invflow
from invflow.backends import BACKENDS, KERNELS

__all__ = ["info"]


def info() -> str:
    """Return the report that ``python -m invflow.info`` prints, as text of one line a fact."""
    rows: list[tuple[str, str]] = [
        ("invflow", f"{invflow.__version__} ({os.path.dirname(invflow.__file__)})"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("OpenMP", _openmp()),
        ("nvcc", _nvcc()),
        ("GPU", _gpu()),
    ]
    for name in BACKENDS:
        kernels = KERNELS.get(name)
        reason = kernels.unavailable() if kernels else ""
        if reason:
            rows.append((f"backend {name}", f"cannot run: {reason}"))
        elif kernels:
            facts = ", ".join(f"{key} {value}" for key, value in kernels.build_facts().items())
            rows.append((f"backend {name}", f"can run ({facts})"))
        else:
            rows.append((f"backend {name}", "can run (plain PyTorch, any device and dtype)"))
    rows.append(("chosen backend", invflow.current_backend()))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)


def _openmp() -> str:
    """Name the settings of OpenMP, which decide how threads wait. A busy neighbour stalls unbound threads."""
    prefixes = ("OMP_", "GOMP_", "KMP_")
    found = ", ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(prefixes))
    return found or "no settings; OMP_PROC_BIND=true binds threads to cores, for machines with other work"


def _nvcc() -> str:
    path = shutil.which("nvcc")
    if path is None:
        return "not on PATH; only building the CUDA kernels needs it"
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} does not work: {error}"
    release = next((line.strip() for line in output.splitlines() if "release" in line), "unknown release")
    return f"{path}: {release}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


if __name__ == "__main__":
    print(info())
