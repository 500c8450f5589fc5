"""Interpreters in which some packages cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection

from processes import PATIENCE

_FINDER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def run_without(packages: Collection[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that finds none of the packages."""
    command = [sys.executable, "-c", _FINDER.format(packages=set(packages) or {""}) + code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
