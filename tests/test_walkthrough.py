"""The walkthrough is followed: every command after the installation, with fewer steps of training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sr_models.io.images import read_image

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_command_does_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "walkthrough.md").read_text()
    install, *blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert "pip install" in install
    assert len(blocks) == 6
    script = "set -e\n" + "".join(blocks).replace("--steps 200", "--steps 2")
    # the interpreter and the commands of the environment that runs the tests
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "srflow-da 4 (1, 3, 1200, 1804)" in page
    assert "srflow-da 4 (1, 3, 1200, 1804)" in done.stdout
    for name in ("samples/photo_sample003.png", "samples/photo_sheet.png", "mine/photo_sample000.png", "report.html"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert read_image(tmp_path / "samples" / "photo_sample003.png").shape == (1200, 1804, 3)
    assert read_image(tmp_path / "upscaled.png").shape == (1200, 1804, 3)
    assert len(list((tmp_path / "photos" / "train").iterdir())) == 5
    assert len(list((tmp_path / "photos" / "test").iterdir())) == 2
    bicubic = re.search(r"^ *bicubic .* ([\d.]+)$", done.stdout, re.MULTILINE)
    assert bicubic is not None
    assert round(float(bicubic[1]), 2) == 0.37
