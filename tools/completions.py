"""What shells complete: options, values of which there are few, names of files, hosts and groups."""

from __future__ import annotations

import re
from collections.abc import Iterable

from commandline import Command, Option

_MADE = "made by tools/fill_share.py from its options: not to be edited."


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


# ---------------------------------------------------------------------- bash

_BASH = """\
# What bash completes after {name}, {made}

_{function}()
{{
    local word=${{COMP_WORDS[COMP_CWORD]}} option=${{COMP_WORDS[COMP_CWORD - 1]}}
    # For bash, --option=value is three words.
    if [[ $word == "=" ]]; then
        word=""
    elif [[ $option == "=" ]]; then
        option=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    local IFS=$'\\n'
    COMPREPLY=()
{body}}}

complete -F _{function} {name}
"""

_BASH_KINDS = {
    "file": 'compopt -o filenames 2> /dev/null; COMPREPLY=($(compgen -f -- "$word"))',
    "host": 'COMPREPLY=($(compgen -A hostname -- "$word"))',
    "group": 'COMPREPLY=($(compgen -A group -- "$word"))',
}


def bash(command: Command) -> str:
    """For share/bash-completion/completions/NAME."""
    below = command.subcommand
    body = ""
    if below is not None:
        word = below.name.split()[-1]
        body += f"    if [[ ${{COMP_WORDS[1]}} == {word} && $COMP_CWORD -gt 1 ]]; then\n"
        body += _indented(_bash_of(below, [])) + "        return\n    fi\n"
        body += _bash_of(command, [word])
    else:
        body = _bash_of(command, [])
    return _BASH.format(name=command.name, function=_identifier(command.name), made=_MADE, body=body)


def _bash_of(command: Command, words: list[str]) -> str:
    lines = []
    for names, option in _valued(command):
        # Of what only the user knows, nothing is a guess.
        action = _bash_words(option.choices) if option.choices else _BASH_KINDS.get(option.kind, ":")
        lines += [f"        {' | '.join(names)})", f"            {action}", "            return", "            ;;"]
    if lines:
        lines = ["    case $option in", *lines, "    esac"]
    names_of_all = [name for option in command.options for name in option.names]
    lines += ["    if [[ $word == -* ]]; then", f"        {_bash_words(names_of_all)}"]
    if any(argument.kind == "file" for argument in command.arguments):
        lines += ["    else", f"        {_BASH_KINDS['file']}"]
    elif words:
        lines += ["    elif [[ $COMP_CWORD -eq 1 ]]; then", f"        {_bash_words([*words, *names_of_all])}"]
    elif not command.arguments:
        lines += ["    else", f"        {_bash_words(names_of_all)}"]
    return "\n".join([*lines, "    fi"]) + "\n"


def _bash_words(words: Iterable[str]) -> str:
    listed = "\\n".join(words)
    return f"COMPREPLY=($(compgen -W $'{listed}' -- \"$word\"))"


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _valued(command: Command) -> list[tuple[list[str], Option]]:
    """Options that take a value. Those of the same values are one entry."""
    found: dict[tuple[tuple[str, ...], str], tuple[list[str], Option]] = {}
    for option in command.options:
        if option.value:
            names, _ = found.setdefault((option.choices, option.kind), ([], option))
            names += option.names
    return list(found.values())


# ---------------------------------------------------------------------- zsh

_ZSH_KINDS = {"file": "_files", "host": "_hosts", "group": "_groups"}


def zsh(command: Command) -> str:
    """For share/zsh/site-functions/_NAME."""
    below = command.subcommand
    text = f"#compdef {command.name}\n# What zsh completes after {command.name}, {_MADE}\n\n"
    if below is not None:
        word = below.name.split()[-1]
        text += f"if (( CURRENT > 2 )) && [[ $words[2] == {word} ]]; then\n    shift words\n    (( CURRENT-- ))\n"
        text += _indented(_zsh_of(below, "")) + "    return\nfi\n"
        return text + _zsh_of(command, f"'1::command:({word})'")
    return text + _zsh_of(command, "")


def _zsh_of(command: Command, extra: str) -> str:
    specs = [_zsh_option(option) for option in command.options]
    for argument in command.arguments:
        star = "*" if argument.repeatable else ""
        # No candidates, and not a blank for "just a message": that would hold up the completion of options.
        specs.append(f"'{star}:{_zsh_text(argument.value)}:{_ZSH_KINDS.get(argument.kind, '()')}'")
    if extra:
        specs.append(extra)
    return "_arguments -s -S : \\\n    " + " \\\n    ".join(specs) + "\n"


def _zsh_option(option: Option) -> str:
    help = f"[{_zsh_text(option.summary)}]"
    value = ""
    names = list(option.names)
    if option.value:
        what = f"({' '.join(option.choices)})" if option.choices else _ZSH_KINDS.get(option.kind, " ")
        value = f":{_zsh_text(option.value)}:{what}"
        names = [f"{name}=" if name.startswith("--") else f"{name}+" for name in names]
    before = "*" if option.repeatable else f"({' '.join(option.names)})"
    if len(names) == 1:
        return f"'{before}{names[0]}{help}{value}'"
    return f"'{before}'{{{','.join(names)}}}'{help}{value}'"


def _zsh_text(text: str) -> str:
    """Inside the quotes of a shell, and inside the brackets of _arguments."""
    return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")


# ---------------------------------------------------------------------- fish

_FISH_KINDS = {"file": "-r -F", "host": "-x -a '(__fish_print_hostnames)'", "group": "-x -a '(__fish_complete_groups)'"}


def fish(command: Command) -> str:
    """For share/fish/vendor_completions.d/NAME.fish."""
    start = f"complete -c {command.name}"
    lines = [f"# What fish completes after {command.name}, {_MADE}", f"{start} -f"]
    below = command.subcommand
    if below is None:
        lines += [f"{start} {_fish_option(option)}" for option in command.options]
    else:
        word = below.name.split()[-1]
        seen = f"__fish_seen_subcommand_from {word}"
        lines.append(f"{start} -n '__fish_is_first_arg' -a {word} -d {_fish_text(below.description.split(':')[0])}")
        lines += [f"{start} -n 'not {seen}' {_fish_option(option)}" for option in command.options]
        lines += [f"{start} -n '{seen}' {_fish_option(option)}" for option in below.options]
        if any(argument.kind == "file" for argument in below.arguments):
            lines.append(f"{start} -n '{seen}' -F")
    return "\n".join(lines) + "\n"


def _fish_option(option: Option) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if not option.value:
        value = ""
    elif option.choices:
        value = f"-x -a '{' '.join(option.choices)}'"
    else:
        value = _FISH_KINDS.get(option.kind, "-x")
    return " ".join(filter(None, [*names, value, f"-d {_fish_text(option.summary)}"]))


def _fish_text(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{quoted}'"
