"""``sr-models convert``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["add_arguments", "run"]


def run(
    file: str,
    output: str,
    model: str | None,
    scale: int | None,
    blocks: list[int] | None,
    to: Literal["safetensors", "published"],
) -> None:
    """Convert a published checkpoint (.pth of SRFlow, SRFlow-DA, NCSR, HCFlow or an RRDB encoder), or convert one back.

    Model, scale and sizes are read off the file. Nothing in it is unpickled but tensors. RRDB encoders may have the
    names of BasicSR and Real-ESRGAN; weights may lie under params_ema, params or state_dict. The folder of a training
    run, or a checkpoint in it, is converted too, while the run goes on.

    Example:
        sr-models convert SRFlow_DF2K_4X.pth --output srflow.safetensors
        sr-models convert runs/mine/checkpoints/last.ckpt --output model.safetensors
        sr-models convert srflow.safetensors --to published --output published.pth
    """
    from sr_models.checkpoints.convert import convert_published, write_published

    file, output = os.path.expanduser(file), os.path.expanduser(output)
    if Path(file).resolve() == Path(output).resolve():
        raise ValueError(f"output must be another file than {file}")
    if to == "safetensors":
        print(convert_published(file, output, model=model, scale=scale, blocks=blocks))
    else:
        print(write_published(file, output))
    print(f"wrote {output}")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments: the file without an option, and the output with a short one."""
    parser.add_argument("file", type=str, help="the checkpoint: .pth, .safetensors, .ckpt or the folder of a run")
    parser.add_argument("-o", "--output", type=str, required=True, help="the file to write")
    parser.add_argument("--model", type=str, help="fail unless the file holds this model")
    parser.add_argument("--scale", type=int, help="fail unless the file has this scale")
    parser.add_argument(
        "--blocks",
        type=int,
        nargs="+",
        help="RRDB blocks that condition the flow, from 0, which a published file does not say; default: the preset's",
    )
    parser.add_argument(
        "--to", type=Literal["safetensors", "published"], default="safetensors", help="the kind of file to write"
    )
