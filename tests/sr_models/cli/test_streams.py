"""A standard error that fails ends no command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sr_models.cli._streams import lenient_stderr

_TRAIN = """
import sys
from sr_models.cli import main
overrides = '{"steps":1,"hidden_channels":4,"features":4,"growth":2,"blocks":2,"stacked_blocks":[0,1]}'
options = "--model srflow-da --crop 16 --batch_size 1 --steps 3 --device cpu --images".split()
sys.exit(main(["train", *options, sys.argv[1], "--output", sys.argv[2], "--overrides", overrides]))
"""


@pytest.mark.parametrize("redirection", [">$4 2>&-", ">$4 2>/dev/full", "2>&1 >$4 | true"])
def test_a_training_goes_on(folder: Path, tmp_path: Path, redirection: str) -> None:
    if "/dev/full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    output = tmp_path / "run"
    command = f'"$0" -c "$1" "$2" "$3" {redirection}; exit "${{PIPESTATUS[0]}}"'
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, _TRAIN, str(folder), str(output), str(tmp_path / "out")]
    assert subprocess.run(["bash", "-c", command, *arguments], env=environment).returncode == 0
    assert (output / "model.safetensors").exists()
    assert (tmp_path / "out").read_text() == f"wrote {output / 'model.safetensors'}\n"


def test_bad_input_has_its_exit_code() -> None:
    code = "import sys; from sr_models.cli import main; sys.exit(main(['fly']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for redirection in ("2>&-", "2>/dev/full"):
        command = f'"$0" -c "$1" {redirection}'
        assert subprocess.run(["bash", "-c", command, sys.executable, code], env=environment).returncode == 2


class Broken:
    """A stream whose other end has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_what_cannot_be_written_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    with lenient_stderr():
        assert sys.stderr.write("lost") == 4
        sys.stderr.flush()
        # the block must not end with an error either, and this stream has no number that could be freed
        sys.stderr._stream.flush = lambda: None  # type: ignore[attr-defined]


@pytest.mark.parametrize(("set_by_user", "seconds"), [({}, 10), ({"TQDM_MININTERVAL": "3"}, 3)])
def test_a_log_gets_few_states_of_a_progress_bar(set_by_user: dict[str, str], seconds: int) -> None:
    code = (
        "import sys; from sr_models.cli import main; sys.argv = ['', 'list']; main();"
        "import tqdm; print(tqdm.tqdm(disable=False).mininterval)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **set_by_user}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) == seconds
