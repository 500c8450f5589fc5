"""Interpreters in which some packages cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from processes import PATIENCE

_FINDER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {packages!r} or name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def run_without(
    packages: Collection[str], code: str, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that finds none of the packages or modules.

    Args:
        packages: names of packages, or of single modules in them.
        code: what to run.
        arguments: the rest of ``sys.argv``.
        cwd: where to run it.
        environment: variables to set.
    """
    command = [sys.executable, "-c", _FINDER.format(packages=set(packages) or {""}) + code, *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
