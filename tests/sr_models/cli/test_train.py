"""``sr-models train``: a model is left, and settings may stand in a file."""

from __future__ import annotations

from pathlib import Path

from sr_models.cli import main

TINY = "{steps: 1, hidden_channels: 4, features: 4, growth: 2, blocks: 2, stacked_blocks: [0, 1]}"


def test_training_leaves_a_model(run: Path) -> None:
    assert {"model.safetensors", "model.json", "training.json", "checkpoints"} <= {f.name for f in run.iterdir()}


def test_train_reads_a_config_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model: srflow-da\nimages: {folder}\ncrop: 16\nbatch_size: 1\nsteps: 1\noverrides: {TINY}\n"
        f"output: {tmp_path / 'out'}\naccelerator: cpu\n"
    )
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
