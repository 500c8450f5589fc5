"""The command line ``sr-models``. Every command is a module here, which is imported when the command runs.

A command may have commands behind it, such as ``study results``, which is the module ``study_results``.
A command's module has a function ``run``, whose signature and docstring make the command's ``--help``. If that is not
enough, a function ``add_arguments(parser)`` declares the arguments.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import sys
import textwrap
from collections.abc import Sequence

from sr_models.cli._errors import end_progress_bars, users_error
from sr_models.cli._nearest import nearest
from sr_models.cli._streams import lenient_stderr, slow_progress_bars
from sr_models.openmp import bind_threads
from sr_models.training.stopping import Stopped

__all__ = ["COMMANDS", "main"]

#: In the order of the overview.
COMMANDS = (
    *("list", "describe", "demo", "pack", "train", "sample"),
    *("evaluate", "report", "rank", "calibrate", "study", "convert"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Bad input, or a package that is not installed, ends in one line on standard error. One that cannot be written to
    ends nothing.

    Args:
        arguments: the command and its options; ``None``: those of the process.

    Returns:
        The exit code: 0, 1 if a command could do only a part of its work, 2 after an error, 130 after an interruption.
        A training run that a signal has ended after a checkpoint: 128 + the signal's number.

    Raises:
        Exception: one that is not the user's to mend; its traceback belongs into a report of a bug.
    """
    if arguments is None:
        bind_threads()
        slow_progress_bars()
        # where the home folder cannot be written it takes a temporary one, and says so in a paragraph
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with lenient_stderr():
        return _main(sys.argv[1:] if arguments is None else arguments)


def _main(arguments: Sequence[str]) -> int:
    command, *options = arguments or ("",)
    try:
        if command in ("-h", "--help"):
            print(_overview())
        elif command == "--version":
            import invflow

            print(f"sr-models {invflow.__version__}")
        elif command in COMMANDS:
            return _run(command, options)
        else:
            hint = (nearest(command, COMMANDS) if command else "") or "; see sr-models --help"
            given = repr(command) if command else "none"
            raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {given}{hint}")
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except Stopped as stopped:
        return _say(str(stopped), stopped.exit_code)
    except Exception as error:
        if (message := users_error(error)) is None:
            raise
        return _say(f"error: {message}", 2)
    return 0


def _run(command: str, options: Sequence[str]) -> int:
    from sr_models.cli._parser import parse

    module = importlib.import_module(f"sr_models.cli.{command}")
    if options and options[0] in getattr(module, "SUBCOMMANDS", ()):
        module = importlib.import_module(f"sr_models.cli.{command}_{options[0]}")
        command, options = f"{command} {options[0]}", options[1:]
    # a command that does only a part of its work returns 1
    return module.run(**parse(f"sr-models {command}", module, options)) or 0


def _say(message: str, code: int) -> int:
    """Print a line of its own on standard error, and return the exit code."""
    end_progress_bars()
    # messages of the parser and of libraries span lines
    print(f"sr-models: {' '.join(message.split())}", file=sys.stderr)
    return code


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
    return "\n".join(
        [*lines, "", "sr-models COMMAND --help shows the options of a command, and sr-models --version the version."]
    )
