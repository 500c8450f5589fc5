"""Licences of files that are shipped and are no code."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

__all__ = ["data_files", "licensed_patterns", "unlicensed"]

_ROOT = Path(__file__).parents[2]
_CODE = (".py", ".typed", ".pyi", ".pyc", ".so")


def data_files(names: Iterable[str]) -> list[str]:
    """Return the names of files in the packages that are no code."""
    packages = [name for name in names if name.startswith(("invflow/", "sr_models/"))]
    return [name for name in packages if PurePosixPath(name).suffix not in _CODE]


def licensed_patterns() -> list[str]:
    """List the patterns of files whose licence stands in THIRD_PARTY.md."""
    patterns = []
    for line in (_ROOT / "THIRD_PARTY.md").read_text().splitlines():
        if line.startswith("| `"):
            found = re.findall(r"`([^`]+)`", line.split("|")[1])
            folder = PurePosixPath(found[0]).parent
            patterns += [name if "/" in name else str(folder / name) for name in found]
    return patterns


def unlicensed(names: Iterable[str]) -> list[str]:
    """List the files that are no code and whose licence nobody says."""
    patterns = licensed_patterns()
    return [name for name in data_files(names) if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
