"""The command line ``sr-models``. Every command is a module here, which is imported when the command runs.

A command's module has a function ``run``, whose signature and docstring make the command's ``--help``. If that is not
enough, a function ``add_arguments(parser)`` declares the arguments.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import textwrap
from collections.abc import Sequence

from sr_models.openmp import bind_threads

__all__ = ["COMMANDS", "main"]

#: In the order of the overview.
COMMANDS = ("list", "describe", "demo", "pack", "train", "sample", "evaluate", "convert")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Bad input, or a package that is not installed, ends in one line on standard error.

    Args:
        arguments: the command and its options; ``None``: those of the process.

    Returns:
        The exit code: 0, 2 after an error, 130 after an interruption.
    """
    if arguments is None:
        bind_threads()
    command, *options = (sys.argv[1:] if arguments is None else arguments) or ("",)
    try:
        if command in ("-h", "--help"):
            print(_overview())
        elif command in COMMANDS:
            _run(command, options)
        else:
            given = repr(command) if command else "none"
            raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {given}; see sr-models --help")
    except (argparse.ArgumentError, ValueError, OSError, FloatingPointError) as error:
        return _failed(str(error))
    except ModuleNotFoundError as error:
        from sr_models._extras import install_hint

        if (hint := install_hint(error)) is None:
            raise
        return _failed(hint)
    except KeyboardInterrupt:
        print("sr-models: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(command: str, options: Sequence[str]) -> None:
    from sr_models.cli._parser import parse

    module = importlib.import_module(f"sr_models.cli.{command}")
    module.run(**parse(f"sr-models {command}", module, options))


def _failed(message: str) -> int:
    # the parser's messages span lines
    print(f"sr-models: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _overview() -> str:
    """Say what the commands do. Needs none of the packages that the commands need."""
    width = min(shutil.get_terminal_size().columns - 2, 100)
    lines = [
        "usage: sr-models COMMAND [options]",
        "",
        "Super-resolution flows: train, sample and score them.",
        "",
        "commands:",
    ]
    for command in COMMANDS:
        run = importlib.import_module(f"sr_models.cli.{command}").run
        summary = run.__doc__.strip().split("\n")[0]
        lines.append(textwrap.fill(summary, width, initial_indent=f"    {command:<10}", subsequent_indent=" " * 14))
    return "\n".join([*lines, "", "sr-models COMMAND --help shows the options of a command."])
