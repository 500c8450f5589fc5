"""The README's examples run, and print what the README says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from sr_models.io.images import read_image, write_image

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```\n", README, re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")


def run(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue()


def test_training_and_sampling_print_what_the_readme_says() -> None:
    """The figures may differ by rounding, which depends on the processor and grows during training."""
    expected = re.findall(r"```text\n(.*?)```", README, re.DOTALL)[0]
    printed = run(EXAMPLES[0])
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", expected)
    figures, said = (np.array([float(number) for number in NUMBER.findall(text)]) for text in (printed, expected))
    assert len(said) == 3
    np.testing.assert_allclose(figures, said, atol=0.2)


def test_a_photograph_is_enlarged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # noise is none of the images that the model is for
    rows, columns = np.mgrid[:12, :16]
    write_image("photograph.png", np.stack([12 * rows, 8 * columns, 5 * (rows + columns)], 2).astype(np.uint8))
    assert not run(EXAMPLES[1])
    samples = [read_image(f"sample_{index}.png") for index in range(4)]
    assert all(sample.shape == (48, 64, 3) for sample in samples)
    assert not np.array_equal(samples[0], samples[1])
