"""What the tests of invflow share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, unless the test sets another number: the tensors are small, and the machine may be busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
