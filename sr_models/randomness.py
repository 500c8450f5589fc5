"""Random streams: every random number of this package comes from a generator that is made here."""

from __future__ import annotations

import hashlib
import operator
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sr_models.seeds import check_seed

__all__ = ["Purpose", "random_stream"]

#: What random numbers are for. Streams of different purposes have nothing in common, whatever their seeds.
Purpose = Literal["weights", "latents", "noise", "crops", "initialization", "check", "pixels", "bootstrap", "study"]


def random_stream(seed: int, purpose: Purpose, *indices: int) -> torch.Generator:
    """Return the generator of one stream of random numbers, on the CPU.

    The whole key (seed, purpose, indices) is hashed to 128 bits, which determine the generator's whole state. A seed
    alone would not do: torch's CPU generator keeps 32 bits of it.

    Draw on the CPU and move the numbers, so that every device gets the same ones.

    Args:
        seed: the user's, in 0..2^31 - 1.
        purpose: one of :data:`Purpose`.
        indices: number the streams of one purpose, for instance sample and attempt. Their count matters as well.

    Raises:
        TypeError: a seed or an index that is not an integer.
        ValueError: a seed out of range, or another purpose.
        RuntimeError: a version of torch whose generators store their state in another way.
    """
    seed = check_seed(seed)
    if purpose not in get_args(Purpose):
        raise ValueError(f"purpose must be one of {', '.join(map(repr, get_args(Purpose)))}, got {purpose!r}")
    key = "/".join([purpose, str(seed), *(str(operator.index(index)) for index in indices)])
    entropy = int.from_bytes(hashlib.sha256(key.encode()).digest(), "little")
    words = np.random.SeedSequence(entropy).generate_state(_WORDS)
    state = _fresh_state().clone()
    _words_of(state).copy_(torch.from_numpy(words.astype(np.int64)))
    generator = torch.Generator("cpu")
    generator.set_state(state)
    return generator


# A generator's state as torch stores it: the seed, two counters, the 624 words of the Mersenne Twister, each in 64
# bits, and what is left of the last normal numbers.
_STATE_BYTES, _FIRST_WORD, _WORDS = 5056, 3, 624


def _words_of(state: Tensor) -> Tensor:
    return state.view(torch.int64)[_FIRST_WORD : _FIRST_WORD + _WORDS]


@cache
def _fresh_state() -> Tensor:
    """Return the state of a generator that has drawn nothing yet, after a look at its layout."""
    state = torch.Generator("cpu").manual_seed(1).get_state()
    # NumPy's legacy generator fills its words in the same way
    expected = torch.from_numpy(np.random.RandomState(1).get_state(legacy=False)["state"]["key"].astype(np.int64))
    if len(state) != _STATE_BYTES or not torch.equal(_words_of(state), expected):
        raise RuntimeError(f"torch {torch.__version__} stores the state of generators in a way unknown to sr_models")
    return state
