"""Entries of OpenModelDB for the models that come with this package: ``python -m sr_models.interop.openmodeldb``.

Prints the JSON that belongs into ``data/models/4x-NAME.json`` of the database.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sr_models.checkpoints.files import load, load_model, weights_fingerprint
from sr_models.checkpoints.shipped import shipped_models

__all__ = ["main", "openmodeldb_entry"]

_DATASET = "Photographs of Debian packages, reduced by 1/2"
#: What the cards in sr_models/shipped say of the training.
_FACTS: dict[str, dict[str, Any]] = {
    "ncsr-tiny": {"trainingIterations": 1163, "pretrainedModelG": "4x-srflow-da-tiny"},
    # of likelihood; fine-tuning followed
    "srflow-da-tiny": {"trainingIterations": 10401},
}


def openmodeldb_entry(name: str, file: str | os.PathLike[str], *, author: str, url: str, date: str) -> dict[str, Any]:
    """Describe a released file of a model that comes with this package; its size and SHA-256 are measured.

    Args:
        name: one of :func:`sr_models.checkpoints.shipped.shipped_models`.
        file: the file, in one piece, as ``sr-models convert NAME -o FILE`` writes it.
        author: user of the database.
        url: where the file can be downloaded.
        date: day of the release, ``yyyy-mm-dd``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unknown name, a file that cannot be read, or one that does not hold this model.
    """
    shipped, model = load(name), load_model(Path(file))
    if weights_fingerprint(model.float()) != weights_fingerprint(shipped):
        raise ValueError(f"file must hold the weights of {name}, which {file} does not")
    content = Path(file).read_bytes()
    return {
        "name": name,
        "author": author,
        "license": "Apache-2.0",
        "tags": ["photo", "general-upscaler"],
        "description": f"A small flow for super-resolution ({model.name}), of the package invflow. It draws samples: "
        "each seed gives another image that agrees with the low resolution. Noise and JPEG blocks are enlarged, "
        "not removed.",
        "date": date,
        "architecture": model.name,
        "size": ["tiny"],
        "scale": model.scale,
        "inputChannels": 3,
        "outputChannels": 3,
        "resources": [
            {
                "platform": "pytorch",
                "type": "safetensors",
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "urls": [url],
            }
        ],
        "dataset": _DATASET,
        "datasetSize": 70,
        **_FACTS[name],
        "images": [],
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the entry of a file; ``--help`` lists the arguments."""
    parser = argparse.ArgumentParser(prog="python -m sr_models.interop.openmodeldb", description=__doc__)
    parser.add_argument("name", choices=shipped_models(), help="the model")
    parser.add_argument("file", help="its released file, which sr-models convert NAME -o FILE writes")
    parser.add_argument("--author", required=True, help="user of the database")
    parser.add_argument("--url", required=True, help="where the file can be downloaded")
    parser.add_argument("--date", required=True, help="day of the release, yyyy-mm-dd")
    given = parser.parse_args(arguments)
    try:
        entry = openmodeldb_entry(given.name, given.file, author=given.author, url=given.url, date=given.date)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(json.dumps(entry, indent=4))


if __name__ == "__main__":
    main()
