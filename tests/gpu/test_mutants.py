"""The tests of the tests. ``python -m tests.gates.mutants`` runs all mutants; here are those that show how."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.drivers import cuda as cuda_driver
from tests.emulator.drivers.cuda import CSRC
from tests.gates import mutants_of_cpu
from tests.gates.mutant import Mutant, mutated
from tests.gates.mutants import MUTANTS, killer, main, table, verdict
from tests.gpu.marks import takes_minutes

needs_compiler = pytest.mark.skipif(
    cuda_driver.unavailable(None) is not None, reason=str(cuda_driver.unavailable(None))
)


def named(part: str) -> Mutant:
    (found,) = [mutant for mutant in MUTANTS if part in mutant.name]
    return found


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_are_edits_of_the_sources(mutant: Mutant, tmp_path: Path) -> None:
    copy = mutated(mutant, tmp_path)
    changed = [path for path in CSRC.rglob("*.*") if path.read_bytes() != (copy / path.relative_to(CSRC)).read_bytes()]
    assert changed == [CSRC / "cuda" / mutant.file]


def test_mutants_of_the_cpu_are_edits_of_the_sources() -> None:
    for mutant in mutants_of_cpu.MUTANTS:
        assert (CSRC / "cpu" / mutant.file).read_text().count(mutant.old) == 1, mutant.name
        assert mutant.new != mutant.old, mutant.name


@pytest.mark.parametrize(("old", "count"), [("no such text", 0), ("const", None)])
def test_an_edit_that_does_not_apply_is_an_error(old: str, count: int | None, tmp_path: Path) -> None:
    stands = (CSRC / "cuda" / "sums.h").read_text().count(old) if count is None else count
    assert stands != 1
    with pytest.raises(ValueError, match=f"mutant 'broken': its text stands {stands} times in csrc/cuda/sums.h"):
        mutated(Mutant("broken", "sums.h", old, ""), tmp_path)


@needs_compiler
def test_names_of_mutants_are_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "page.md").touch()
    for arguments, message in (
        (["the packing of x"], "no mutant is called the packing of x"),
        ([MUTANTS[0].name, "--markdown", str(tmp_path / "page.md")], "--markdown must be without names"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_the_table_says_which_survived() -> None:
    first, second = MUTANTS[:2]
    lines = table([(first, "results_are_right: result 0"), (second, "")]).splitlines()[2:]
    assert lines[0] == f"| {first.name} | `{first.file}` |  | `results_are_right` |"
    assert lines[1].endswith("| **survived** |")


@needs_compiler
@pytest.mark.slow
@takes_minutes
def test_kernels_pass_and_a_mutant_does_not() -> None:
    assert killer(CSRC, None) == ""
    assert verdict(named("packing")).startswith("results_are_right: ")
