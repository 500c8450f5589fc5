"""The demonstration's report: one HTML file with everything in it, which grows part by part."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from PIL import Image

from sr_models.io.files import write_text

__all__ = ["PARTS", "Picture", "Report"]

#: Parts of the report in their order, and what is said of one that is not there yet.
PARTS = {
    "pictures": "the enlarged photographs",
    "scores": "the scores",
    "maps": "the maps of deviation and consistency",
    "sweep": "the temperatures",
    "training": "the training",
    "tuned": "what training has changed",
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        caption: what it shows, in a few words.
        source: the picture itself, as a data URI.
        size: width and height in pixels.
        note: figures that belong to it.
        pixels: show its pixels as squares where it is enlarged.
    """

    caption: str
    source: str
    size: tuple[int, int]
    note: str = ""
    pixels: bool = False

    @classmethod
    def of(cls, image: np.ndarray, caption: str, note: str = "", *, pixels: bool = False) -> Picture:
        """Encode an image (H, W, 3), uint8, without loss; WebP takes two thirds of a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="WEBP", lossless=True, method=2)
        source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return cls(caption, source, (image.shape[1], image.shape[0]), note, pixels)


class Report:
    """The page. It is written anew, atomically, after every part.

    Until it is finished it says what is missing, and asks browsers to load it again from time to time.

    Args:
        path: HTML file; its folder exists.
        facts: what the page says besides its parts; see ``page.html``.
        parts: those of :data:`PARTS` that the page will have.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], parts: Sequence[str] = tuple(PARTS)) -> None:
        self.path = path
        self._facts = dict(facts)
        self._expected = tuple(parts)
        self._parts: dict[str, Any] = {}
        self.write("working")

    def put(self, **content: Any) -> None:
        """Add or replace parts, by their names in :data:`PARTS`, or facts, and write the page.

        A part with an entry ``unfinished`` that is true is shown, and said to be missing.
        """
        for name, value in content.items():
            (self._parts if name in PARTS else self._facts)[name] = value
        self.write("working")

    def write(self, state: Literal["working", "interrupted", "finished"]) -> None:
        """Write the page as it is now."""
        missing = [PARTS[name] for name in self._expected if not self._has(name)]
        text = _template().render(**self._facts, parts=self._parts, missing=missing, state=state)
        write_text(self.path, text)

    def _has(self, name: str) -> bool:
        part = self._parts.get(name)
        return part is not None and not (isinstance(part, dict) and part.get("unfinished"))


@cache
def _template() -> jinja2.Template:
    # captions and names of files are text, not HTML
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
