"""``python -m tests.gates.python_mutants``: breaks the Python sources on purpose and sees whether the tests notice.

mutmut makes the mutants and runs the tests; ``[tool.mutmut]`` in pyproject.toml configures it. This command chooses
which mutants to run and with which tests: a room's own. It compares those that survive with survivors.toml, where each
has its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import multiprocessing
import os
import random
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .page import markdown_table

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("survivors.toml")
#: The folders of tests that mutmut's configuration names.
PACKAGES = ("tests/invflow", "tests/sr_models")
#: Rooms whose modules are tested where they are used, beside their own folder.
USED_IN = {
    "tests/sr_models/models": ("tests/sr_models/checkpoints", "tests/sr_models/flow"),
    "tests/sr_models/networks": ("tests/sr_models/flow",),
}
#: Run while their module is imported, which happens once for all mutants: theirs are never run.
AT_IMPORT = {"invflow.ops._registration.register", "sr_models.io.opening._PillowSettings.__init__"}
#: The largest share of the tested mutants that may survive.
ALLOWED = 0.1
_ALIVE = ("survived", "no tests")
_NOT_RUN = "not run"
_UNTESTED = ("not checked", "check was interrupted by user", _NOT_RUN)
#: Of a process that could not run pytest at all: its arguments name a test that is not there. mutmut says "timeout".
_NO_PYTEST = 255

_DESCRIPTION = """\
Make small errors in the Python sources, one at a time, and run the tests of their room that reach them. What was
tested is kept in mutants/: a command that was stopped goes on where it was. Mutants of a changed function, and
survivors that survivors.toml does not list, are tested again. Exits with 1 if a survivor is not listed, if a listed one
does not survive, if a mutant could not be tested, or if more than 10 % survive.
"""


@dataclass(frozen=True)
class Survivor:
    """A mutant that the tests do not notice: lines of ``function`` removed ("-") and added ("+")."""

    function: str
    change: str


@dataclass(frozen=True)
class Mutant:
    """``status``: mutmut's word, such as "killed", "survived", "timeout"; "not checked" before it was tested.

    "not run" is ours: pytest did not find a test that it should run.
    """

    name: str
    module: str
    function: str
    status: str

    @property
    def survived(self) -> bool:
        return self.status in _ALIVE

    @property
    def checked(self) -> bool:
        return self.status not in _UNTESTED


def read_record(text: str) -> dict[Survivor, str]:
    """Return the listed survivors and their reasons. Raises ``ValueError`` for one twice or without a reason."""
    import tomllib  # Python 3.11

    record: dict[Survivor, str] = {}
    for function, entries in tomllib.loads(text).items():
        for entry in entries:
            survivor = Survivor(function, entry["change"].strip())
            if survivor in record:
                raise ValueError(f"{function}: listed twice: {survivor.change}")
            if not entry.get("reason", "").strip():
                raise ValueError(f"{function}: no reason for {survivor.change}")
            record[survivor] = entry["reason"]
    return record


def function_of(name: str) -> str:
    """Return the dotted name of the function that the mutant ``name`` is made of."""
    module, _, mangled = name.partition("__mutmut_")[0].rpartition(".")
    return f"{module}.{mangled[2:].replace('ǁ', '.')}"


def chosen(mutants: Sequence[Mutant], patterns: Collection[str], sample: int | None, seed: int) -> list[Mutant]:
    """Return the mutants of functions that a pattern fits, or all without patterns; at most ``sample`` of a module."""
    found: dict[str, list[Mutant]] = {}
    for mutant in sorted(mutants, key=lambda mutant: mutant.name):
        if not patterns or any(fnmatch.fnmatchcase(mutant.function, pattern) for pattern in patterns):
            found.setdefault(mutant.module, []).append(mutant)
    if sample is not None:
        found = {
            module: random.Random(f"{seed} {module}").sample(several, min(sample, len(several)))
            for module, several in found.items()
        }
    return [mutant for several in found.values() for mutant in several]


def table(mutants: Iterable[Mutant]) -> str:
    """One line a module, as Markdown."""
    counts: dict[str, Counter[str]] = {}
    for mutant in mutants:
        for module in (mutant.module, "all"):
            counts.setdefault(module, Counter())[mutant.status] += 1
    if "all" in counts:
        counts["all"] = counts.pop("all")  # last
    lines = []
    for module, count in counts.items():
        tested = sum(number for status, number in count.items() if status not in _UNTESTED)
        alive = sum(count[status] for status in _ALIVE)
        share = f"{alive / tested:.0%}" if tested else ""
        lines.append([module, str(count.total()), str(tested), str(count["timeout"]), str(alive), share])
    return markdown_table(["module", "mutants", "tested", "timeouts", "survived", "share"], lines)


def complaints(tested: Sequence[Mutant], changes: Mapping[str, str], record: Mapping[Survivor, str]) -> list[str]:
    """Return what is wrong, a line each.

    Args:
        tested: mutants that were tested.
        changes: what each of these mutants changes, by its name.
        record: the listed survivors and their reasons.
    """
    by_identity: dict[Survivor, list[Mutant]] = {}
    for mutant in tested:
        by_identity.setdefault(Survivor(mutant.function, changes[mutant.name]), []).append(mutant)
    wrong = [
        f"not listed: {mutant.name}\n{survivor.change}"
        for survivor, several in by_identity.items()
        for mutant in several
        if mutant.survived and survivor not in record
    ]
    for survivor in record:
        # another mutant of the function may make the same change at another place
        several = by_identity.get(survivor, [])
        if several and not any(mutant.survived for mutant in several):
            wrong.append(f"listed, but killed: {survivor.function}\n{survivor.change}")
    return wrong


def read_mutants() -> list[Mutant]:
    """Bring mutants/ up to date with the sources; return all mutants with the status of their last test."""
    from mutmut import __main__ as mutmut
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.stats import status_by_exit_code

    for library in (ROOT / "invflow").glob("_C*.so"):  # mutmut copies it once and never again
        (ROOT / "mutants" / "invflow").mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, ROOT / "mutants" / "invflow")
    shutil.rmtree(ROOT / "mutants" / "tests", ignore_errors=True)  # tests that are no more
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.create_mutants(1)
    found = []
    for path in mutmut.walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for name, code in data.exit_code_by_key.items():
            if (function := function_of(name)) not in AT_IMPORT:
                status = _NOT_RUN if code == _NO_PYTEST else status_by_exit_code[code]
                found.append(Mutant(name, module, function, status))
    return found


def room_of(module: str) -> str:
    """Return the folder of a module's own tests: tests/package/room, or tests/package if there is no such room."""
    package, *rest = module.split(".")
    folder = "/".join(["tests", package, *rest[:1]])
    return folder if (ROOT / folder).is_dir() else f"tests/{package}"


def own_selection(room: str, selection: Sequence[str]) -> list[str]:
    """Return the arguments of pytest in ``selection`` with a room's tests in place of the packages'."""
    rooms = {path.parent.name for path in (ROOT / room).glob("*/test_*.py")} if room in PACKAGES else set()
    ignored = [f"--ignore={room}/{inner}" for inner in sorted(rooms)]
    return [room, *USED_IN.get(room, ()), *(each for each in selection if each not in PACKAGES), *ignored]


def run_mutmut(room: str, names: Sequence[str], jobs: int) -> None:
    """Test the mutants ``names`` with the tests of their ``room``. Exits with mutmut's status if it fails.

    Runs in a process of its own: mutmut keeps in global variables which tests reach a function. Between runs it keeps
    them in one file, which is put aside here, one a room.
    """
    from mutmut import __main__ as mutmut
    from mutmut.configuration import config
    from mutmut.state import reset_state, state
    from mutmut.workers.isolation import ForkServerRunner

    reset_state()
    config().pytest_add_cli_args_test_selection = own_selection(room, config().pytest_add_cli_args_test_selection)
    current = ROOT / "mutants" / "mutmut-stats.json"
    kept = current.with_name(f"{room.replace('/', '-')}-stats.json")
    current.unlink(missing_ok=True)
    if kept.exists():
        shutil.copy2(kept, current)
    else:
        # the tests pass without an error while they are mapped; mutmut would run them a second time
        setattr(ForkServerRunner, "run_clean_tests", lambda runner, tests: 0)  # noqa: B010
    submit = ForkServerRunner.submit

    def submit_fast_tests_first(runner: Any, name: str, tests: list[str], *limits: Any) -> None:
        submit(runner, name, sorted(tests, key=lambda test: state().duration_by_test[test]), *limits)

    setattr(ForkServerRunner, "submit", submit_fast_tests_first)  # noqa: B010
    log = current.with_name("tests.xml")  # mutmut keeps the output of a failed test to itself
    os.environ["PYTEST_ADDOPTS"] = f"--junitxml={log}"
    try:
        mutmut.cli.main(["run", "--max-children", str(jobs), *names], standalone_mode=False)
    except SystemExit:
        arguments = [*config().pytest_add_cli_args_test_selection, *config().pytest_add_cli_args]
        print(f"{log.relative_to(ROOT)} says which test failed. To see it again: cd mutants; MUTANT_UNDER_TEST=stats")
        print(f"python -m pytest {shlex.join(arguments)}")
        raise
    finally:
        if current.exists():
            shutil.copy2(current, kept)


def change_of(mutant: Mutant) -> str:
    """Return the lines that ``mutant`` removes ("-") and adds ("+")."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    _, _, *lines = get_diff_for_mutant(mutant.name).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.startswith(("+", "-")))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python_mutants", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="such as 'invflow.ops.*'; default everything")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants of a module, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--no-run", action="store_true", help="only report what was tested before")
    given = parser.parse_args(arguments)
    os.chdir(ROOT)  # where mutmut looks for its configuration
    record = read_record(RECORD.read_text())
    selected = chosen(read_mutants(), given.patterns, given.sample, given.seed)
    if not selected:
        parser.exit(2, f"python_mutants: no mutant fits {' '.join(given.patterns)}\n")
    listed = {survivor.function for survivor in record}
    again = {
        mutant.name
        for mutant in selected
        if mutant.survived
        and not (mutant.function in listed and Survivor(mutant.function, change_of(mutant)) in record)
    }
    if not given.no_run:
        rooms: dict[str, list[str]] = {}
        for mutant in selected:
            if not mutant.checked or mutant.name in again:
                rooms.setdefault(room_of(mutant.module), []).append(mutant.name)
        for room, names in rooms.items():
            print(f"{room}: {len(names)} mutants", flush=True)
            process = multiprocessing.Process(target=run_mutmut, args=(room, names, given.jobs))
            process.start()
            process.join()
            if process.exitcode:
                return process.exitcode
        wanted = {mutant.name for mutant in selected}
        selected = [mutant for mutant in read_mutants() if mutant.name in wanted]
    return report(selected, record)


def report(selected: Sequence[Mutant], record: Mapping[Survivor, str]) -> int:
    """Print table and complaints; return the exit status."""
    tested = [mutant for mutant in selected if mutant.checked]
    relevant = {survivor.function for survivor in record}
    compared = [mutant for mutant in tested if mutant.survived or mutant.function in relevant]
    wrong = complaints(compared, {mutant.name: change_of(mutant) for mutant in compared}, record)
    lost = [mutant.name for mutant in selected if mutant.status == _NOT_RUN]
    wrong += [f"not run, since a test that reaches it has no lasting name: {name}" for name in lost]
    print("\n\n".join(wrong))
    print(table(selected))
    survived = sum(mutant.survived for mutant in tested)
    if survived > ALLOWED * len(tested):
        wrong.append("")
        print(f"more than {ALLOWED:.0%} of the tested mutants survive")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
