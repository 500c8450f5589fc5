"""Configuration of the documentation: ``make docs`` writes it to ``build/docs``.

Pages are Markdown, docstrings are reStructuredText with the sections of Google's style. Nothing is fetched while it is
built. MathJax, which draws the formulas, is loaded from a CDN when a page is viewed: offline they show as LaTeX.
"""

from __future__ import annotations

import invflow

project = "invflow"
author = "the invflow authors"
version = release = invflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"invflow {version}"

# anchors of headings, as GitHub makes them
myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # nn.Module's text on forward says nothing of a layer
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
napoleon_custom_sections = [("Shape", "returns_style"), "Items", "Units"]
napoleon_use_rtype = False

# Every name that stands in a role or in a signature is to lead somewhere, except those of other projects: their
# inventories would have to be fetched.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(torch|numpy|PIL|collections|pathlib)\..*")]
