"""Random streams: no two alike, none correlated, the same on every device, and made in one place."""

from __future__ import annotations

import ast
import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import sr_models
from sr_models.flow.latents import draw_latents
from sr_models.flow.noise import noisy_pair
from sr_models.randomness import Purpose, random_stream
from sr_models.seeds import MAX_SEED, check_seed

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


def numbers(generator: torch.Generator, count: int = 2) -> tuple[int, ...]:
    return tuple(torch.randint(2**62, (count,), generator=generator).tolist())


def test_no_two_streams_are_alike() -> None:
    seeds = [*range(20), *(2**power for power in range(5, 31)), 2**16 + 1, 2**30 + 1, MAX_SEED - 1, MAX_SEED]
    small = [(), *((index,) for index in range(12)), *itertools.product(range(4), repeat=2), (0, 0, 0)]
    # shifted into other bits, or with digits that run together
    large = [(2**20,), (2**20 + 1,), (2**32,), (2**32 + 1,), (0, 2**32), (1, 2**51), (12, 3), (123,), (2**64,)]
    keys = list(itertools.product(seeds, get_args(Purpose), small + large))
    assert len(keys) > 9000
    drawn = {numbers(random_stream(seed, purpose, *indices)) for seed, purpose, indices in keys}
    assert len(drawn) == len(keys)


def test_neighbours_are_uncorrelated() -> None:
    count = 2**14
    streams = [
        torch.randn(count, generator=random_stream(seed, purpose, index, other))
        for seed, purpose, index, other in itertools.product(range(3), ("latents", "noise"), range(3), range(3))
    ]
    matrix = torch.stack(streams)
    for shift in (0, 1, 2, 7):
        correlation = matrix @ matrix.roll(shift, 1).T / count
        if not shift:
            assert (correlation.diagonal() - 1).abs().max() < 0.06
            correlation.fill_diagonal_(0)
        assert correlation.abs().max() < 6 / count**0.5


def test_one_key_gives_the_same_numbers_always() -> None:
    assert numbers(random_stream(7, "latents", 3, 0)) == numbers(random_stream(np.int32(7), "latents", np.int64(3), 0))
    drawn = torch.randint(2**16, (3,), generator=random_stream(0, "latents", 0, 0))
    assert drawn.tolist() == [43119, 16335, 48329]


def test_the_whole_state_comes_from_the_hash() -> None:
    """Torch's generator is a Mersenne Twister, like NumPy's: from the same words both draw the same numbers."""
    digest = hashlib.sha256(b"noise/5/17").digest()
    words = np.random.SeedSequence(int.from_bytes(digest, "little")).generate_state(624)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    raw = twister.random_raw(2000).astype(np.int64)
    generator = random_stream(5, "noise", 17)
    drawn = torch.randint(2**20, (2000,), generator=generator)
    assert torch.equal(drawn, torch.from_numpy(raw % 2**20))


@contextmanager
def other_defaults() -> Iterator[None]:
    """Defaults that a program may have set: float64, and a device that is not the CPU."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_draws_do_not_follow_torchs_defaults() -> None:
    model = sr_models.create("ncsr", **TINY, noise_steps=(0, 1, 1))
    hr, lr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4)

    def draws() -> list[torch.Tensor]:
        pair = noisy_pair(model, hr, lr, 0.0, [random_stream(1, "noise", 0), random_stream(1, "noise", 1)])
        return [*draw_latents([(3, 4, 4), (2, 2, 2)], [0, 3], 0.9, 1), pair.hr, pair.lr, pair.noise]

    expected = draws()
    with other_defaults():
        found = draws()
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual.cpu(), wanted)


class TestSeeds:
    @pytest.mark.parametrize("seed", [0, 1, MAX_SEED, np.uint8(3), np.int64(5)])
    def test_accepted(self, seed: int) -> None:
        assert check_seed(seed) == int(seed)
        assert type(check_seed(seed)) is int

    @pytest.mark.parametrize("seed", [-1, 2**31, 2**64, 2**70, np.int64(-3)])
    def test_out_of_range(self, seed: int) -> None:
        with pytest.raises(ValueError, match=rf"seed must be in 0\.\.2\^31 - 1, got {int(seed)}$"):
            random_stream(seed, "latents")

    @pytest.mark.parametrize("seed", [True, 1.0, "1", None, np.float32(1), np.bool_(True)])
    def test_no_integer(self, seed: object) -> None:
        with pytest.raises(TypeError, match=r"seed must be an integer in 0\.\.2\^31 - 1, got "):
            random_stream(seed, "latents")

    def test_everything_that_takes_a_seed_checks_it(self, tmp_path: Path) -> None:
        model = sr_models.create("srflow-da", **TINY).eval()
        lr = torch.rand(1, 3, 4, 4)
        for seed in (-1, 2**31):
            message = rf"seed must be in 0\.\.2\^31 - 1, got {seed}"
            for call in (
                lambda seed=seed: model.sample(lr, seed=seed),
                lambda seed=seed: sr_models.check_model(model, seed=seed),
                lambda seed=seed: sr_models.TrainingConfig(model="srflow-da", images=".", seed=seed),
            ):
                with pytest.raises(ValueError, match=message):
                    call()
        assert type(sr_models.TrainingConfig(model="srflow-da", images=".", seed=np.int64(3)).seed) is int


def test_another_purpose() -> None:
    with pytest.raises(ValueError, match=r"purpose must be one of 'weights', 'latents', 'noise', .*, got 'latent'"):
        random_stream(0, "latent")
    with pytest.raises(TypeError, match="float"):
        random_stream(0, "latents", 1.5)


#: Makers of generators, and draws from the global one.
MAKERS = {
    "Generator",
    "manual_seed",
    "default_rng",
    "SeedSequence",
    "RandomState",
    "Philox",
    "PCG64",
    "MT19937",
    "seed",
}
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}
LIKE = {"rand_like", "randn_like", "randint_like"}


def test_generators_are_made_in_one_place() -> None:
    root = Path(sr_models.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            place = f"{path.relative_to(root)}:{node.lineno}: {node.func.attr}"
            assert path.name == "randomness.py" or node.func.attr not in MAKERS, place
            assert node.func.attr not in LIKE, place
            if node.func.attr in DRAWS:
                assert {"generator", "device"} <= {keyword.arg for keyword in node.keywords}, place
