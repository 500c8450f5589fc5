"""``python -m invflow.info``."""

import subprocess
import sys

import pytest
import torch
from processes import PATIENCE, run_python

import invflow
from invflow.backends import KERNELS, cpu
from invflow.info import info

# Stops the import of the extension before invflow is imported.
HIDE_EXTENSION = "import sys; sys.modules['invflow._C'] = None\n"
STEP_WITHOUT_EXTENSION = """
import torch, invflow
from invflow.testing import assert_invertible
assert_invertible(invflow.FlowStep(4), torch.randn(2, 4, 3, 3))
"""


def row(text, name):
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}  "))
    return line.removeprefix(name).strip()


def test_as_a_command():
    done = subprocess.run([sys.executable, "-m", "invflow.info"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert row(done.stdout, "invflow").startswith(invflow.__version__)
    assert torch.__version__ in row(done.stdout, "torch")
    for name in ("cpu", "reference"):
        assert row(done.stdout, f"backend {name}").startswith("can run")
    for name, kernels in KERNELS.items():
        reason = kernels.unavailable()
        assert row(done.stdout, f"backend {name}").startswith(f"cannot run: {reason}" if reason else "can run (")
    assert f"instruction set {cpu.build_facts()['instruction set']}" in row(done.stdout, "backend cpu")
    assert row(done.stdout, "nvcc")
    assert row(done.stdout, "GPU")


def test_settings_of_openmp_are_shown(monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert row(info(), "OpenMP") == "GOMP_SPINCOUNT=7, OMP_PROC_BIND=true"
    monkeypatch.delenv("OMP_PROC_BIND")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert row(info(), "OpenMP").startswith("no settings; OMP_PROC_BIND=true binds")


def test_facts_of_the_build():
    facts = cpu.build_facts()
    assert facts["version"] == invflow.__version__, "the extension is older than the package: install again"
    assert facts["instruction set"].split()[0] in {"baseline", "avx2", "avx512"}
    assert facts["OpenMP"] == "yes"


def test_without_the_extension_it_says_why():
    done = run_python(HIDE_EXTENSION + "import invflow.info; print(invflow.info.info())")
    assert done.returncode == 0, done.stderr
    reason = row(done.stdout, "backend cpu")
    assert reason.startswith("cannot run: the extension invflow._C could not be imported (import of invflow._C halted")
    assert row(done.stdout, "backend reference").startswith("can run")


def test_without_the_extension_layers_still_work():
    done = run_python(HIDE_EXTENSION + STEP_WITHOUT_EXTENSION)
    assert done.returncode == 0, done.stderr


def test_the_reason_is_that_of_the_import(monkeypatch):
    monkeypatch.setattr(cpu, "extension", None)
    monkeypatch.setattr(cpu, "import_error", "undefined symbol: f")
    assert row(info(), "backend cpu") == (
        "cannot run: the extension invflow._C could not be imported (undefined symbol: f)"
    )


@pytest.mark.parametrize("choice", ["reference", "cpu"])
def test_it_names_the_chosen_backend(choice):
    with invflow.use_backend(choice):
        assert row(info(), "chosen backend") == choice


def test_a_broken_nvcc_is_named(tmp_path, monkeypatch):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 3\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert row(info(), "nvcc").startswith(f"{nvcc} does not work: ")
    nvcc.unlink()
    assert row(info(), "nvcc").startswith("not on PATH")
