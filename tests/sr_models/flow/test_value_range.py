"""Images in 0..255 are refused wherever images in [0, 1] are meant, and so is nothing at all."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import randomised
from torch import Tensor

from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.value_range import LARGEST, check_range

LR = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HR = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def model() -> SuperResolutionFlow:
    return randomised("srflow-da")


@pytest.mark.parametrize("training", [False, True])
def test_images_of_8_bit_values(model: SuperResolutionFlow, training: bool) -> None:
    model.train(training)
    message = r"must have values in \[0, 1\], got values in .*\.\.25.*; divide 8-bit values by 255"
    with pytest.raises(ValueError, match=f"hr {message}"):
        model.encode(255 * HR, LR)
    for call in (
        lambda lr: model.encode(HR, lr),
        lambda lr: model.sample(lr),
        lambda lr: model.decode(model.encode(HR, LR).latents, lr),
    ):
        with pytest.raises(ValueError, match=f"lr {message}"):
            call(255 * LR)


def test_other_values_are_left_alone(model: SuperResolutionFlow) -> None:
    noisy = HR + 3 * torch.randn(HR.shape, generator=torch.Generator().manual_seed(2), dtype=HR.dtype)
    assert noisy.abs().max() > 5
    assert model.encode(noisy, LR).log_prob.isfinite().all()
    model.encode(HR * torch.nan, LR)
    assert model.sample(2 * LR - 1).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [LARGEST + 1, -LARGEST - 1])
def test_every_dtype(dtype: torch.dtype, value: float) -> None:
    image = torch.full((1, 3, 2, 2), 0.5, dtype=dtype)
    check_range(image, "hr")
    image[0, 1, 0, 1] = value
    with pytest.raises(ValueError, match="divide 8-bit values by 255"):
        check_range(image, "hr")


@pytest.mark.parametrize("image", [torch.empty(0, 3, 4, 4), torch.empty(1, 3, 2, 2, device="meta")])
def test_no_values(image: Tensor) -> None:
    check_range(image, "hr")


def test_compilers_and_transforms_see_no_check() -> None:
    """A check would end the compiled graph, and has no single answer under ``vmap``."""

    def checked(image: Tensor) -> Tensor:
        check_range(image, "hr")
        return 2 * image

    image = torch.full((2, 3, 2, 2), 255.0)
    compiled = torch.compile(checked, fullgraph=True, backend="eager")
    assert torch.equal(compiled(image), 2 * image)
    assert torch.equal(torch.func.vmap(checked)(image), 2 * image)
    assert torch.equal(torch.jit.trace(checked, torch.zeros(2, 3, 2, 2), check_trace=False)(image), 2 * image)


def test_copies_check_again(model: SuperResolutionFlow) -> None:
    with pytest.raises(ValueError, match="divide 8-bit values by 255"):
        copy.deepcopy(model).encode(255 * HR, LR)


def test_on_an_accelerator_one_look_is_enough(model: SuperResolutionFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for an accelerator: reading values from one makes the processor wait."""
    seen = []
    monkeypatch.setattr("sr_models.flow.value_range.check_range", lambda image, name: seen.append((image, name)))
    lr, hr = LR.to("meta"), HR.to("meta")
    for image, name in ((lr, "lr"), (hr, "hr"), (lr, "lr"), (LR, "lr"), (LR, "lr")):
        model._check(image, name)
    assert [name for _, name in seen] == ["lr", "hr", "lr", "lr"]
    assert all(found is given for (found, _), given in zip(seen, (lr, hr, LR, LR), strict=True))


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
def test_images_without_pixels(model: SuperResolutionFlow, size: tuple[int, int]) -> None:
    lr, hr = LR[:, :, : size[0], : size[1]], HR[:, :, : 4 * size[0], : 4 * size[1]]
    latents = model.encode(HR, LR).latents
    for call in (lambda: model.sample(lr), lambda: model.decode(latents, lr), lambda: model.encode(hr, lr)):
        with pytest.raises(
            ValueError, match=f"lr must have at least one pixel, got shape .2, 3, {size[0]}, {size[1]}."
        ):
            call()
