"""Writes manual pages in man(7)'s language."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgepack.programs import Command, Option
from edgepack.settings_model import Section

_PAGE = re.compile(r"^(.+)\((\d)\)$")


def escape(text: str) -> str:
    """Make plain text safe for roff: nothing in it is a request or an escape."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines())


def program_page(
    command: Command,
    *,
    section: int,
    summary: str,
    version: str,
    date: str,
    files: Sequence[tuple[str, str]],
    see_also: Sequence[str],
    about: str = "",
) -> str:
    """Write the page of a program with all its subcommands.

    :param date: as it stands in the page's footer.
    :param about: paragraphs after the parser's own description.
    """
    name = command.path[0]
    lines = [_title(name, section, date, version), ".SH NAME", f"{escape(name)} \\- {escape(summary)}", ".SH SYNOPSIS"]
    if not command.children:
        lines += _synopsis(command)
    for child in command.children:
        lines += _synopsis(child)
    lines += [".SH DESCRIPTION", *_paragraphs(command.description), *_paragraphs(about)]
    if command.options:
        lines += [".SH OPTIONS", *_options(command.options)]
    shown = command.epilog
    below = [item for item in command.walk() if item is not command]
    if below:
        lines.append(".SH COMMANDS")
    for item in below:
        lines += [f".SS {escape(' '.join(item.path))}", *_paragraphs(item.description or item.summary)]
        lines += _options(item.options, skip_help=True)
        if item.epilog and item.epilog != shown:
            lines += _epilog(item.epilog)
    lines += _epilog_sections(shown)
    if files:
        lines.append(".SH FILES")
        for path, what in files:
            lines += [".TP", rf"\fI{escape(path)}\fP", escape(what)]
    return "\n".join([*lines, *_see_also(see_also)]) + "\n"


def settings_page(
    sections: Sequence[Section], *, version: str, date: str, about: str, see_also: Sequence[str], prefix: str
) -> str:
    """Write the page of the configuration file."""
    lines = [_title("agent.toml", 5, date, version), ".SH NAME"]
    lines += [r"agent.toml \- configuration of the Airflow edge agent", ".SH DESCRIPTION", *_paragraphs(about)]
    for section in sections:
        lines += [f".SH {escape(section.title.upper() if not section.table else section.title)}"]
        lines += _paragraphs(section.doc)
        for setting in section.settings:
            lines += [".TP", rf"\fB{escape(setting.name)}\fP (\fI{escape(setting.type)}\fP)"]
            lines += [
                escape(part)
                for part in (
                    setting.doc,
                    f"Default: {setting.default}." if setting.default and "Default:" not in setting.doc else "",
                )
                if part
            ]
            if not setting.default and setting.required:
                lines.append("Must be given.")
            if variable := setting.variable(prefix):
                lines += [".br", f"Variable: {escape(variable)}"]
    return "\n".join([*lines, *_see_also(see_also)]) + "\n"


def _title(name: str, section: int, date: str, version: str) -> str:
    return f'.TH {escape(name.upper())} {section} "{date}" "airflow\\-edge\\-agent {escape(version)}"'


def _synopsis(command: Command) -> list[str]:
    parts = [rf"\fB{escape(' '.join(command.path))}\fP"]
    if command.children:
        parts.append(r"\fICOMMAND\fP ...")
    for option in command.options:
        if option.flags[:1] in (("-h",), ("--help",)) or "--help" in option.flags:
            continue
        flag = rf"\fB{escape(option.flags[-1])}\fP " if option.flags else ""
        text = (flag + (rf"\fI{escape(option.value)}\fP" if option.value else "")).strip() + (
            " ..." if option.many else ""
        )
        parts.append(f"[{text}]" if option.optional else text)
    return [" ".join(parts), ".br"]


def _options(options: Sequence[Option], *, skip_help: bool = False) -> list[str]:
    lines = []
    for option in options:
        if skip_help and "--help" in option.flags:
            continue
        names = ", ".join(rf"\fB{escape(flag)}\fP" for flag in option.flags)
        value = rf"\fI{escape(option.value)}\fP" if option.value else ""
        lines += [".TP", f"{names} {value}".strip() or escape(option.name), escape(option.help) or r"\&"]
    return lines


def _paragraphs(text: str) -> list[str]:
    lines = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if not paragraph:
            continue
        if paragraph.startswith(" ") or "\n " in paragraph:
            lines += [".PP", ".nf", escape(paragraph), ".fi"]
        else:
            lines += [".PP", escape(" ".join(paragraph.split()))]
    return lines


def _epilog(text: str) -> list[str]:
    return [".PP", ".nf", escape(text.rstrip()), ".fi"]


def _epilog_sections(text: str) -> list[str]:
    """Turn ``title:`` with indented lines below it into sections of their own."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        head, _, body = block.partition("\n")
        if head.endswith(":") and body:
            title = "EXIT STATUS" if head.lower().startswith("exit") else head.rstrip(":").upper()
            lines += [f".SH {escape(title)}", ".nf", escape(body.rstrip()), ".fi"]
        elif block:
            lines += [".SH NOTES", *_paragraphs(block)]
    return lines


def _see_also(pages: Sequence[str]) -> list[str]:
    shown = []
    for page in pages:
        match = _PAGE.match(page)
        shown.append(rf"\fB{escape(match[1])}\fP({match[2]})" if match else escape(page))
    return [".SH SEE ALSO", ",\n".join(shown)]
