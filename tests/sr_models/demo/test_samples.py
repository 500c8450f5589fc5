"""A sample is drawn once and found again; one of other weights, settings or another photograph is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import randomised

from sr_models.demo.samples import KeptSamples
from sr_models.flow import sampling
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, to_tensor, to_uint8

LR = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the samples that were drawn."""
    seeds: list[int] = []
    draw = sampling.draw_latents

    def counted(shapes, samples, temperature, seed, attempt=0):  # type: ignore[no-untyped-def]
        seeds.append(seed)
        return draw(shapes, samples, temperature, seed, attempt)

    monkeypatch.setattr(sampling, "draw_latents", counted)
    return seeds


@pytest.fixture
def model() -> SuperResolutionFlow:
    return randomised("srflow-da").float()


def test_a_sample_is_drawn_once(tmp_path: Path, model: SuperResolutionFlow, drawn: list[int]) -> None:
    draw = KeptSamples(model, tmp_path, 7)
    sample = draw("cat", LR, 0.5, 2)
    assert sample is not None
    assert np.array_equal(sample, to_uint8(model.sample(to_tensor(LR)[None], temperature=0.5, seed=9)[0, 0]))
    assert np.array_equal(read_image(tmp_path / "cat_t0.5_sample002.png"), sample)
    del drawn[:]
    again = KeptSamples(model, tmp_path, 7)("cat", LR, 0.5, 2)
    assert np.array_equal(again, sample)
    assert drawn == []


def test_what_has_changed_is_drawn_anew(tmp_path: Path, model: SuperResolutionFlow, drawn: list[int]) -> None:
    draw = KeptSamples(model, tmp_path, 7)
    draw("cat", LR, 0.5, 0)
    file = draw.file("cat", 0.5, 0)
    content = file.read_bytes()
    other = LR.copy()
    other[0, 0, 0] ^= 1
    draw("cat", other, 0.5, 0)
    KeptSamples(model, tmp_path, 8)("cat", other, 0.5, 0)
    changed = randomised("srflow-da", blocks=3).float()
    KeptSamples(changed, tmp_path, 8)("cat", other, 0.5, 0)
    file.write_bytes(content[: len(content) // 2])
    KeptSamples(changed, tmp_path, 8)("cat", other, 0.5, 0)
    assert drawn == [7, 7, 8, 8, 8]
    KeptSamples(changed, tmp_path, 8, prefix="tuned_")("cat", other, 0.5, 0)
    assert (tmp_path / "cat_tuned_t0.5_sample000.png").exists()


def test_a_sample_that_explodes_is_none(
    tmp_path: Path, model: SuperResolutionFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = sampling.draw_latents
    monkeypatch.setattr(sampling, "draw_latents", lambda *given: [latent + 1e8 for latent in draw(*given)])
    assert KeptSamples(model, tmp_path, 7)("cat", LR, 0.5, 0) is None
    assert list(tmp_path.iterdir()) == []
