"""A run in a folder: a resumed one equals an unbroken one, and another one is refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sr_models
from sr_models.checkpoints.convert import convert_published
from sr_models.checkpoints.files import load_model
from sr_models.checkpoints.published import encoder_layout
from sr_models.data import kept
from sr_models.data.crops import RandomCrops
from sr_models.evaluation.report.curve import training_curve
from sr_models.training.checkpoints import Checkpoints
from sr_models.training.config import TrainingConfig
from sr_models.training.objective import Objective
from sr_models.training.run import train_model
from sr_models.training.stopping import Stopped

MakeConfig = Callable[..., TrainingConfig]


def stop_at(stop: int, error: BaseException) -> Callable[[int, Objective], None]:
    """A failure after a step."""

    def callback(step: int, objective: Objective) -> None:
        if step == stop:
            raise error

    return callback


def send_at(stop: int, number: int) -> Callable[[int, Objective], None]:
    return lambda step, objective: signal.raise_signal(number) if step == stop else None


def weights(path: Path) -> dict[str, Tensor]:
    return load_model(path).state_dict()


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope="module")
def unbroken(config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_model(config(), tmp_path_factory.mktemp("unbroken"), accelerator="cpu")


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 7, 8])
def test_resumed_run_equals_unbroken_run(config: MakeConfig, tmp_path: Path, unbroken: Path, stop: int) -> None:
    with pytest.raises(InterruptedError):
        train_model(config(), tmp_path, accelerator="cpu", callbacks=[stop_at(stop, InterruptedError())])
    assert not (tmp_path / "model.safetensors").exists()
    assert Checkpoints(tmp_path / "checkpoints").newest()["step"] == stop
    resumed = train_model(config(), tmp_path, accelerator="cpu")
    assert_equal(weights(unbroken), weights(resumed))
    curves = [training_curve(folder / "logs") for folder in (unbroken.parent, tmp_path)]
    assert curves[0].val_nll == curves[1].val_nll


@pytest.mark.parametrize(
    "changes", [{"accumulate": 2, "precision": "fp16"}, {"average": 0.0}, {"precision": "bf16"}, {"memory": "invert"}]
)
def test_resumed_runs_of_every_kind(config: MakeConfig, tmp_path: Path, changes: dict[str, object]) -> None:
    whole = train_model(config(**changes), tmp_path / "whole", accelerator="cpu")
    for stop in (2, 5):
        with pytest.raises(InterruptedError):
            train_model(config(**changes), tmp_path / "parts", accelerator="cpu", workers=stop % 2,
                        callbacks=[stop_at(stop, InterruptedError())])  # fmt: skip
    assert_equal(weights(whole), weights(train_model(config(**changes), tmp_path / "parts", accelerator="cpu")))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_may_begin_and_go_on_with_and_without_decoded_photographs_on_the_disk(
    config: MakeConfig, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(kept, "FEW", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for stop, amount in ((2, 1.0), (4, 1.0), (6, 0.0)):
        with pytest.raises(InterruptedError):
            train_model(config(), tmp_path / "run", accelerator="cpu", workers=workers, disk_cache=amount,
                        callbacks=[stop_at(stop, InterruptedError())])  # fmt: skip
    assert len(list((tmp_path / "cache" / "sr_models" / "decoded").iterdir())) == 1
    resumed = train_model(config(), tmp_path / "run", accelerator="cpu")
    assert_equal(weights(unbroken), weights(resumed))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_its_step(
    config: MakeConfig, tmp_path: Path, unbroken: Path, number: signal.Signals
) -> None:
    with pytest.raises(Stopped, match="stopped at step 4; the same command goes on") as caught:
        train_model(config(), tmp_path, accelerator="cpu", callbacks=[send_at(4, number)])
    assert caught.value.exit_code == 128 + number
    assert Checkpoints(tmp_path / "checkpoints").newest()["step"] == 4
    assert_equal(weights(unbroken), weights(train_model(config(), tmp_path, accelerator="cpu")))


def test_a_step_that_was_interrupted_is_done_again(
    config: MakeConfig, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.Adam.step
    calls = []

    def fail_within(optimizer: torch.optim.Adam, *args: object) -> None:
        step(optimizer, *args)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", fail_within)
    with pytest.raises(KeyboardInterrupt):
        train_model(config(), tmp_path, accelerator="cpu")
    monkeypatch.undo()
    # of the fifth step a part was done: its state is not written, and that of the third is what there is
    assert Checkpoints(tmp_path / "checkpoints").newest()["step"] == 3
    assert_equal(weights(unbroken), weights(train_model(config(), tmp_path, accelerator="cpu")))


def test_finished_run_is_left_as_it_is(config: MakeConfig, tmp_path: Path) -> None:
    before = weights(train_model(config(), tmp_path, accelerator="cpu"))
    called = []
    again = train_model(config(), tmp_path, accelerator="cpu", callbacks=[lambda step, _: called.append(step)])
    assert_equal(before, weights(again))
    assert called == []


def test_a_finished_run_goes_on_with_more_steps_and_another_rate(config: MakeConfig, tmp_path: Path) -> None:
    before = weights(train_model(config(), tmp_path, accelerator="cpu"))
    steps = []
    path = train_model(config(steps=10, lr=1e-4), tmp_path, accelerator="cpu",
                       callbacks=[lambda step, _: steps.append(step)])  # fmt: skip
    assert steps == [9, 10]
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(path).items())
    with pytest.raises(ValueError, match="steps must be at least 10, which the run has already done, got 9"):
        train_model(config(steps=9), tmp_path, accelerator="cpu")


def test_another_run_in_the_folder_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    train_model(config(), tmp_path, accelerator="cpu")
    record = (tmp_path / "training.json").read_text()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(seed was 10, now 11\)"):
        train_model(config(seed=11), tmp_path, accelerator="cpu")
    assert (tmp_path / "training.json").read_text() == record
    assert json.loads(record)["settings"]["seed"] == 10


def test_without_validation_folder(config: MakeConfig, tmp_path: Path) -> None:
    assert train_model(config(val_images=None), tmp_path, accelerator="cpu").exists()
    assert not (tmp_path / "best.safetensors").exists()


def test_the_best_weights_are_kept(config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sr_models.training import validation

    seen = []
    figures = iter([3.0, 1.0, 2.0, 1.5, 1.7])

    def score(self: validation.Validation, model: sr_models.SuperResolutionFlow, *_: object, **__: object) -> object:
        scores = {"val_nll": next(figures)}
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return validation.Scores(scores, torch.zeros(3, 4, 4), ("truth",))

    monkeypatch.setattr(validation.Validation, "__call__", score)
    path = train_model(config(val_every=2, encoder_steps=1), tmp_path, accelerator="cpu")  # at 1, 2, 4, 6 and 8
    assert next(figures, None) is None
    assert_equal(seen[1], weights(tmp_path / "best.safetensors"))
    assert_equal(seen[-1], weights(path))
    best = Checkpoints(tmp_path / "checkpoints").newest()["best"]
    assert best == {"figure": "val_nll", "value": 1.0, "step": 2}


def test_images_that_are_gone_at_the_end_cost_no_work(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: RandomCrops, index: int) -> object:
        raise FileNotFoundError("the images are gone")

    def take_away(step: int, objective: object) -> None:
        if step == 8:  # no step needs a crop any more, but the check of the last weights does
            monkeypatch.setattr(RandomCrops, "__getitem__", gone)

    with pytest.raises(FileNotFoundError, match="gone"):
        train_model(config(save_every=100), tmp_path, accelerator="cpu", callbacks=[take_away])
    assert Checkpoints(tmp_path / "checkpoints").newest()["step"] == 8


@pytest.mark.parametrize(
    ("output", "placement", "message"),
    [
        ("", {}, "output must be the name of a folder, got an empty one"),
        ("~nosuchuser/run", {}, "output ~nosuchuser/run begins with an unknown user"),
        ("run", {"workers": -1}, "workers must be at least 0, got -1"),
        ("run", {"devices": -1}, "devices must be at least 1, or auto, got -1"),
        ("run", {"devices": [0]}, r"accelerator 'cpu' with devices \[0\] cannot be used"),
    ],
)
def test_mistakes_leave_no_trace(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, placement: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{message}"):
        train_model(config(), output, accelerator="cpu", **placement)
    assert not list(tmp_path.iterdir())


def test_an_image_of_the_encoder_alone_is_never_the_best(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sr_models.training import validation

    def score(*_: object, encoder_only: bool, **__: object) -> object:
        return validation.Scores({"val_psnr": 40.0 if encoder_only else 20.0}, torch.zeros(3, 4, 4), ("truth",))

    monkeypatch.setattr(validation.Validation, "__call__", score)
    for steps in (8, 4):  # the second run trains the encoder only
        run = config(val_every=2, steps=steps, encoder_steps=4, best="val_psnr")
        train_model(run, tmp_path / str(steps), accelerator="cpu")
    first, second = (Checkpoints(tmp_path / name / "checkpoints").newest()["best"] for name in ("8", "4"))
    assert first == {"figure": "val_psnr", "value": 20.0, "step": 4}
    assert second == {"figure": "val_psnr", "value": 40.0, "step": 2}


def test_the_file_holds_the_averaged_weights(config: MakeConfig, tmp_path: Path) -> None:
    trained = {}

    def keep(step: int, objective: Objective) -> None:
        trained.update({name: tensor.clone() for name, tensor in objective.model.state_dict().items()})

    for average in (0.0, 0.9):
        path = train_model(config(average=average), tmp_path / str(average), accelerator="cpu", callbacks=[keep])
        equal = all(torch.equal(tensor, trained[name]) for name, tensor in weights(path).items())
        assert equal == (not average)


def test_pretrained_encoder(config: MakeConfig, tmp_path: Path) -> None:
    encoder = sr_models.create("srflow-da", **config().overrides).encoder
    state_dict = {name: encoder.state_dict()[own] for name, (own, _) in encoder_layout(encoder).items()}
    torch.save(state_dict, tmp_path / "rrdb.pth")
    convert_published(tmp_path / "rrdb.pth", tmp_path / "rrdb.safetensors")
    frozen = {"encoder": str(tmp_path / "rrdb.safetensors"), "encoder_steps": 0, "encoder_frozen": 1.0, "steps": 2}
    trained = load_model(train_model(config(**frozen), tmp_path / "run", accelerator="cpu")).encoder
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name
    other = config(**frozen, overrides={**config().overrides, "features": 6})
    with pytest.raises(ValueError, match=r"cannot load encoder .*rrdb.safetensors: size mismatch"):
        train_model(other, tmp_path / "other", accelerator="cpu")
    assert not (tmp_path / "other").exists()


def test_training_begins_from_the_weights_of_a_model(config: MakeConfig, tmp_path: Path, unbroken: Path) -> None:
    tuned = train_model(config(init_from=str(unbroken), encoder_steps=0, steps=1, lr=1e-12, average=0.0,
                               encoder_frozen=0.0), tmp_path / "tuned", accelerator="cpu")  # fmt: skip
    for name, tensor in weights(unbroken).items():
        torch.testing.assert_close(weights(tuned)[name], tensor, rtol=0, atol=1e-8)


def test_an_encoder_alone_can_be_trained(config: MakeConfig, tmp_path: Path) -> None:
    run = config(steps=6, encoder_steps=6)
    path = train_model(run, tmp_path / "encoder", accelerator="cpu")
    curve = training_curve(tmp_path / "encoder" / "logs")
    assert curve.l1
    assert not curve.nll
    flow = train_model(config(init_from=str(path), encoder_steps=0), tmp_path / "flow", accelerator="cpu")
    assert flow.exists()


def test_a_machine_without_the_hardware_says_so_and_leaves_nothing(config: MakeConfig, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"accelerator 'gpu' with devices 'auto' cannot be used: torch finds no gpu"):
        train_model(config(), tmp_path / "run", accelerator="gpu")
    with pytest.raises(ValueError, match="strategy must be auto, ddp or fsdp, got 'deepspeed'"):
        train_model(config(), tmp_path / "run", strategy="deepspeed")
    assert not (tmp_path / "run").exists()
