"""Adapters for other flow libraries, in both directions: a module a library, imported by name.

``from invflow.interop import freia`` imports FrEIA and needs it; ``import invflow.interop`` imports none of them.
:mod:`invflow.interop.distributions` needs nothing but PyTorch.
"""

from invflow.interop.flat import Flat

__all__ = ["Flat"]
