"""Models of anomalib are compared with the same weights in both blocks; a model of our own stands in for them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import __main__ as runner
from benchmarks import anomalib
from benchmarks.anomalib import _IMAGES, _MODELS, _map, _move, _pair, _seconds, _train, measure_anomalib

#: Constants of FrEIA's block: its permutation and that one's inverse.
FIXED = {"w_perm", "w_perm_inv"}


class Detector(nn.Module):
    """A map of anomalies by a flow of two blocks on given features, as the models of anomalib have."""

    def __init__(self, block: type[nn.Module]) -> None:
        from FrEIA.framework import SequenceINN

        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, stride=16, padding=1).requires_grad_(False)
        self.flow = SequenceINN(8, 16, 16)
        for _ in range(2):
            self.flow.append(block, subnet_constructor=self.subnet, affine_clamping=2.0, permute_soft=True)

    @staticmethod
    def subnet(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 1))

    def forward(self, x: Tensor) -> Any:
        z, log_det = self.flow(self.features(x))
        return (z, log_det) if self.training else z.square().mean(1)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The only model to be measured, in a module with the name of FrEIA's block, as anomalib's copy has."""
    pytest.importorskip("FrEIA", reason="FrEIA is not installed: make peers")
    from FrEIA.modules import AllInOneBlock

    module: Any = ModuleType(f"{_IMAGES}stand_in")
    module.AllInOneBlock = AllInOneBlock
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(anomalib, "_MODELS", {"Stand-in": ("stand_in", lambda: Detector(module.AllInOneBlock), _train)})
    return module


def rows_of(table: str) -> list[dict[str, str]]:
    head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_both_blocks_are_measured_with_the_same_weights(
    stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, timed = stand_in.AllInOneBlock, []
    ratios = [9.0, 1.0, 2.0]  # of the warm-up and of two rounds

    def seconds(call: Any) -> float:
        model = call.args[0]
        timed.append((call.func, isinstance(model.flow.module_list[0], theirs)))
        _seconds(call)
        return ratios[(len(timed) - 1) // 2 % 3] if timed[-1][1] else 1.0

    monkeypatch.setattr(anomalib, "_seconds", seconds)
    threads = torch.get_num_threads()
    assert runner.main(["anomalib", "--rounds", "2"]) == 0
    torch.set_num_threads(threads)
    (row,) = rows_of(capsys.readouterr().out)
    assert row["model"] == "Stand-in"
    assert row["blocks"] == "2"
    assert float(row["difference of maps"]) < 1e-5 < float(row["extent of maps"])
    assert row["training step"] == row["maps"] == "1.50", "so many times as fast is ours"
    # a warm-up and two rounds of each, in turn
    assert timed == [(work, is_theirs) for work in (_train, _map) for _ in range(3) for is_theirs in (True, False)]
    assert stand_in.AllInOneBlock is theirs


def test_a_block_that_computes_something_else_shows(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(stand_in.AllInOneBlock):
        def forward(self, *inputs: Any, **options: Any) -> Any:
            (z,), log_det = super().forward(*inputs, **options)
            return (z + 1e-2,), log_det

    monkeypatch.setattr(stand_in, "AllInOneBlock", Other)
    (row,) = rows_of(measure_anomalib(2))
    assert float(row["difference of maps"]) > 1e-3
    assert float(row["training step"]) > 0 < float(row["maps"])


def test_every_parameter_of_a_block_is_moved_but_its_permutation(stand_in: ModuleType) -> None:
    before, after = Detector(stand_in.AllInOneBlock), Detector(stand_in.AllInOneBlock)
    after.load_state_dict(before.state_dict())
    _move(after)
    values = dict(after.named_parameters())
    moved = {name for name, value in before.named_parameters() if not torch.equal(value, values[name])}
    of_blocks = {name for name in values if name.startswith("flow.") and name.split(".")[-1] not in FIXED}
    assert moved == of_blocks
    assert any(name.endswith("global_scale") for name in moved)


class Scaled(nn.Module):
    """Latents ``a * x``, in whatever form a model of anomalib returns them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.a = form, nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Any:
        z, log_det = self.a * x, x[0].numel() * self.a.log().expand(len(x))
        return {"one": (z, log_det), "levels": ([z, z], [log_det] * 2), "parts": ([z, z], log_det)}[self.form]


@pytest.mark.parametrize(("form", "latents", "log_dets"), [("one", 1, 1), ("levels", 2, 2), ("parts", 2, 1)])
def test_a_training_step_is_that_of_the_likelihood(form: str, latents: int, log_dets: int) -> None:
    model, x = Scaled(form).eval(), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for _ in range(2):  # gradients do not add up
        _train(model, x)
    assert model.training
    assert model.a.grad is not None
    # a sum(x^2) / 2 is 30 with a = 2 and two samples; dimensions / a is 1
    assert model.a.grad.item() == pytest.approx(30 * latents - 1 * log_dets)


def test_without_anomalib_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "anomalib", None)
    threads = torch.get_num_threads()
    assert runner.main(["anomalib"]) == 2
    torch.set_num_threads(threads)
    error = capsys.readouterr().err
    assert error.endswith(": run pip install anomalib FrEIA\n")
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", _MODELS)
def test_models_of_anomalib_compute_the_same_with_our_blocks(name: str) -> None:
    pytest.importorskip("anomalib", reason="anomalib is not installed: pip install anomalib FrEIA")
    from invflow.interop.freia import AllInOneBlock

    theirs, ours = _pair(name)
    blocks = [part for part in ours.modules() if hasattr(part, "global_scale")]
    assert len(blocks) >= 12
    assert all(isinstance(part, AllInOneBlock) for part in blocks)
    assert not any(isinstance(part, AllInOneBlock) for part in theirs.modules())
    x = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    expected, found = (_map(model, x) for model in (theirs, ours))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for model in (theirs, ours):
        _MODELS[name][2](model, x)
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters() if parameter.grad is not None}
    for key, gradient in gradients.items():
        mine = ours.get_parameter(key).grad
        assert mine is not None
        # as a whole: at a kink of ReLU single elements differ by more than rounding
        assert (mine - gradient).norm() <= 1e-2 * gradient.norm(), key
    assert all(part.global_scale.grad is not None for part in blocks)
