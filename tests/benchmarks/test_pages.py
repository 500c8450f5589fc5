"""Commands of benchmarks in the pages name what exists: options, implementations, cases, and files of figures."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks import run

ROOT = Path(runner.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIGURES = ROOT / "docs" / "benchmarks"


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every ``python -m benchmarks`` in blocks of code and between backticks."""
    for block in re.findall(r"^```sh\n(.*?)^```$|(?<!`)`([^`]+)`(?!`)", text, re.DOTALL | re.MULTILINE):
        lines = block[0].replace("\\\n", " ").splitlines() or [" ".join(block[1].split())]
        for line in lines:
            found = re.search(r"\bpython (?:-m |path/to/\S*)benchmarks (.+)", line)
            if found:
                yield shlex.split(found[1], comments=True)


COMMANDS = [(page, command) for page in PAGES for command in commands_of(page.read_text())]
# those of the script for a machine with a GPU: measure NAME ARGUMENTS...
SCRIPT = (ROOT / "tests/gpu/run.sh").read_text().replace("\\\n", " ")
MEASURED = re.findall(r"\bmeasure \S+ ((?:models|flow_step) .*)", SCRIPT)
COMMANDS += [(ROOT / "tests/gpu/run.sh", ["run", *shlex.split(line), "--device", "cuda"]) for line in MEASURED]


def check(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command, and look for what it names, as if its device and all libraries were there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in command)
    monkeypatch.setattr(run, "runnable", lambda operator, device: [])
    monkeypatch.setattr(run, "missing_libraries", lambda names: [])
    monkeypatch.chdir(ROOT)
    with contextlib.suppress(SystemExit) if "--help" in command else contextlib.nullcontext():
        parsed = runner._parser().parse_args(command)
        if parsed.function is not run.run:
            return
        run._check(parsed)
        make = {"models": run._model_tasks, "operators": run._operator_tasks, "cases": run._case_tasks}
        names = [task.name for task in make[run._kind(parsed)](parsed)]
        for pattern in parsed.only or []:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"{pattern} matches none of {names}")


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: getattr(value, "name", None))
def test_commands_name_what_exists(page: Path, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "run models --only 'srflow dream*'",
        "run models --backends ours-fp64",
        "run models --backends ours-tf32",
        "run flow_step --fast",
        "speed",
    ],
)
def test_what_is_a_mistake(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((ValueError, SystemExit)):
        check(shlex.split(command), monkeypatch)


def test_commands_are_found() -> None:
    text = "`python -m\nbenchmarks crops --rounds 2` `x`\n```sh\nA=1 python -m benchmarks run models  # all\n```\n"
    assert sorted(commands_of(text)) == [["crops", "--rounds", "2"], ["run", "models"]]
    assert len(COMMANDS) > 20
    assert len(MEASURED) >= 5


@pytest.mark.parametrize("file", sorted(FIGURES.glob("*.json")), ids=lambda file: file.name)
def test_the_command_of_a_file_of_figures_stands_on_a_page(file: Path) -> None:
    written = [command for _, command in COMMANDS if f"docs/benchmarks/{file.name}" in command and "run" in command]
    assert written
    recorded = shlex.split(json.loads(file.read_text())["command"])[3:]
    assert recorded in written
