"""Several pictures of one size on a sheet, each with a line of text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet"]

_COLUMNS, _SIDE, _GAP, _LINE, _TEXT = 4, 480, 8, 20, 14


def contact_sheet(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put pictures side by side, up to four in a row.

    Args:
        pictures: caption -> (H, W, 3), uint8, all of one size. Sides above 480 pixels are reduced.

    Returns:
        The sheet, (H', W', 3), uint8, white between the pictures.
    """
    height, width = next(iter(pictures.values())).shape[:2]
    shrink = min(_SIDE / max(height, width), 1)
    shown_width, shown_height = (max(round(side * shrink), 1) for side in (width, height))
    columns = min(len(pictures), _COLUMNS)
    rows = -(-len(pictures) // columns)
    # captions of small pictures need their room
    cell_width, cell_height = max(shown_width, 8 * max(map(len, pictures))) + _GAP, shown_height + _LINE + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for number, (caption, picture) in enumerate(pictures.items()):
        row, column = divmod(number, columns)
        left, top = _GAP + column * cell_width, _GAP + row * cell_height
        draw.text((left, top), caption, "black", font)
        image = Image.fromarray(picture)
        if shrink < 1:
            image = image.resize((shown_width, shown_height), Image.Resampling.LANCZOS)
        sheet.paste(image, (left, top + _LINE))
    return np.asarray(sheet)
