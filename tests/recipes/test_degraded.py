"""Changed low-resolution images stay those of the high-resolution ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.degraded import Degrading
from sr_models.io.resize import imresize


def _batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    hr = [imresize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), 4) for _ in range(count)]
    lr = [imresize(image, 1 / 4) for image in hr]
    return tuple(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 for images in (hr, lr))  # type: ignore[return-value]


def test_every_kind_agrees_with_its_low_resolution() -> None:
    hr, lr = _batch(60)
    torch.manual_seed(0)
    degrading = Degrading(scale=4, share=1.0)
    seen = set()
    degrading._kinds = tuple(
        lambda *pair, kind=kind: (seen.add(kind.__name__), kind(*pair))[1] for kind in degrading._kinds
    )
    high, low = degrading(hr, lr)
    assert len(seen) == 5
    reduced = imresize(high.permute(0, 2, 3, 1)[7].double().numpy(), 1 / 4)
    np.testing.assert_allclose(reduced, low.permute(0, 2, 3, 1)[7].numpy(), atol=1e-5)
    levels = 255 * low
    assert bool(((levels - levels.round()).abs() < 1e-3).all())
    assert low.min() >= 0
    assert low.max() <= 1
    assert bool(((low - lr).abs().amax((1, 2, 3)) > 2 / 255).float().mean() > 0.9)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_others_stay_as_they_are(share: float) -> None:
    hr, lr = _batch(200)
    torch.manual_seed(0)
    high, low = Degrading(scale=4, share=share)(hr, lr)
    same = [torch.equal(a, b) and torch.equal(c, d) for a, b, c, d in zip(hr, high, lr, low, strict=True)]
    assert np.mean(same) == pytest.approx(1 - share, abs=0.1)
