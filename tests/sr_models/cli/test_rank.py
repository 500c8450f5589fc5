"""``sr-models rank``."""

from __future__ import annotations

from pathlib import Path

import pytest

from sr_models.cli import main


def test_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, study = tmp_path / "methods.csv", tmp_path / "study.csv"
    table.write_text("method,lpips,lr_psnr,diversity\nmine,0.2,50,20\nother,0.3,46,25\nGAN,0.1,40,0\n")
    study.write_text("method,mor\nmine,4.1\nother,4.9\nGAN,4.0\n")
    assert main(["rank", str(table), "--opinions", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["1", "mine"], ["1", "other"], ["-", "GAN"]]
    assert main(["rank", str(table), "--published", "8"]) == 0
    out = capsys.readouterr().out
    assert "1     NCSR [published]" in out
    assert "[published]: Lugmayr et al., NTIRE 2021" in out
    assert main(["rank", str(table), "--published", "3"]) == 2
    assert "published must be 4 or 8" in capsys.readouterr().err
    # a name that is written otherwise would silently have no rank
    study.write_text("method,mor\nMine,4.1\nother,4.9\n")
    capsys.readouterr()
    assert main(["rank", str(table), "--opinions", str(study)]) == 0
    assert capsys.readouterr().err == "sr-models: no table has the method Mine of study.csv\n"
    assert main(["rank", str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err == f"sr-models: error: table {tmp_path / 'none.csv'} does not exist\n"
