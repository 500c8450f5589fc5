"""The comparison of mutants with their record; ``make mutants`` runs the mutants themselves."""

from __future__ import annotations

import pkgutil
import sys

import pytest

from tests.gates.python_mutants import (
    AT_IMPORT,
    PACKAGES,
    RECORD,
    ROOT,
    USED_IN,
    Mutant,
    Survivor,
    chosen,
    complaints,
    function_of,
    own_selection,
    read_record,
    report,
    room_of,
    table,
)

needs_tomllib = pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML with the standard library")


def mutant(number: int, status: str, module: str = "package.first") -> Mutant:
    return Mutant(f"{module}.x_f__mutmut_{number}", module, f"{module}.f", status)


def test_names_of_functions_and_methods() -> None:
    assert function_of("invflow.ops._kernel.x__reference__mutmut_12") == "invflow.ops._kernel._reference"
    assert function_of("invflow.layers.split.xǁSplitǁforward__mutmut_3") == "invflow.layers.split.Split.forward"


def test_a_survivor_is_listed_or_complained_about() -> None:
    tested = [mutant(1, "killed"), mutant(2, "survived"), mutant(3, "no tests"), mutant(4, "survived")]
    changes = {each.name: f"+ {number}" for number, each in enumerate(tested, 1)}
    record = {Survivor("package.first.f", "+ 2"): "equivalent", Survivor("package.first.g", "+ 9"): "not tested now"}
    first, second = complaints(tested, changes, record)
    assert first == "not listed: package.first.x_f__mutmut_3\n+ 3"
    assert second == "not listed: package.first.x_f__mutmut_4\n+ 4"


def test_a_listed_survivor_that_is_killed_is_complained_about() -> None:
    record = {Survivor("package.first.f", "+ same"): "equivalent"}
    killed, survived = mutant(1, "timeout"), mutant(2, "survived")
    changes = {killed.name: "+ same", survived.name: "+ same"}
    assert complaints([killed], changes, record) == ["listed, but killed: package.first.f\n+ same"]
    assert complaints([killed, survived], changes, record) == []


def test_the_sample_is_the_same_every_time_and_of_every_module() -> None:
    mutants = [mutant(n, "not checked", module) for module in ("package.first", "package.other") for n in range(50)]
    sample = chosen(mutants, (), 10, 0)
    assert sample == chosen(mutants[::-1], (), 10, 0) != chosen(mutants, (), 10, 1)
    assert [sum(each.module == module for each in sample) for module in ("package.first", "package.other")] == [10, 10]
    assert {each.module for each in chosen(mutants, ["*.other.*"], None, 0)} == {"package.other"}


def test_a_module_is_tested_by_its_room() -> None:
    assert room_of("sr_models.flow.latents") == room_of("sr_models.flow") == "tests/sr_models/flow"
    assert room_of("sr_models.evaluation.metrics.fidelity") == "tests/sr_models/evaluation"
    assert room_of("sr_models.registry") == room_of("sr_models") == "tests/sr_models"
    assert room_of("invflow.layers.split") == "tests/invflow"


def test_a_room_runs_its_own_tests() -> None:
    options = ["-k=not full", "--ignore=tests/sr_models/test_package.py"]
    selection = ["tests/invflow", "tests/sr_models", *options]
    assert own_selection("tests/invflow", selection) == ["tests/invflow", *options, "--ignore=tests/invflow/interop"]
    assert own_selection("tests/sr_models/io", selection) == ["tests/sr_models/io", *options]
    assert own_selection("tests/sr_models/networks", selection) == [
        "tests/sr_models/networks",
        "tests/sr_models/flow",
        *options,
    ]
    package = own_selection("tests/sr_models", selection)
    assert package[:3] == ["tests/sr_models", *options]
    assert {"--ignore=tests/sr_models/cli", "--ignore=tests/sr_models/training"} <= set(package[3:])


def test_the_rooms_are_folders_of_tests() -> None:
    folders = {*PACKAGES, *USED_IN, *(folder for several in USED_IN.values() for folder in several)}
    assert all(any((ROOT / folder).glob("test_*.py")) for folder in folders)


def test_the_table_counts_what_was_tested() -> None:
    statuses = ["killed", "timeout", "survived", "no tests", "not checked", "check was interrupted by user"]
    lines = table([mutant(n, status) for n, status in enumerate(statuses)]).splitlines()
    assert lines[2:] == ["| package.first | 6 | 4 | 1 | 2 | 50% |", "| all | 6 | 4 | 1 | 2 | 50% |"]


def test_a_mutant_that_could_not_be_tested_is_complained_about(capsys: pytest.CaptureFixture[str]) -> None:
    killed = [mutant(n, "killed") for n in range(3)]
    assert report(killed, {}) == 0
    capsys.readouterr()
    assert report([*killed, mutant(3, "not run")], {}) == 1
    output = capsys.readouterr().out
    assert "not run, since a test that reaches it has no lasting name: package.first.x_f__mutmut_3" in output
    assert "| all | 4 | 3 | 0 | 0 | 0% |" in output


@needs_tomllib
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[['a.f']]\nchange='+ 1'\nreason=' '", "a.f: no reason for [+] 1"),
        ("[['a.f']]\nchange='+ 1'\nreason='x'\n[['a.f']]\nchange='+ 1'\nreason='y'", "a.f: listed twice: [+] 1"),
    ],
)
def test_an_entry_has_a_reason_and_stands_once(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_record(text)


@needs_tomllib
def test_listed_functions_exist() -> None:
    for function in {*AT_IMPORT, *(survivor.function for survivor in read_record(RECORD.read_text()))}:
        assert callable(pkgutil.resolve_name(function)), function
