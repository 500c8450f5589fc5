"""The packages of the extras are those of pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from sr_models._extras import EXTRAS, install_hint

#: Import names that are not those of the distribution.
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage", "scikit-learn": "sklearn"}


def test_every_package_of_the_extras_is_known() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    table = text.partition("[project.optional-dependencies]")[2]
    for extra in ("sr", "demo", "hub", "sr-tools", "study"):
        entries = re.search(rf"^{extra} = \[(.*?)\]$", table, re.DOTALL | re.MULTILINE)
        assert entries is not None
        names = [re.match(r"[\w-]+", entry)[0] for entry in re.findall(r'"([^"]+)"', entries[1])]
        packages = {IMPORT_NAMES.get(name, name) for name in names if name != "invflow"}
        assert packages == {package for package, of in EXTRAS.items() if of == extra}


def test_hint() -> None:
    assert install_hint(ModuleNotFoundError(name="skimage.metrics")) == (
        "skimage is not installed: pip install 'invflow[sr]'"
    )
    assert install_hint(ModuleNotFoundError(name="sklearn")) == "sklearn is not installed: pip install 'invflow[demo]'"
    for name in ("sr_models.gone", "torch", "elsewhere", None):
        assert install_hint(ModuleNotFoundError(name=name)) is None
