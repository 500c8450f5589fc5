"""Custom node of ComfyUI: its node "Load Upscale Model" then loads the models of sr_models as well.

Copy this folder to ``custom_nodes/`` of ComfyUI, see docs/sr-tools.md.
"""

from sr_models.interop.spandrel import install

install()

#: ComfyUI looks for new nodes; there are none.
NODE_CLASS_MAPPINGS: dict[str, type] = {}
