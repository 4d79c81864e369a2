"""``r2d2 completion bash|zsh|fish``: scripts made from the tree of verbs itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .parser import Parser, Verbs

#: What the words of a verb are.
_CONTAINERS = frozenset({"exec", "logs", "stop", "kill", "wait", "rm", "inspect", "diff"})
_IMAGES = frozenset({"run", "shell", "diff", "explain"})
_NAMES = "r2d2 ps -aq 2>/dev/null"


class _Option(NamedTuple):
    names: list[str]
    help: str
    takes: bool
    choices: list[str]


class _Verb(NamedTuple):
    name: str
    help: str
    options: list[_Option]
    words: list[str]


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "completion",
        completion,
        "print a completion script for a shell",
        "bash|zsh|fish",
        epilog='bash: eval "$(r2d2 completion bash)"\n'
        'zsh:  eval "$(r2d2 completion zsh)"   (after compinit)\n'
        "fish: r2d2 completion fish | source",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def completion(arguments: argparse.Namespace) -> int:
    """``r2d2 completion``."""
    from .parser import build

    make = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell]
    print(make(_tree(build())), end="")
    return 0


def _tree(parser: Parser) -> list[_Verb]:
    verbs = []
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, sub in action.choices.items():
            options = [
                _Option(list(each.option_strings), each.help or "", each.nargs != 0, list(each.choices or ()))
                for each in sub._actions
                if each.option_strings
            ]
            words = [
                str(choice)
                for each in sub._actions
                if not each.option_strings
                for choice in each.choices or ()
            ]
            verbs.append(_Verb(name, helps.get(name, ""), options, words))
    return verbs


def _candidates(verb: _Verb) -> list[str]:
    return [*verb.words, *(("host", "minimal", "scratch") if verb.name in _IMAGES else ())]


def _bash(verbs: list[_Verb]) -> str:
    cases = []
    for verb in verbs:
        flags = " ".join(name for option in verb.options for name in option.names)
        taking = "|".join(name for option in verb.options if option.takes for name in option.names)
        names = f" $({_NAMES})" if verb.name in _CONTAINERS else ""
        choices = "".join(
            f"            {'|'.join(option.names)}) "
            f'COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur")); return ;;\n'
            for option in verb.options
            if option.choices
        )
        files = f'            {taking}) COMPREPLY=($(compgen -f -- "$cur")); return ;;\n' if taking else ""
        cases.append(
            f"    {verb.name})\n"
            f'        case "$prev" in\n{choices}{files}        esac\n'
            f'        if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "{flags}" -- "$cur"))\n'
            f'        else COMPREPLY=($(compgen -f -W "{" ".join(_candidates(verb))}{names}" -- "$cur"))\n'
            "        fi ;;\n"
        )
    listed = " ".join(verb.name for verb in verbs)
    return (
        "# Completion of r2d2 for bash, made by r2d2 completion bash.\n"
        "_r2d2() {\n"
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
        "    COMPREPLY=()\n"
        "    if [[ $COMP_CWORD == 1 ]]; then\n"
        f'        COMPREPLY=($(compgen -W "{listed} --help --version" -- "$cur")); return\n'
        "    fi\n"
        '    case "${COMP_WORDS[1]}" in\n' + "".join(cases) + "    esac\n"
        "}\n"
        "complete -o filenames -F _r2d2 r2d2\n"
    )


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh(verbs: list[_Verb]) -> str:
    def clean(text: str) -> str:
        return text.replace("[", "(").replace("]", ")").replace(":", " ")

    cases = []
    for verb in verbs:
        lines = []
        for option in verb.options:
            action = "_files" if not option.choices else f"({' '.join(option.choices)})"
            value = f":{clean(option.names[-1].lstrip('-'))}:{action}" if option.takes else ""
            lines += [_quote(f"*{name}[{clean(option.help)}]{value}") for name in option.names]
        names = f" $({_NAMES})" if verb.name in _CONTAINERS else ""
        words = " ".join(_candidates(verb))
        lines.append(f"\"*::word:{{_alternative 'word:word:({words}{names})' 'files:file:_files'}}\"")
        cases.append(f"        {verb.name}) _arguments " + " \\\n            ".join(lines) + " ;;\n")
    listed = " ".join(_quote(f"{verb.name}:{clean(verb.help)}") for verb in verbs)
    return (
        "#compdef r2d2\n# Completion of r2d2 for zsh, made by r2d2 completion zsh.\n"
        "_r2d2() {\n"
        f"    local -a verbs=({listed})\n"
        "    if (( CURRENT == 2 )); then _describe command verbs; return; fi\n"
        "    local verb=${words[2]}\n"
        "    shift words; (( CURRENT-- ))\n"
        '    case "$verb" in\n' + "".join(cases) + "    esac\n"
        "}\n"
        "compdef _r2d2 r2d2\n"
    )


def _fish(verbs: list[_Verb]) -> str:
    lines = ["# Completion of r2d2 for fish, made by r2d2 completion fish.\n", "complete -c r2d2 -e\n"]
    for verb in verbs:
        lines.append(f"complete -c r2d2 -n __fish_use_subcommand -f -a {verb.name} -d {_quote(verb.help)}\n")
        seen = f"-n '__fish_seen_subcommand_from {verb.name}'"
        for option in verb.options:
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
            )
            value = " -r" if option.takes else ""
            value += f" -f -a '{' '.join(option.choices)}'" if option.choices else ""
            lines.append(f"complete -c r2d2 {seen} {names}{value} -d {_quote(option.help)}\n")
        words = " ".join(_candidates(verb))
        if verb.name in _CONTAINERS:
            words = f"{words} ({_NAMES})".strip()
        if words:
            lines.append(f"complete -c r2d2 {seen} -a {_quote(words)}\n")
    return "".join(lines)
