"""Names of samples by a template of the user's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from string import Formatter
from typing import Any

__all__ = ["FIELDS", "check_template", "template_names"]

#: What may stand in braces, and an example of each.
FIELDS: dict[str, Any] = {
    "name": "photo",
    "index": 0,
    "number": 0,
    "seed": 0,
    "temperature": 0.9,
    "model": "srflow-da-tiny",
    "scale": 4,
}
#: Bytes of a file's name that every file system takes; a field is not wider.
_LONGEST = 255


def check_template(template: str) -> None:
    """Check a template such as ``{name}_x{scale}_{index:02d}``.

    Raises:
        ValueError: a field that does not exist, a format that does not fit it or is wider than a file's name can be, a
            path out of the folder, or nothing that tells images apart.
    """
    fields = []
    try:
        for _, field, spec, conversion in Formatter().parse(template):
            if field is None:
                continue
            if field not in FIELDS or conversion:
                raise ValueError(f"{{{field}}} is none of {', '.join(map('{{{}}}'.format, FIELDS))}")
            # before it is used, which would take as much memory as it says
            if "{" in (spec or "") or any(int(number) > _LONGEST for number in re.findall(r"\d+", spec or "")):
                raise ValueError(f"{{{field}:{spec}}} must have a width of at most {_LONGEST}")
            fields.append(field)
        shown = template.format(**FIELDS)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"naming {template!r} cannot be used: {error}") from None
    if not fields or "\0" in shown or _leads_out(shown) or shown.startswith("~") or not shown.strip("/. "):
        raise ValueError(
            f"naming must be name, ntire, or a name with fields such as {{name}}_{{index}}, got {template!r}"
        )


def template_names(template: str, images: Sequence[str], n: int, values: Mapping[str, Any]) -> list[list[str]]:
    """Name the samples of images.

    Args:
        template: see :func:`check_template`; without a suffix.
        images: what ``{name}`` is for each image, all different.
        n: samples an image, ``{index}`` counts them from 0.
        values: the other fields, but for ``{number}``, which counts the images from 0.

    Returns:
        The names of every image's samples.

    Raises:
        ValueError: two samples of the same name, or a name that leads out of the folder.
    """
    names = [
        [template.format(name=image, number=number, index=index, **values) for index in range(n)]
        for number, image in enumerate(images)
    ]
    owner: dict[str, tuple[str, int]] = {}
    for image, own in zip(images, names, strict=True):
        for index, name in enumerate(own):
            if _leads_out(name):
                raise ValueError(
                    f"naming {template!r} gives sample {index} of {image} the name {name!r}, out of OUTPUT"
                )
            other = owner.setdefault(name, (image, index))
            if other != (image, index):
                raise ValueError(
                    f"naming {template!r} gives sample {other[1]} of {other[0]} and sample {index} of {image} the same "
                    f"name {name!r}; put {{name}} and {{index}} into it"
                )
    return names


def _leads_out(name: str) -> bool:
    """Return whether a path leads out of the folder that it is relative to."""
    return name.startswith("/") or ".." in PurePosixPath(name).parts
