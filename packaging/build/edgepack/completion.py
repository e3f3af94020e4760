"""Writes completions for bash, zsh and fish: words, flags, choices and file names, for each subcommand."""

from __future__ import annotations

import re

from edgepack.programs import Command, Option


def bash(command: Command) -> str:
    """Write a completion for bash (and bash-completion's folder)."""
    function = f"_{command.path[0].replace('-', '_')}"
    cases, values = [], []
    for item in command.walk():
        words = [child.path[-1] for child in item.children]
        words += [flag for option in item.flags for flag in option.flags]
        words += [choice for argument in item.arguments for choice in argument.choices]
        key = " ".join(item.path[1:])
        files = any(argument.is_path for argument in item.arguments)
        cases.append(f"        {_quote(key)}) words={_quote(' '.join(words))}; files={int(files)} ;;")
        for option in item.flags:
            if not option.value:
                continue
            for flag in option.flags:
                action = f"choices={_quote(' '.join(option.choices))}" if not option.is_path else "files=1"
                values.append(f"        {_quote(f'{key}|{flag}')}) wants=1; {action} ;;")
    known = " | ".join(_quote(" ".join(item.path[1:])) for item in command.walk() if len(item.path) > 1) or "''"
    return _BASH.format(
        program=command.path[0],
        function=function,
        known=known,
        cases="\n".join(cases),
        values="\n".join(values) or "        '') ;;",
    )


def zsh(command: Command) -> str:
    """Write a completion function for zsh."""
    parts = [f"#compdef {command.path[0]}", ""]
    for item in command.walk():
        parts += [*_zsh_function(item), ""]
    return "\n".join([*parts, f'{_zsh_name(command)} "$@"']) + "\n"


def fish(command: Command) -> str:
    """Write completions for fish."""
    program = command.path[0]
    lines = [f"complete -c {program} -f"]
    for item in command.walk():
        condition = _fish_condition(item)
        lines += [
            f"complete -c {program} -n {condition} -a {_quote(child.path[-1])} -d {_quote(_short(child.summary))}"
            for child in item.children
        ]
        for option in item.flags:
            names = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
            line = f"complete -c {program} -n {condition} {' '.join(names)}"
            if option.value:
                line += " -r -F" if option.is_path else " -x"
            if option.choices:
                line += f" -a {_quote(' '.join(option.choices))}"
            lines.append(f"{line} -d {_quote(_short(option.help))}")
        for argument in item.arguments:
            if argument.choices:
                lines.append(f"complete -c {program} -n {condition} -a {_quote(' '.join(argument.choices))}")
            elif argument.is_path:
                lines.append(f"complete -c {program} -n {condition} -F")
    return "\n".join(lines) + "\n"


_BASH = """\
# Completion of {program} for bash.
{function}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local path= words= choices= files=0 wants=0 word i next
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        next=${{path:+$path }}$word
        case "$next" in
            {known}) path=$next ;;
        esac
    done
    case "$path|$previous" in
{values}
    esac
    if ((wants)); then
        words=$choices
    else
        case "$path" in
{cases}
        esac
    fi
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(compgen -W "$words" -- "$current" || :; ((files)) && compgen -f -- "$current")
}}
complete -F {function} {program}
"""


def _zsh_name(command: Command) -> str:
    return "_" + "_".join(command.path).replace("-", "_")


def _zsh_function(item: Command) -> list[str]:
    lines = [f"{_zsh_name(item)}() {{"]
    specs = [_zsh_option(option) for option in item.flags]
    if item.children:
        lines += ["    local line state", "    local -a commands"]
        specs += ["'1: :->command'", "'*::argument:->arguments'"]
    for number, argument in enumerate(item.arguments, 1):
        place = "*" if argument.many else str(number)
        specs.append(_quote(f"{place}:{_zsh_text(argument.name)}:{_zsh_values(argument)}"))
    lines.append("    _arguments -C \\" if item.children else "    _arguments \\")
    lines += [f"        {spec} \\" for spec in specs]
    lines[-1] = lines[-1].removesuffix(" \\")
    if item.children:
        words = " ".join(_quote(f"{child.path[-1]}:{_short(child.summary)}") for child in item.children)
        lines += ["    case $state in", "        command)", f"            commands=({words})"]
        lines += [
            "            _describe command commands",
            "            ;;",
            "        arguments)",
            "            case $words[1] in",
        ]
        lines += [f"                {child.path[-1]}) {_zsh_name(child)} ;;" for child in item.children]
        lines += ["            esac", "            ;;", "    esac"]
    return [*lines, "}"]


def _zsh_option(option: Option) -> str:
    text = _zsh_text(_short(option.help))
    value = f":{_zsh_text(option.value)}:{_zsh_values(option)}" if option.value else ""
    flags = option.flags
    if len(flags) == 1:
        return _quote(f"{flags[0]}[{text}]{value}")
    return f"{_quote('(' + ' '.join(flags) + ')')}{{{','.join(flags)}}}{_quote(f'[{text}]{value}')}"


def _zsh_values(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    return "_files" if option.is_path else " "


def _zsh_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("[", r"\[").replace("]", r"\]").replace(":", r"\:")


def _fish_condition(item: Command) -> str:
    if len(item.path) == 1:
        return "__fish_use_subcommand"
    seen = [f"__fish_seen_subcommand_from {word}" for word in item.path[1:]]
    if item.children:
        seen.append(f"not __fish_seen_subcommand_from {' '.join(child.path[-1] for child in item.children)}")
    return _quote("; and ".join(seen))


def _short(text: str) -> str:
    """Return the first sentence, in one line."""
    return re.split(r"; |\. (?=[A-Z])", " ".join(text.split()))[0].rstrip(".")


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
