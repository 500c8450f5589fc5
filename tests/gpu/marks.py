"""Marks of tests that run only on request."""

import os

import pytest

#: For tests that compile for minutes: ``INVFLOW_VERIFY_CUDA=1 python -m pytest tests/gpu`` runs them, and
#: ``make verify-cuda`` does.
takes_minutes = pytest.mark.skipif(
    "INVFLOW_VERIFY_CUDA" not in os.environ, reason="takes minutes: set INVFLOW_VERIFY_CUDA or run make verify-cuda"
)
