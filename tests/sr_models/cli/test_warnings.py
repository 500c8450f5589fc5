"""Warnings that become lines of a command's messages."""

from __future__ import annotations

import warnings

import pytest

from sr_models.cli._warnings import warnings_as_lines


class Mine(UserWarning):
    """A category."""


class Special(Mine):
    """One below it."""


def test_those_of_a_category_are_lines(capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    for name in ("a.png", ""):
        with warnings_as_lines(Mine, name):
            for _ in range(2):
                warnings.warn("two\nlines", Special, stacklevel=1)
            warnings.warn(f"another of {name}", DeprecationWarning, stacklevel=1)
    warnings.warn("afterwards", Mine, stacklevel=1)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 4
    assert all(line.startswith("sr-models: a.png: two") for line in printed[:2])
    assert all(line.startswith("sr-models: two") for line in printed[2:])
    assert [str(each.message) for each in recwarn] == ["another of a.png", "another of ", "afterwards"]
