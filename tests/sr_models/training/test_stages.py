"""Recipes of several runs: planned as a whole, run one after another, and none twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_models.checkpoints.files import load_model
from sr_models.training.config import TrainingConfig
from sr_models.training.stages import Stage, plan_stages, train_stages

MakeConfig = Callable[..., TrainingConfig]
ENCODER = {"name": "encoder", "steps": 3, "encoder_steps": 3}
FLOW = {"name": "flow", "steps": 4, "lr": 1e-4, "seed": 1, "encoder_frozen": 1.0}
TUNING = {"name": "fine-tuning", "steps": 2, "crop": 32, "batch_size": 1, "encoder_frozen": 0.0}


@pytest.fixture
def shared(config: MakeConfig) -> dict[str, Any]:
    """Settings of every stage, as a file gives them."""
    given = config(encoder_steps=0)
    return {name: getattr(given, name) for name in given.settings() if name != "steps"}


class TestPlan:
    def test_a_stage_has_the_shared_settings_but_for_its_own(self, shared: dict[str, Any]) -> None:
        stages = plan_stages({**shared, "encoder": "rrdb.safetensors"}, [ENCODER, FLOW, TUNING])
        assert [stage.name for stage in stages] == ["encoder", "flow", "fine-tuning"]
        assert [stage.config.recipe.steps for stage in stages] == [3, 4, 2]
        assert [stage.config.recipe.lr for stage in stages] == [1e-3, 1e-4, 1e-3]
        assert [stage.config.crop for stage in stages] == [16, 16, 32]
        # only the first one begins with a pretrained encoder
        assert [stage.config.encoder for stage in stages] == ["rrdb.safetensors", None, None]
        assert [stage.config.seed for stage in stages] == [10, 1, 10]

    def test_null_is_the_default(self, shared: dict[str, Any]) -> None:
        stages = plan_stages(shared, [{**ENCODER, "batch_size": None, "gradient_clip": None, "val_images": None}])
        assert stages[0].config.recipe.batch_size == 12
        assert (stages[0].config.recipe.gradient_clip, stages[0].config.val_images) == (10.0, None)

    @pytest.mark.parametrize(
        ("stages", "message"),
        [
            ([], "stages must hold at least one stage, got none"),
            ([{"steps": 3}], "stage 1 must have a name of letters, digits, -, _ and dots, got None"),
            ([ENCODER, {"name": "a/b"}], "stage 2 must have a name of letters, digits, -, _ and dots, got 'a/b'"),
            ([{"name": ".."}], "stage 1 must have a name .*, got '..'"),
            ([{"name": 3}], "stage 1 must have a name .*, got 3"),
            (
                [ENCODER, {"name": "flow", "stps": 3}],
                r"stage 2 \(flow\): there is no setting 'stps'; did you mean steps",
            ),
            ([{**ENCODER, "steps": 2}], r"stage 1 \(encoder\): encoder_steps must be in 0..2 for 2 steps, got 3"),
            ([{**ENCODER, "images": None}], r"stage 1 \(encoder\): images must be given"),
            ([ENCODER, {**FLOW, "encoder": "x"}], r"stage 2 \(flow\): encoder must not be given: a later stage begins"),
            ([ENCODER, {**FLOW, "init_from": "x"}], r"stage 2 \(flow\): init_from must not be given"),
            (
                [ENCODER, {**FLOW, "overrides": {}}],
                r"stage 2 \(flow\): model, scale, preset and overrides must be those",
            ),
            ([ENCODER, {**FLOW, "model": "srflow"}], r"stage 2 \(flow\): .* must be those of the first stage"),
        ],
    )
    def test_mistakes(self, shared: dict[str, Any], stages: list[dict[str, Any]], message: str) -> None:
        with pytest.raises(ValueError, match=f"^{message}"):
            plan_stages(shared, stages)


@pytest.fixture(scope="module")
def finished(config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Stage], Path]:
    """Three stages that have been run."""
    given = config(encoder_steps=0)
    shared = {name: getattr(given, name) for name in given.settings() if name != "steps"}
    stages, output = plan_stages(shared, [ENCODER, FLOW, TUNING]), tmp_path_factory.mktemp("stages")
    assert train_stages(stages, output, accelerator="cpu") == output / "3-fine-tuning" / "model.safetensors"
    return stages, output


class TestRuns:
    def test_every_stage_has_a_folder(self, finished: tuple[list[Stage], Path]) -> None:
        names = ["1-encoder", "2-flow", "3-fine-tuning"]
        assert sorted(path.name for path in finished[1].iterdir()) == names
        records = [json.loads((finished[1] / name / "training.json").read_text())["settings"] for name in names]
        assert [record["steps"] for record in records] == [3, 4, 2]
        origins = [record["init_from"] for record in records]
        assert origins == [None, *(str(finished[1] / name / "model.safetensors") for name in names[:2])]

    def test_a_stage_begins_with_the_model_of_the_former(self, finished: tuple[list[Stage], Path]) -> None:
        names = ("1-encoder", "2-flow", "3-fine-tuning")
        first, second, third = (load_model(finished[1] / name / "model.safetensors").state_dict() for name in names)
        # the second stage leaves the encoder as it is
        encoder = [name for name in first if name.startswith("encoder.")]
        assert all(torch.equal(first[name], second[name]) for name in encoder)
        assert not all(torch.equal(second[name], third[name]) for name in encoder)
        # the third one moves no weight by more than Adam can in two steps
        assert all((second[name] - third[name]).abs().max() < 3e-3 for name in encoder)
        assert max((second[name] - third[name]).abs().max() for name in second if "actnorm" in name) < 3e-3

    def test_a_finished_stage_is_not_run_again(
        self, finished: tuple[list[Stage], Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        stages, output = finished
        before = {path: path.stat().st_mtime_ns for path in sorted(output.rglob("*"))}
        assert train_stages(stages, output, accelerator="cpu") == output / "3-fine-tuning" / "model.safetensors"
        assert {path: path.stat().st_mtime_ns for path in sorted(output.rglob("*"))} == before
        printed = capsys.readouterr().out
        assert re.findall(r"stage (\S+) is finished", printed) == ["1-encoder", "2-flow", "3-fine-tuning"]

    def test_a_finished_stage_is_in_the_way_of_a_new_start(self, finished: tuple[list[Stage], Path]) -> None:
        stages, output = finished
        with pytest.raises(FileExistsError, match=r"1-encoder holds a run and resume is 'never'"):
            train_stages(stages, output, accelerator="cpu", resume="never")

    def test_an_interrupted_stage_goes_on(self, finished: tuple[list[Stage], Path], tmp_path: Path) -> None:
        stages, unbroken = finished

        class Killed(Exception):
            pass

        done: list[int] = []

        def interrupt(step: int, objective: object) -> None:
            done.append(step)
            if len(done) == 5:
                raise Killed

        with pytest.raises(Killed):
            train_stages(stages, tmp_path, accelerator="cpu", callbacks=[interrupt])
        assert done == [1, 2, 3, 1, 2]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1-encoder", "2-flow"]
        path = train_stages(stages, tmp_path, accelerator="cpu", callbacks=[interrupt])
        assert done[5:] == [3, 4, 1, 2]
        expected = load_model(unbroken / "3-fine-tuning" / "model.safetensors").state_dict()
        actual = load_model(path).state_dict()
        assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())

    def test_other_settings_of_a_finished_stage(
        self, finished: tuple[list[Stage], Path], shared: dict[str, Any]
    ) -> None:
        output = finished[1]
        free = plan_stages({**shared, "lr": 5e-4, "val_every": 2, "images": "elsewhere"}, [ENCODER, FLOW, TUNING])
        assert train_stages(free, output, accelerator="cpu").exists()
        other = plan_stages({**shared, "seed": 11}, [ENCODER, FLOW, TUNING])
        with pytest.raises(ValueError, match=r"1-encoder is finished and had other settings \(seed was 10, now 11\)"):
            train_stages(other, output, accelerator="cpu")

    def test_more_steps(self, config: MakeConfig, tmp_path: Path) -> None:
        given = config(encoder_steps=0)
        shared = {name: getattr(given, name) for name in given.settings() if name != "steps"}
        done: list[int] = []

        def train(encoder_steps: int, steps: int, stop: int | None = None) -> None:
            def note(step: int, objective: object) -> None:
                done.append(step)
                if step == stop:
                    raise InterruptedError

            encoder = {**ENCODER, "steps": encoder_steps, "encoder_steps": encoder_steps}
            stages = plan_stages(shared, [encoder, {**FLOW, "steps": steps}])
            done.clear()
            train_stages(stages, tmp_path, accelerator="cpu", callbacks=[note])

        train(3, 4)
        with pytest.raises(InterruptedError):
            train(3, 6, stop=5)
        assert done == [5]
        train(3, 6)
        assert done == [6]
        train(3, 6)
        assert not done
        with pytest.raises(ValueError, match=r"1-encoder is finished and had other settings \(steps was 3, now 5"):
            train(5, 6)
