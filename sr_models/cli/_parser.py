"""The parser of one command, made of its function's signature and docstring."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from sr_models.cli._nearest import nearest
from sr_models.cli._sources import from_environment, from_files, split_files

__all__ = ["CommandParser", "environment_prefix", "parse"]


def parse(program: str, command: ModuleType, options: Sequence[str]) -> dict[str, Any]:
    """Parse the options of a command; ``--help`` prints the help and exits.

    Names may be written with dashes or underscores, those of one letter with one dash. Values at the beginning belong
    to the command's ``FIRST_OPTION``. A command with an option ``--config`` takes settings from these
    YAML files and from environment variables too: options win over variables, and variables over files.

    Args:
        program: what the user types before the options.
        command: the command's module, with ``run`` and perhaps ``add_arguments`` and ``FIRST_OPTION``.
        options: what the user typed.

    Returns:
        Arguments of ``run``, by name.

    Raises:
        argparse.ArgumentError, ValueError: an option that is unknown, missing or of the wrong type.
        OSError: a file of settings that cannot be read.
    """
    parser = CommandParser(
        prog=program,
        description=_description(command.run),
        formatter_class=_HelpFormatter,
        exit_on_error=False,
    )
    if hasattr(command, "add_arguments"):
        command.add_arguments(parser)
    else:
        parser.add_function_arguments(command.run, as_group=False)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            # --strict alone says yes
            action.nargs, action.const = "?", True
    first = getattr(command, "FIRST_OPTION", None)
    # a dash alone stands for standard input
    if first and options and (options[0] == "-" or not options[0].startswith("-")):
        options = [first, *options]
    given = _canonical(parser, options)
    names = {name.removeprefix("--") for name in _long_options(parser)}
    if "config" in names:
        settings = names - {"config", "help", "print_config"}
        variables = from_environment(environment_prefix(program), os.environ, {*settings, "config"})
        files, given = split_files([*variables, *given])
        given = [*from_files(files, settings), *given]
    try:
        return parser.parse_args(given).as_dict()
    except argparse.ArgumentError as error:
        raise argparse.ArgumentError(None, _plain(parser, str(error))) from None


def environment_prefix(program: str) -> str:
    """Return how the environment variables of a command begin: ``SR_MODELS_TRAIN_`` for ``sr-models train``."""
    return re.sub(r"\W", "_", program).upper() + "_"


class CommandParser(ArgumentParser):
    """Parser whose ``--print_config`` shows what the command makes of the settings.

    Attributes:
        completed: returns the settings that are printed, from those that were given.
    """

    completed: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def dump(self, cfg: Any, **kwargs: Any) -> str:
        if self.completed is not None:
            cfg = cfg.clone()
            for name, value in self.completed(cfg.as_dict()).items():
                cfg[name] = value
        return super().dump(cfg, **kwargs)


def _long_options(parser: ArgumentParser) -> list[str]:
    # --list+ appends to a list: a second name for what --list sets
    return [name for name in parser._option_string_actions if name.startswith("--") and not name.endswith("+")]


def _canonical(parser: ArgumentParser, options: Sequence[str]) -> list[str]:
    """Write the names of options as the parser knows them."""
    known = parser._option_string_actions
    result = []
    for option in options:
        if (short := re.match(r"-[a-z](?==|$)", option)) and f"-{short[0]}" in known:
            option = f"-{option}"
        match = re.match(r"(--[\w-]+)([.+=].*)?$", option, re.DOTALL)
        if match is None or match[1] in known:
            result.append(option)
            continue
        name = "--" + match[1][2:].replace("-", "_")
        if name not in known:
            hint = nearest(name, _long_options(parser))
            raise argparse.ArgumentError(None, f"unknown option {match[1]}{hint or f'; see {parser.prog} --help'}")
        result.append(name + (match[2] or ""))
    return result


def _plain(parser: ArgumentParser, message: str) -> str:
    """Say in one line what was given and what is allowed."""
    if match := re.match(r"the following arguments are required: (.*)", message):
        names = match[1].split(", ")
        options = [f"--{name}" if f"--{name}" in parser._option_string_actions else name for name in names]
        *others, last = options
        listed = f"{', '.join(others)} and {last}" if others else last
        return f"{listed} must be given; see {parser.prog} --help"
    if match := re.match(r"argument ([^:/]+).*: expected one argument$", message):
        return f"{match[1]} needs a value"
    if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return f"unknown argument {match[1]!r}; see {parser.prog} --help"
    wrong_type = re.match(r'Parser key "(\w+)".*(?:Given value:|Got value:) (.*)', message, re.DOTALL)
    if wrong_type:
        hints = [getattr(action, "_typehint", None) for action in parser._actions if action.dest == wrong_type[1]]
        if allowed := " or ".join(filter(None, map(_kind, hints))):
            return f"{wrong_type[1]} must be {allowed}, got {wrong_type[2]!r}"
    return message


def _kind(hint: Any) -> str:
    """Describe a type for users."""
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is list:
        return {float: "a list such as [0.5,1.0]", int: "a list such as [1,2]"}.get(get_args(hint)[0], "a list")
    if get_origin(hint) is dict:
        return "a mapping such as {name: value}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(hint, "")


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

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        # leaving an option out says the same as null
        return super()._format_args(action, default_metavar).replace(",null}", "}")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text.rstrip('.')} (required)"
        if action.default in (None, argparse.SUPPRESS, {}) or "default" in text:
            return text
        return f"{text.rstrip('.')} (default: %(default)s)"
