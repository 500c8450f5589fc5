"""Models in folders as on the Hugging Face hub: ``config.json`` describes a model, ``model.safetensors`` holds it.

Nothing in them is unpickled or run. Names on the hub need the extra ``hub``, folders do not.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from sr_models._extras import install_hint
from sr_models.checkpoints.files import create_stored, describe_file, read_weights, save_model
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.files import write_text

__all__ = ["CONFIG", "WEIGHTS", "from_pretrained", "save_pretrained"]

#: Names of the two files in a folder.
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def save_pretrained(model: SuperResolutionFlow, folder: str | os.PathLike[str]) -> None:
    """Write a model to a folder that can be uploaded to the hub as it is; each of its two files is written atomically.

    Args:
        model: made by :func:`sr_models.create` or loaded.
        folder: made if it does not exist. Files of other names in it stay as they are.

    Raises:
        OSError: the folder cannot be made or written.

    Example:
        >>> import tempfile, sr_models
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sr_models.save_pretrained(sr_models.load("srflow-da-tiny"), folder)
        ...     sr_models.from_pretrained(folder).scale
        4
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # first, because it says itself which model it holds: after a failure between the two the folder still loads
    save_model(model, folder / WEIGHTS)
    write_text(folder / CONFIG, json.dumps(describe_file(model), indent=2) + "\n")


def from_pretrained(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> SuperResolutionFlow:
    """Load a model from a folder, or from the Hugging Face hub, in evaluation mode, on the CPU, in the file's dtype.

    The description in ``model.safetensors`` counts. ``config.json`` is read if there is none, as in files that another
    program has written anew.

    Args:
        name_or_folder: a folder that exists, or a name ``user/model`` on the hub. Of the latter only the two files are
            downloaded, to the cache of huggingface_hub.
        revision: branch, tag or commit on the hub; default: the newest. A folder has none.

    Raises:
        FileNotFoundError: no such folder, no such model on the hub, or files that are missing in it.
        ConnectionError: the hub cannot be reached, or refuses, and the cache does not hold the files.
        ValueError: files that cannot be read, that do not fit each other, or whose values are not finite; a revision
            of a folder.
        ModuleNotFoundError: a name on the hub, and huggingface_hub is not installed.

    Example:
        >>> model = sr_models.from_pretrained("user/model", revision="v1")  # doctest: +SKIP
    """
    name = os.fspath(name_or_folder)
    if not os.path.isdir(name):
        folder = _download(name, revision)
    elif revision is not None:
        raise ValueError(f"revision must be None for the folder {name}, got {revision!r}")
    else:
        folder = Path(name)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{name} holds no {WEIGHTS}")
    return create_stored(read_weights(folder / WEIGHTS, beside=folder / CONFIG))


def _download(name: str, revision: str | None) -> Path:
    """Download the two files of a model on the hub, or find them in the cache, and return their folder."""
    if not _NAME.fullmatch(name):
        raise FileNotFoundError(f"name_or_folder must be a folder that exists, or user/model on the hub, got {name!r}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(install_hint(error) or str(error), name=error.name) from None
    at = f"{name} at {revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(f"the hub has no model {at}, or it is private; it is no folder either") from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"cannot reach the hub, and {at} is not in the cache; it is no folder either") from error
    except OSError as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConnectionError(f"cannot download {at} from the hub: {reason}") from error
