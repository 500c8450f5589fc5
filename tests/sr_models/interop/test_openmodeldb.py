"""Entries of OpenModelDB say what is true of the file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from sr_models.checkpoints.files import load, save_model
from sr_models.checkpoints.shipped import shipped_file, shipped_models
from sr_models.interop.openmodeldb import main

OPTIONS = ["--author", "somebody", "--url", "https://example.org/a.safetensors", "--date", "2026-01-02"]


@pytest.mark.parametrize("name", shipped_models())
def test_entry(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "4x.safetensors"
    save_model(load(name), file)
    main([name, str(file), *OPTIONS])
    entry = json.loads(capsys.readouterr().out)
    (resource,) = entry["resources"]
    assert resource["size"] == file.stat().st_size
    assert resource["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert resource["urls"] == [OPTIONS[3]]
    assert (entry["scale"], entry["author"], entry["date"]) == (4, "somebody", "2026-01-02")
    shipped = shipped_file(name)
    assert shipped is not None
    card = re.sub(r"\s+", " ", shipped.with_suffix(".md").read_text())
    assert f"{entry['trainingIterations']:,} steps" in card
    assert "Licence: " + entry["license"] in card
    names = re.findall(r", train: ([^-]*(?:-(?! )[^-]*)*)", card)
    assert entry["datasetSize"] == sum(len(part.rstrip(" -").split(",")) for part in names)


def test_other_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load("srflow-da-tiny")
    next(model.parameters()).data.mul_(2)
    save_model(model, tmp_path / "4x.safetensors")
    with pytest.raises(SystemExit):
        main(["srflow-da-tiny", str(tmp_path / "4x.safetensors"), *OPTIONS])
    assert "file must hold the weights of srflow-da-tiny" in capsys.readouterr().err
