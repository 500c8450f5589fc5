"""A report: one HTML file with everything in it, which grows part by part."""

from __future__ import annotations

import base64
import hashlib
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

__all__ = ["MOST_LAYERS", "PARTS", "Picture", "Report", "write_page"]

#: Parts of a report in their order, and what is said of one that is not there yet.
PARTS = {
    "glance": "the key figures",
    "pictures": "the enlarged photographs",
    "scores": "the scores",
    "ranking": "the ranks",
    "maps": "the maps of deviation and consistency",
    "coverage": "the coverage of intervals",
    "sweep": "the temperatures",
    "cost": "the cost",
    "images": "the scores of every image",
    "training": "the training",
    "tuned": "what training has changed",
}
#: Parts that the page links to at its top.
_LINKS = {
    "glance": "Key figures",
    "pictures": "Pictures",
    "scores": "Scores",
    "ranking": "Rank",
    "maps": "Maps",
    "coverage": "Coverage",
    "sweep": "Temperature",
    "cost": "Cost",
    "images": "Every image",
    "training": "Training",
}
#: Images between which a viewer switches.
MOST_LAYERS = 12


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        caption: what it shows, in a few words.
        source: the picture itself, as a data URI.
        size: width and height in pixels.
        note: figures that belong to it.
        pixels: show its pixels as squares where it is enlarged.
        alt: what it shows, for those who do not see it; "": the caption says it.
    """

    caption: str
    source: str
    size: tuple[int, int]
    note: str = ""
    pixels: bool = False
    alt: str = ""

    @classmethod
    def of(cls, image: np.ndarray, caption: str, note: str = "", *, pixels: bool = False, alt: str = "") -> Picture:
        """Encode an image (H, W, 3), uint8, without loss; WebP takes two thirds of a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="WEBP", lossless=True, method=2)
        source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return cls(caption, source, (image.shape[1], image.shape[0]), note, pixels, alt)


def write_page(
    path: Path,
    facts: Mapping[str, Any],
    parts: Mapping[str, Any],
    state: Literal["working", "interrupted", "finished"] = "finished",
    missing: Sequence[str] = (),
) -> None:
    """Write a page atomically.

    Args:
        path: HTML file; its folder exists.
        facts: title, summary, notes, commands (comment, command) and credits.
        parts: content by the names in :data:`PARTS`.
        state: a page at which is still worked is loaded again by browsers.
        missing: what an unfinished page says that it lacks.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        jinja2.UndefinedError: a fact that is missing.
    """
    environment = _environment()
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    text = environment.get_template("page.html").render(
        **facts,
        parts=parts,
        missing=missing,
        state=state,
        links=_LINKS,
        most_layers=MOST_LAYERS,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    # a name that is not UTF-8 is shown with its bytes escaped
    write_text(path, text.encode(errors="backslashreplace").decode())


class Report:
    """The page. It is written anew, atomically, after every part.

    Until it is finished it says what is missing, and asks browsers to load it again from time to time.

    Args:
        path: HTML file; its folder exists.
        facts: title, summary, notes, commands (comment, command) and credits.
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
        write_page(self.path, self._facts, self._parts, state, missing)

    def _has(self, name: str) -> bool:
        part = self._parts.get(name)
        return part is not None and not (isinstance(part, dict) and part.get("unfinished"))


@cache
def _environment() -> jinja2.Environment:
    # captions and names of files are text, not HTML
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
