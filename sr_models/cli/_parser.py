"""The parser of one command, made of its function's signature and docstring."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

__all__ = ["parse"]


def parse(program: str, command: ModuleType, options: Sequence[str]) -> dict[str, Any]:
    """Parse the options of a command; ``--help`` prints the help and exits.

    Args:
        program: what the user types before the options.
        command: the command's module, with ``run`` and perhaps ``add_arguments``.
        options: what the user typed.

    Returns:
        Arguments of ``run``, by name.

    Raises:
        argparse.ArgumentError: an option that is unknown, missing or of the wrong type.
    """
    parser = ArgumentParser(
        prog=program,
        description=_description(command.run),
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    if hasattr(command, "add_arguments"):
        command.add_arguments(parser)
    else:
        parser.add_function_arguments(command.run, as_group=False)
    return parser.parse_args([*options]).as_dict()


def _description(run: Any) -> str:
    """Cut off the part of the docstring that describes the arguments."""
    return str(inspect.getdoc(run)).partition("\nArgs:\n")[0].rstrip()


class _HelpFormatter(DefaultHelpFormatter):
    """Keep paragraphs and examples, name in the usage what is required, and leave out types and empty defaults."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n " in part else textwrap.fill(part, width) for part in paragraphs)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        required = [action for action in actions if action.required]
        return super()._format_usage(usage, required, [], prefix).rstrip() + " [options]\n\n"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text.rstrip('.')} (required)"
        if action.default in (None, argparse.SUPPRESS, {}) or "default" in text:
            return text
        return f"{text.rstrip('.')} (default: %(default)s)"
