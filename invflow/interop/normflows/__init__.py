"""normflows: invflow layers as flows, flows as layers, and Glow models in either library's layers.

Flows of normflows go from latents to data; our layers go from data to latents.
"""

from invflow.interop.normflows._adapters import LayerFlow, layer_of
from invflow.interop.normflows._convert import convert, convert_back

__all__ = ["LayerFlow", "convert", "convert_back", "layer_of"]
