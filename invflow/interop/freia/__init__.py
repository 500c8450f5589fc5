"""FrEIA: its block by our kernels, layers as modules, modules as layers, and its sequences in our layers and back."""

from invflow.interop.freia._adapters import Block, layer_of
from invflow.interop.freia._all_in_one import AllInOneBlock
from invflow.interop.freia._convert import convert, convert_back

__all__ = ["AllInOneBlock", "Block", "convert", "convert_back", "layer_of"]
