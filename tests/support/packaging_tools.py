"""Building the package as a user does, from a copy of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from processes import PATIENCE

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=PATIENCE)


def copy_sources(to: Path) -> Path:
    """Everything that belongs to the repository, and nothing that was built in it."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    assert listed.returncode == 0, listed.stderr
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def path_without(tool: str, tmp_path: Path) -> str:
    """PATH, with a stand-in for every folder that holds ``tool``: links to everything else in it."""
    folders = []
    for position, folder in enumerate(map(Path, os.environ["PATH"].split(os.pathsep))):
        if (folder / tool).exists():
            stand_in = tmp_path / f"path{position}"
            stand_in.mkdir()
            for program in folder.iterdir():
                if program.name != tool:
                    (stand_in / program.name).symlink_to(program)
            folder = stand_in
        folders.append(str(folder))
    return os.pathsep.join(folders)


def build_wheel(source: Path, to: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``pip wheel`` in pip's default build isolation."""
    return run(sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", str(to), str(source), **environment)


def compiler_in_a_hurry(path: Path) -> Path:
    """A compiler that optimises less than it is told to: kernels take half the time to compile, and are slower."""
    path.write_text('#!/bin/bash\nexec g++ "${@/#-O3/-O1}"\n')
    path.chmod(0o755)
    return path


# An object with a mark instead of the compiled source, and two lines in a log.
STAND_IN = """#!/bin/bash
case " $* " in *" -c "*csrc*) ;; *) exec {compiler} {options} "$@";; esac
for argument; do
  case "$before" in -o) object=$argument;; -MF) echo "$object:" > "$argument";; esac
  case "$argument" in *.cpp | *.cu) source=$argument;; esac
  before=$argument
done
echo "begin $source" >> "{log}"
{command}
echo '__attribute__((used, weak, visibility("default"))) extern const char mark[] = "{mark}";' |
  g++ -x c++ -fPIC -c - -o "$object"
echo "end $source" >> "{log}"
"""


def stand_in(path: Path, mark: str, compiler: str = "g++", options: str = "", command: str = "") -> Path:
    """A compiler whose objects hold ``mark`` and nothing else, and which logs the sources; it links with ``compiler``.

    ``command`` is run for each object, and ``options`` are given to ``compiler``.
    """
    log = path.with_suffix(".log")
    log.touch()
    path.write_text(STAND_IN.format(compiler=compiler, options=options, command=command, log=log, mark=mark))
    path.chmod(0o755)
    return path
