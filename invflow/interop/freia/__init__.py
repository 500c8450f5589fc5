"""FrEIA: invflow layers as invertible modules, modules as layers, and sequences of ``AllInOneBlock`` in our layers."""

from invflow.interop.freia._adapters import Block, layer_of
from invflow.interop.freia._convert import convert, convert_back

__all__ = ["Block", "convert", "convert_back", "layer_of"]
