"""YAML that comes from files of others."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, TextIO

from sr_models.io.json_text import repeated

__all__ = ["parse_yaml"]

#: Values that a document may have after its aliases are replaced by what they stand for.
_MOST = 100_000


def parse_yaml(text: str | TextIO) -> Any:
    """Read one YAML document of plain values; ``None`` if it is empty.

    Args:
        text: all of it, or an open file.

    Raises:
        ValueError: text that is not YAML, is nested too deeply, has a key twice, or has aliases that make more than
            100,000 values of it.

    Example:
        >>> parse_yaml("lr: 1e-4")
        {'lr': 0.0001}
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes 1e-4 for a text, as it has no point."""

    number = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MOST:
            raise ValueError("its aliases repeat too much")
        return loader.construct_document(node)
    except UnicodeDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # ValueError: a number or a date that Python cannot make
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _size(node: Any, sizes: dict[int, float]) -> float:
    """Count the values of a node, those behind aliases every time; infinite if it holds itself."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = math.inf
    children = node.value if isinstance(node.value, list) else []
    if children and isinstance(children[0], tuple):
        if twice := repeated(key.value for key, _ in children if isinstance(key.value, str)):
            raise ValueError(f"{twice!r} stands in it twice")
        children = list(itertools.chain(*children))
    sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]
