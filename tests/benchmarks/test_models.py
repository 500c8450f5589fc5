"""Whole models are measured in every variant, with results that agree and with figures that mean what they say."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks import models
from benchmarks import workloads as of_workloads
from benchmarks.models import ModelResult, measure_models, models_table
from benchmarks.workloads import (
    MODELS,
    Variant,
    Work,
    Workload,
    Workshop,
    compiled_variants_of,
    variants_of,
    workloads,
)
from invflow import FlowSequential

TRAIN = Workload("srflow", "train", 2, (32, 32), tiny=True)
SAMPLE = Workload("srflow", "sample", 3, (8, 8), tiny=True)
NOISY = Workload("ncsr", "train", 2, (32, 32), tiny=True)


@pytest.mark.parametrize("workload", [TRAIN, SAMPLE, NOISY], ids=lambda workload: workload.name)
def test_variants_compute_the_same(workload: Workload) -> None:
    shop = Workshop(workload, "cpu")
    truth, *others = [(variant, shop.work(variant).check()) for variant in variants_of(workload.kind, "cpu")]
    assert truth[0] == Variant("published", "fp32")
    assert truth[1].std(correction=0) > 0 or workload.kind == "train"
    for variant, result in others:
        tolerance = 1e-4 if variant.precision == "fp32" else 3e-2
        torch.testing.assert_close(result, truth[1], rtol=tolerance, atol=tolerance)
        assert not torch.equal(result, truth[1]), "another implementation rounds differently"


@pytest.mark.slow
@pytest.mark.parametrize("workload", [TRAIN, SAMPLE], ids=lambda workload: workload.name)
def test_compiled_layers_compute_the_same_and_share_their_code(workload: Workload) -> None:
    # in a process of its own: what the compiler starts forbids that other tests fork this one
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(compare_compiled, workload).result()


def compare_compiled(workload: Workload) -> None:
    from torch._dynamo.utils import counters

    # what the compiler would make of the graphs takes minutes
    torch.compile = partial(torch.compile, backend="eager")
    of_workloads._TINY["steps"] = 5
    shop = Workshop(workload, "cpu")
    for variant in compiled_variants_of(workload.kind, "cpu"):
        torch.compiler.reset()
        counters.clear()
        found = shop.work(variant).check()
        plain = shop.work(replace(variant, option="")).check()
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        assert not counters["graph_break"]
        assert counters["frames"]["ok"] == counters["frames"]["total"]
        layers = sum(len(module) for module in shop._flow(variant).modules() if isinstance(module, FlowSequential))
        assert 0 < counters["stats"]["unique_graphs"] < layers
        assert shop._flow(variant) is not shop._flow(replace(variant, option=""))


def test_a_training_step_changes_all_weights_and_nothing_but_their_last_bits() -> None:
    shop = Workshop(NOISY, "cpu")
    work = shop.work(Variant("ours", "fp32"))
    flow = shop._flows["ours"]
    before = {name: parameter.detach().clone() for name, parameter in flow.named_parameters()}
    loss = work.check()
    work.call()
    torch.testing.assert_close(work.check(), loss, rtol=1e-5, atol=0)
    gradients = [name for name, parameter in flow.named_parameters() if parameter.grad is not None]
    # what the encoder computes for the image that it predicts is no part of the likelihood
    assert all("hr_conv" in name or "last_conv" in name or "upconvs" in name for name in before.keys() - set(gradients))
    assert shop._optimizers["ours"].state_dict()["state"][0]["step"] == 1
    for name, parameter in flow.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=2e-9)


def test_invert_trains_with_the_memory_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    forward = FlowSequential.forward
    monkeypatch.setattr(FlowSequential, "forward", lambda flow, *a: used.append(flow.memory) or forward(flow, *a))
    shop = Workshop(TRAIN, "cpu")
    for option, memory in (("invert", "invert"), ("", "store")):
        used.clear()
        shop.work(Variant("ours", "fp32", option)).call()  # type: ignore[arg-type]
        assert set(used) == {memory}


def test_published_samples_are_calls_of_one_each_and_ours_one_call() -> None:
    shop = Workshop(SAMPLE, "cpu")
    assert shop.work(Variant("published", "fp32")).calls == 3
    ours = shop.work(Variant("ours", "fp32"))
    assert ours.calls == 1
    samples = ours.call()
    assert isinstance(samples, torch.Tensor)
    assert samples.shape == (1, 3, 3, 32, 32)


def test_times_count_as_often_as_the_call_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(models.time, "process_time", lambda: next(clock))
    work = Work(lambda: None, lambda: torch.ones(2), calls=5)
    monkeypatch.setattr(Workshop, "work", lambda shop, variant: work)
    (result,) = measure_models(SAMPLE, [Variant("published", "fp32")], "cpu", 4)
    assert (result.median, result.low, result.high) == (5, 5, 5)
    assert result.rounds == 4
    assert result.clock == "processor"


def test_long_calls_are_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(100.0 * hundred for hundred in range(100))
    monkeypatch.setattr(models.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(Workshop, "work", lambda shop, variant: Work(lambda: None, lambda: torch.ones(2)))
    (result,) = measure_models(SAMPLE, [Variant("ours", "fp32")], "cpu", 9)
    assert result.rounds == 2


def test_what_was_measured_is_kept_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def call() -> None:
        now[0] += 1

    def result() -> torch.Tensor:
        now[0] += 10
        return torch.ones(2)

    for clock in ("monotonic", "process_time"):
        monkeypatch.setattr(models.time, clock, lambda: now[0])
    monkeypatch.setattr(Workshop, "work", lambda shop, variant: Work(call, result))
    variants = variants_of("sample", "cpu")
    results = measure_models(SAMPLE, variants, "cpu", 9, until=15)
    assert [result.error for result in results] == ["", "", "no time left", "no time left"]
    assert [(result.median, result.rounds) for result in results[:2]] == [(1, 2)] * 2
    now[0] = 0
    results = measure_models(SAMPLE, variants[:1], "cpu", 9, until=14)
    assert [result.rounds for result in results] == [5]


def test_what_fails_is_said_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workshop.work

    def failing(shop: Workshop, variant: Variant) -> Work:
        if variant.precision == "bf16":
            raise RuntimeError("not today\nor tomorrow")
        return work(shop, variant)

    monkeypatch.setattr(Workshop, "work", failing)
    variants = [Variant("published", "fp32"), Variant("ours", "bf16"), Variant("ours", "fp32")]
    results = measure_models(SAMPLE, variants, "cpu", 2)
    assert [result.error for result in results] == ["", "RuntimeError: not today", ""]
    assert "not today" in models_table(results)


def test_ratios_are_to_the_published_composition_in_the_same_precision_and_in_float32() -> None:
    def result(variant: str, seconds: float) -> ModelResult:
        return ModelResult("w", variant, 2, 1, "processor", seconds, seconds, seconds, 3)

    rows = models_table([result("published-fp32", 4), result("published-bf16", 2), result("ours-bf16-invert", 1)])
    cells = rows.splitlines()[-1].strip("| ").split(" | ")
    assert cells[2:8] == ["ours-bf16-invert", "1", "1 to 1", "2", "0.50", "0.25"]


def test_run_models_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "models.json"
    run = ["run", "models", "--quick", "--device", "cpu", "--threads", "1", "--only", "srflow-da train *"]
    run += ["--peak-memory", "--backends", "ours-fp32", "--json", str(path)]
    assert runner.main(run) == 0
    printed = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["not_measured"] == []
    measured = [(row["workload"], row["variant"]) for row in record["results"]]
    assert measured == [("srflow-da train 2 of 32x32", "ours-fp32")]
    for row in record["results"]:
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["difference"] < 1e-4
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0
    assert runner.main(["report", str(path)]) == 0
    assert printed.strip() in capsys.readouterr().out
    assert runner.main(["report", str(path), "--plot", "x.png"]) == 2
    assert "--plot draws" in capsys.readouterr().err


def test_no_case_begins_when_the_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "models.json"
    run = ["run", "models", "--quick", "--device", "cpu", "--threads", "1", "--seconds", "0", "--json", str(path)]
    assert runner.main(run) == 0
    record = json.loads(path.read_text())
    assert record["results"] == []
    assert len(record["not_measured"]) == 6
    assert "no time left for 6 of 6 cases" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_workloads_and_variants_have_names_of_their_own(device: str) -> None:
    names = [workload.name for workload in workloads(device)]
    assert len(set(names)) == len(names) == len(MODELS) * (4 if device == "cpu" else 5)
    assert "srflow sample 1000 of 64x64" in names
    for kind in ("train", "sample"):
        found = [variant.name for variant in variants_of(kind, device)]
        assert len(set(found)) == len(found)
        assert ("ours-bf16-graph" in found) == (device == "cuda")
        assert ("ours-bf16-invert" in found) == (kind == "train")
        compiled = [variant.name for variant in compiled_variants_of(kind, device)]
        assert not set(compiled) & set(found), "they take minutes, and are named to be measured"
        assert "published-bf16-compile" in compiled
        assert ("ours-fp32-compile" in compiled) == (kind == "train")


@pytest.mark.gpu
@pytest.mark.parametrize("workload", [TRAIN, SAMPLE], ids=lambda workload: workload.name)
def test_models_on_a_gpu(workload: Workload) -> None:
    results = measure_models(workload, variants_of(workload.kind, "cuda"), "cuda", 2)
    plain = [result for result in results if not result.variant.endswith("-graph")]
    assert not [result.error for result in plain if result.error]
    for result in plain:
        assert result.median > 0
        assert result.launches
        assert result.busy
        assert result.peak_bytes
        assert result.difference < 0.1
