"""Damage files of every kind and read them, each kind in processes of its own: ``python tests/fuzz/fuzz.py --help``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["faults_of", "main"]

_HERE = Path(__file__).parent


def faults_of(kind: str, files: int, first: int = 0, keep: Path | None = None) -> dict[int, str]:
    """Read damaged files of one kind; one that ends the process is noted, and another process goes on behind it.

    A number alone does not always make the same file again: good files of some kinds hold an address, a time or a
    random order. Therefore files with faults are kept.

    Args:
        kind: one of the kinds in ``targets.py``.
        files: how many.
        first: number of the first one, which is also its seed.
        keep: folder for those that are read wrongly, as ``KIND/NUMBER/NAME``; ``None`` keeps none.

    Returns:
        Number of a damaged file -> what is wrong with how it is read.
    """
    if keep is None:
        with tempfile.TemporaryDirectory() as text:
            return faults_of(kind, files, first, Path(text))
    work = keep / kind
    shutil.rmtree(work, ignore_errors=True)
    found: dict[int, str] = {}
    last, position = first + files, first
    root = _HERE.parent.parent
    path = os.pathsep.join(map(str, (root, root / "tests/support", _HERE)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    while position < last:
        command = [sys.executable, str(_HERE / "child.py"), kind, str(position), str(last), str(work)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
        found.update({line["fault"]: line["what"] for line in lines if "fault" in line})
        if done.returncode == 0:
            break
        begun = [line["begins"] for line in lines if "begins" in line]
        if not begun:
            raise RuntimeError(f"no good {kind} can be read: {done.stderr[-2000:]}")
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
        found[begun[-1]] = f"the process ends with {ended}: {done.stderr.strip()[-150:]}"
        position = begun[-1] + 1
        (work / "damaged").rename(work / str(begun[-1]))
    for name in ("clean", "damaged"):
        shutil.rmtree(work / name, ignore_errors=True)
    return found


def main() -> int:
    """Print the faults of all kinds, or of those that are named; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="kinds of files; default: all")
    parser.add_argument("--files", type=int, default=10_000, help="damaged files of each kind (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (%(default)s)")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for faulty files (%(default)s)")
    given = parser.parse_args()
    sys.path[:0] = [str(_HERE.parent.parent), str(_HERE.parent / "support"), str(_HERE)]
    from targets import KINDS

    any_fault = False
    for kind in given.kinds or KINDS:
        faults = faults_of(kind, given.files, given.first, given.keep)
        print(f"{kind}: {given.files} files, {len(faults)} faults", flush=True)
        for number, what in list(faults.items())[:20]:
            print(f"  {number}: {what}", flush=True)
        any_fault = any_fault or bool(faults)
    return int(any_fault)


if __name__ == "__main__":
    sys.exit(main())
