"""The argument ``consistency`` of ``sample``."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tiny_models import randomised

from sr_models.flow.consistency import ConsistencyWarning, make_consistent
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import to_tensor, to_uint8
from sr_models.io.resize import imresize


def low(height: int, width: int, scale: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a batch of two reductions of 8-bit images."""
    random = np.random.default_rng(0)
    truths = random.integers(0, 256, (2, scale * height, scale * width, 3), np.uint8)
    return torch.stack([to_tensor(imresize(truth, 1 / scale)) for truth in truths]).to(dtype)


def off(samples: torch.Tensor, lr: torch.Tensor, scale: int) -> list[int]:
    """For every sample that is saved and reduced: the largest difference to the low-resolution image."""
    return [
        int(np.abs(imresize(to_uint8(sample), 1 / scale).astype(int) - to_uint8(wanted)).max())
        for wanted, of_image in zip(lr, samples, strict=True)
        for sample in of_image
    ]


@pytest.fixture(scope="module", params=["srflow", "ncsr"])
def model(request: pytest.FixtureRequest) -> SuperResolutionFlow:
    return randomised(request.param)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (18, 11)])
@pytest.mark.parametrize("options", [{}, {"tile": 16}, {"precision": "bf16"}])
def test_samples_agree(size: tuple[int, int], options: dict) -> None:
    dtype = torch.float32 if "precision" in options else torch.float64
    model = randomised("srflow", dtype=dtype)
    lr = low(*size, 4, dtype)
    plain = model.sample(lr, 2, **options)
    assert min(off(plain, lr, 4)) > 1
    assert torch.equal(plain, model.sample(lr, 2, **options, consistency="none"))
    projected = model.sample(lr, 2, **options, consistency="project")
    assert max(off(projected, lr, 4)) <= 1
    exact = model.sample(lr, 2, **options, consistency="exact")
    assert max(off(exact, lr, 4)) == 0
    for samples in (projected, exact):
        assert samples.dtype == dtype
        assert samples.shape == (2, 2, 3, 4 * size[0], 4 * size[1])
        assert samples.min() >= 0
        assert samples.max() <= 1
        assert not torch.equal(samples[:, 0], samples[:, 1])
        assert not torch.equal(samples[0], samples[1])


def test_every_scale(model: SuperResolutionFlow) -> None:
    large = randomised(model.name, scale=8)
    lr = low(5, 3, 8, torch.float64)
    assert max(off(large.sample(lr, 2, consistency="exact"), lr, 8)) == 0


def test_images_do_not_depend_on_each_other(model: SuperResolutionFlow) -> None:
    lr = low(6, 5, 4, torch.float64)
    for consistency in ("project", "exact"):
        together = model.sample(lr, 2, consistency=consistency)
        alone = torch.cat([model.sample(part, 2, consistency=consistency) for part in lr.split(1)])
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-9)


def test_a_low_resolution_image_without_8_bits(model: SuperResolutionFlow) -> None:
    lr = torch.rand(1, 3, 4, 4, dtype=torch.float64) * 0.2 + 0.4
    message = "multiples of 1/255 in .0, 1., for consistency 'exact'; round it, or choose consistency 'project'"
    with pytest.raises(ValueError, match=message):
        model.sample(lr, consistency="exact")
    sample = model.sample(lr, consistency="project")[0, 0]
    down = imresize(sample.permute(1, 2, 0).numpy(), 1 / 4).transpose(2, 0, 1)
    assert np.abs(down - lr[0].numpy()).max() < 1e-3


def test_another_value_is_refused(model: SuperResolutionFlow) -> None:
    with pytest.raises(ValueError, match="consistency must be one of 'none', 'project', 'exact', got 'yes'"):
        model.sample(torch.rand(1, 3, 4, 4, dtype=torch.float64), consistency="yes")  # type: ignore[arg-type]


def test_samples_that_cannot_be_exact_are_counted(model: SuperResolutionFlow) -> None:
    lr = low(8, 8, 4, torch.float64)
    lr[1] = 0
    lr[1, 0, 4, 4] = 1
    with pytest.warns(ConsistencyWarning) as caught:
        samples = model.sample(lr, 3, consistency="exact")
    (warning,) = (each.message for each in caught if isinstance(each.message, ConsistencyWarning))
    assert isinstance(warning, ConsistencyWarning)
    expected = [
        [int((imresize(to_uint8(sample), 1 / 4) != to_uint8(wanted)).sum()) for sample in of_image]
        for wanted, of_image in zip(lr, samples, strict=True)
    ]
    assert warning.differing.tolist() == expected
    assert expected[0] == [0, 0, 0]
    assert min(expected[1]) > 0
    assert f"3 of 6 samples do not reduce to the low-resolution image exactly: up to {max(expected[1])} of 192" in str(
        warning
    )


def test_nothing_is_said_where_all_is_exact(model: SuperResolutionFlow) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample(low(4, 4, 4, torch.float64), 2, consistency="exact")
        model.sample(low(4, 4, 4, torch.float64), 2, consistency="project")


def test_no_images() -> None:
    empty = torch.rand(0, 2, 3, 8, 8)
    for consistency in ("project", "exact"):
        assert make_consistent(empty, torch.rand(0, 3, 2, 2), consistency).shape == (0, 2, 3, 8, 8)
