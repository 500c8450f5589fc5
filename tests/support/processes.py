"""Fresh interpreters, for what can only be seen in one: imports, the environment, an installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: Seconds that a process may take: only one that hangs takes longer, however busy the machine is.
PATIENCE = 1800


def run_python(code: str, *, cwd: Path | None = None, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with the variables of ``environment`` set, or unset where None; the exit code is the caller's."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    given = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=given, capture_output=True, text=True, timeout=PATIENCE
    )
