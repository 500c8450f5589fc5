"""Packages that only an extra of the distribution installs, and the one line that says so."""

from __future__ import annotations

__all__ = ["EXTRAS", "install_hint"]

#: Import name -> the extra that installs the package.
EXTRAS = {
    "PIL": "sr",
    "huggingface_hub": "hub",
    "imagecodecs": "sr",
    "jinja2": "sr",
    "jsonargparse": "sr",
    "lightning": "sr",
    "lpips": "sr",
    "matplotlib": "sr",
    "safetensors": "sr",
    "scipy": "sr",
    "skimage": "sr",
    "sklearn": "demo",
    "spandrel": "sr-tools",
    "starlette": "study",
    "tensorboard": "sr",
    "tifffile": "sr",
    "torchvision": "sr",
    "tqdm": "sr",
    "uvicorn": "study",
    "yaml": "sr",
}


def install_hint(error: ModuleNotFoundError) -> str | None:
    """Say what to install after a failed import; ``None`` if no extra brings the missing module."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return f"{package} is not installed: pip install 'invflow[{EXTRAS[package]}]'"
