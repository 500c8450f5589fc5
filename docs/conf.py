"""Configuration of the documentation: ``make docs`` writes it to ``build/docs``.

Pages are Markdown, docstrings are reStructuredText with the sections of Google's style. Nothing is fetched, neither
while it is built nor when a page is viewed: formulas are MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import pydoc
import re
import sys
from typing import Any, cast

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxTranslator

import invflow
import sr_models

project = "invflow"
author = "the invflow authors"
version = release = invflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"invflow {version}"
html_math_renderer = "mathml"

# anchors of headings, as GitHub makes them
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

# invflow.interop is documented without the libraries that it adapts
autodoc_mock_imports = ["FrEIA", "nflows", "normflows", "pyro", "zuko"]
autodoc_inherit_docstrings = False  # nn.Module's text on forward says nothing of a layer
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "extra_repr"}
python_maximum_signature_line_length = 100
napoleon_custom_sections = [("Shape", "returns_style"), "Items", "Units"]
napoleon_use_ivar = True
napoleon_use_rtype = False

# A name in a role or in a signature that does not exist is an error; see resolve().
nitpicky = True
# a name of the type checker only, and one that torch deletes from its package
nitpick_ignore = [("py:class", "Function"), ("py:class", "torch.optim.optimizer.Optimizer")]


def expand_rooms(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the API of every module of a package in the place of ``<!-- every module of PACKAGE -->``."""
    source[0] = re.sub(
        r"^<!-- every module of (\S+) -->$", lambda found: _room(found[1]), source[0], flags=re.MULTILINE
    )


def _room(package: str) -> str:
    modules = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    parts = [_module(package, is_package=True)]
    for module in modules:
        if "._" not in module.name:
            parts.append(f"## {module.name.removeprefix(package + '.')}\n\n{_module(module.name, module.ispkg)}")
    return "\n\n".join(parts)


def _module(name: str, is_package: bool) -> str:
    """Return the text of a package, or all of a module: exports of a package are documented in their modules."""
    members = "" if is_package else "   :members:\n"
    return f"```{{eval-rst}}\n.. automodule:: {name}\n{members}```"


def skip_what_stands_above(app: Sphinx, what: str, name: str, value: object, skip: bool, options: Any) -> bool | None:
    """Skip in a module what ``invflow`` or ``sr_models`` itself exports: that is documented under the shorter name."""
    exported = (getattr(package, name) for package in (invflow, sr_models) if name in package.__all__)
    return True if what == "module" and any(public is value for public in exported) else None


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement) -> nodes.Element | None:
    """Look a name up as Python does, and link to the object's documentation, which may be under a shorter name.

    ``invflow.Split``, for example, is defined in ``invflow.layers.split``. An object without a place in these pages,
    such as ``torch.Tensor``, gets no link: the inventories of other projects would have to be fetched.
    """
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], cast(PythonDomain, env.get_domain("py"))
    modules = (node.get("py:module"), _defining_module(node))
    wanted = [value for name in (target, *(f"{module}.{target}" for module in modules)) if (value := _object(name))]
    for name in domain.objects:
        if name.endswith(target.rpartition(".")[2]) and any(_object(name) is value for value in wanted):
            node["reftarget"] = name
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, text)
    return text if wanted else None


def _defining_module(node: nodes.Element) -> str | None:
    """Return the module of the object in whose description the node stands: names in it are those of that module."""
    while node is not None and not isinstance(node, addnodes.desc):
        node = node.parent
    if node is None:
        return None
    described = _object(f"{node[0]['module']}.{node[0]['fullname']}")
    return getattr(described, "__module__", None)


@functools.cache
def _object(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        # a package may delete the name of a module in it, as torch.optim does, which pydoc cannot follow
        return pydoc.locate(name) or getattr(sys.modules.get(module), attribute, None)
    except pydoc.ErrorDuringImport:
        return None


def readable_defaults(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Replace a dataclass's ``<factory>``: it is no expression, and Sphinx would not read such a signature."""
    return signature and signature.replace("<factory>", "..."), returns


def untyped(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Put an empty comment before an attribute's text.

    Otherwise Napoleon takes the words before a colon in the first line for a type.
    """
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def shapes(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Escape the star of shapes such as (B, C, *), which would begin an emphasis, outside of literals and roles."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`[^`]*`)", line)
        parts[::2] = [part.replace(", *)", r", \*)") for part in parts[::2]]
        lines[number] = "".join(parts)


def draw_formula(translator: SphinxTranslator, node: nodes.math) -> None:
    cast(Any, translator).body.append(convert(node.astext()))
    raise nodes.SkipNode


def draw_displayed_formula(translator: SphinxTranslator, node: nodes.math_block) -> None:
    cast(Any, translator).body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (draw_formula, None), (draw_displayed_formula, None))
    app.connect("source-read", expand_rooms)
    app.connect("autodoc-skip-member", skip_what_stands_above)
    app.connect("autodoc-process-signature", readable_defaults)
    app.connect("autodoc-process-docstring", untyped, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", shapes)
    app.connect("missing-reference", resolve)
