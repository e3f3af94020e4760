"""Reads an ``argparse`` parser into a plain description, from which manual pages and completions are written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Never
from unittest import mock

from edgepack.faults import BuildError


@dataclass(frozen=True, slots=True)
class Option:
    """A flag, or an argument without one.

    :param flags: ``--like``, ``-l``; empty for a positional argument.
    :param value: what stands for its value, empty if it takes none.
    :param choices: all values it may have.
    :param is_path: its value is a file's name.
    """

    flags: tuple[str, ...]
    name: str
    value: str
    help: str
    choices: tuple[str, ...] = ()
    is_path: bool = False
    many: bool = False
    optional: bool = True


@dataclass(frozen=True, slots=True)
class Command:
    """A program or one of its subcommands.

    :param path: the words that call it, the program first.
    """

    path: tuple[str, ...]
    summary: str
    description: str
    epilog: str
    options: tuple[Option, ...]
    children: tuple[Command, ...] = field(default=())

    def walk(self) -> Iterator[Command]:
        """Iterate over this and all commands below, each before its own."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def flags(self) -> tuple[Option, ...]:
        """The options that have a flag."""
        return tuple(option for option in self.options if option.flags)

    @property
    def arguments(self) -> tuple[Option, ...]:
        """The positional arguments."""
        return tuple(option for option in self.options if not option.flags)


class _Caught(Exception):
    """Carries the parser out of the program that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def load(entry: str) -> Command:
    """Describe a program by calling it up to the point where it reads its arguments.

    So nothing is asked of a program but that it uses ``argparse``.

    :param entry: ``module:function`` as in a console script.
    :raises BuildError: it has ended or gone on without a parser.
    """

    def catch(self: argparse.ArgumentParser, *_: object, **__: object) -> Never:
        raise _Caught(self)

    module, _, function = entry.partition(":")
    # A default that is read from the environment must not get into a manual page; help is wrapped for no terminal.
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "120"}, clear=True),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", catch),
        mock.patch.object(sys, "argv", [function]),
    ):
        try:
            getattr(import_module(module), function)()
        except _Caught as caught:
            return describe(caught.parser)
    raise BuildError(f"{entry}: has no argparse parser that could be described")


def describe(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), summary: str = "") -> Command:
    """Describe a parser and those of its subcommands."""
    path = path or (parser.prog,)
    options: list[Option] = []
    children: list[Command] = []
    for action in parser._actions:  # noqa: SLF001 -- argparse has no other way to ask what a parser knows
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 -- as above
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001 -- as above
            seen: set[int] = set()
            for name, child in action.choices.items():
                # An alias is the same parser again; a command without help is hidden on purpose.
                if id(child) not in seen and name in helps:
                    seen.add(id(child))
                    children.append(describe(child, (*path, name), _expand(helps[name], path[0])))
        elif action.help != argparse.SUPPRESS:
            options.append(_option(action, path[0]))
    return Command(
        path=path,
        summary=summary,
        description=_expand(parser.description or summary, path[0]),
        epilog=_expand(parser.epilog or "", path[0]),
        options=tuple(options),
        children=tuple(children),
    )


def _option(action: argparse.Action, program: str) -> Option:
    takes_value = action.nargs != 0
    metavar = action.metavar if isinstance(action.metavar, str) else None
    choices = tuple(str(choice) for choice in action.choices or ())
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%(prog)s", program)
    value = metavar or ("{" + ",".join(choices) + "}" if choices else action.dest.upper())
    return Option(
        flags=tuple(action.option_strings),
        name=action.dest,
        value=value if takes_value else "",
        help=text.replace("%%", "%"),
        choices=choices,
        is_path=action.type is Path or (metavar or "").upper() in ("FILE", "DIR", "PATH"),
        many=action.nargs in ("*", "+"),
        optional=action.nargs in ("?", "*") if not action.option_strings else not action.required,
    )


def _expand(text: str, program: str) -> str:
    return text.replace("%(prog)s", program).replace("%%", "%")
