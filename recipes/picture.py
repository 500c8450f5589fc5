"""``python -m recipes.picture PICTURE.png``: draws what srflow-da-tiny makes of two photographs of scikit-image.

``docs/images/srflow-da-tiny.png`` is such a picture.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import sr_models
from sr_models.demo.photographs import unpack_photographs
from sr_models.evaluation.baselines import baseline_images
from sr_models.evaluation.pairs import load_pair
from sr_models.evaluation.report.pictures import PhotographPictures, draw_overview, encode_figure
from sr_models.io.files import write_bytes
from sr_models.io.images import to_tensor, to_uint8


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m recipes.picture", description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="PNG file to write")
    given = parser.parse_args(arguments)
    model = sr_models.load("srflow-da-tiny")
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        _, test = unpack_photographs(Path(folder))
        for path in sorted(test.iterdir()):
            lr, hr = load_pair(path, model.scale)
            samples = {}
            for temperature in (0, 0.8):
                drawn = model.sample(to_tensor(lr)[None], temperature=temperature)[0]
                samples[f"temperature {temperature:g}"] = [to_uint8(image) for image in drawn]
            bicubic = baseline_images(lr, model.scale)["bicubic"]
            pictures.append(PhotographPictures(path.stem, lr, bicubic, hr, samples))
    write_bytes(given.picture, encode_figure(draw_overview(pictures)))


if __name__ == "__main__":
    main()
