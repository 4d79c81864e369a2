"""The flags of a container, and what they mean to ``Container``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from r2d2 import Mount

__all__ = ["add_container", "add_program", "add_settings", "environment", "image_and_command", "keywords"]


def add_program(parser: argparse.ArgumentParser) -> None:
    """The flags of one program: ``run`` and ``exec`` have them."""
    parser.add_argument("-i", "--interactive", action="store_true", help="connect standard input")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="run in the background")
    add_settings(parser)
    parser.add_argument(
        "--env-file", metavar="FILE", action="append", default=[], help="variables, one K=V a line"
    )


def add_settings(parser: argparse._ActionsContainer) -> None:
    """Where, as whom and with what variables: what a cell of a notebook has of these."""
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory inside")
    parser.add_argument("-u", "--user", metavar="USER", help="name, uid or uid:gid inside")
    parser.add_argument(
        "-e", "--env", metavar="K[=V]", action="append", default=[], help="set a variable, or pass ours on"
    )


def add_container(parser: argparse.ArgumentParser, *, command: bool = True) -> None:
    """The flags of a container; ``command``: whether an image and a command follow them."""
    add = parser.add_argument
    words = "the image; then the first word is the command" if command else "the image (host)"
    add("--image", metavar="IMAGE", help=words)
    add("--name", metavar="NAME", help="a name of your own")
    if command:
        add(
            "--rm",
            action="store_true",
            help="with -d: remove it when it ends (without -d nothing ever stays)",
        )
    add("-h", "--hostname", metavar="NAME", help="host name inside (r2d2)")
    add(
        "--network",
        metavar="none|host|slirp|bridge|slirp4netns|pasta",
        choices=("none", "host", "slirp", "bridge", "slirp4netns", "pasta"),
        default="none",
        help="only lo, ours, or one of its own that reaches what we reach; bridge is for root",
    )
    add(
        "-p",
        "--publish",
        metavar="[[IP:]PORT:]PORT[/udp]|PATH:PORT",
        action="append",
        default=[],
        help="with slirp or bridge: lead a port of ours inside (127.0.0.1 unless IP says otherwise), "
        "a range A-B of them, or a Unix socket",
    )
    add("-v", "--volume", metavar="SRC:DST[:ro]", action="append", default=[], help="bind a path of ours")
    add(
        "--mount",
        metavar="type=…",
        action="append",
        default=[],
        help="type=bind,source=S,target=T[,readonly] | type=tmpfs,target=T[,tmpfs-size=64m] | "
        "type=overlay,target=T,lowerdir=A:B[,upperdir=U,workdir=W]",
    )
    add("--tmpfs", metavar="DST[:size=64m]", action="append", default=[], help="an empty tmpfs")
    add("--read-only", action="store_true", help="the root file system refuses writes")
    add("--storage", metavar="tmpfs|disk", help="where writes go")
    add("-m", "--memory", metavar="64m", help="limit of memory")
    add("--memory-swap", metavar="64m", help="memory and swap together, as docker counts")
    add("--pids-limit", metavar="N", type=int, help="limit of processes")
    add("--cpus", metavar="N", type=float, help="limit of CPU time; 1.5 is one and a half CPUs")
    add("--cpuset-cpus", metavar="0-1", help="CPUs to run on")
    add("--best-effort", action="store_true", help="accept a limit that would not bind on this machine")
    add(
        "--ulimit",
        metavar="nofile=64",
        action="append",
        default=[],
        help="a limit per process (getrlimit(2))",
    )
    add(
        "--cap-add",
        metavar="CAP",
        action="append",
        default=[],
        help="a capability beyond Docker's set, or ALL",
    )
    add("--cap-drop", metavar="CAP", action="append", default=[], help="one below it, or ALL")
    add(
        "--security-opt",
        metavar="no-new-privileges=false",
        action="append",
        default=[],
        help="let setuid programs give privileges inside",
    )
    add("--add-host", metavar="NAME:IP", action="append", default=[], help="a line of /etc/hosts")
    add(
        "--userns",
        metavar="auto|single|subuid|identity|host",
        choices=("auto", "single", "subuid", "identity", "host"),
        default="auto",
        help="how user ids are mapped",
    )


def image_and_command(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """The image, and the words of the command."""
    from r2d2 import SpecError

    words = list(arguments.words)
    if words[:1] == ["--"]:
        words = words[1:]
        if arguments.image is None:
            arguments.image = "host"
    if arguments.image is not None:
        return arguments.image, words
    if not words:
        raise SpecError("no image").with_hint("r2d2 run host COMMAND…, or a directory, minimal or scratch")
    rest = words[1:]
    return words[0], rest[1:] if rest[:1] == ["--"] else rest


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """``--env-file``, then ``--env``."""
    result: dict[str, str] = {}
    for name in arguments.env_file:
        with open(name, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
        _variables(result, (line for line in lines if line and not line.startswith("#")))
    _variables(result, arguments.env)
    return result


def _variables(result: dict[str, str], items: Iterable[str]) -> None:
    for item in items:
        key, equals, value = item.partition("=")
        if equals:
            result[key] = value
        elif key in os.environ:
            result[key] = os.environ[key]


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of ``Container``, without those that were not given."""
    from r2d2 import Limits

    swap = None
    if arguments.memory_swap is not None:
        swap = _swap(arguments.memory, arguments.memory_swap)
    found: dict[str, Any] = {
        "name": arguments.name,
        "hostname": arguments.hostname,
        "user": arguments.user,
        "workdir": arguments.workdir,
        "storage": arguments.storage,
        "env": environment(arguments),
        "network": arguments.network,
        "ports": arguments.publish,
        "readonly": arguments.read_only,
        "userns": arguments.userns,
        "cap_add": arguments.cap_add,
        "cap_drop": arguments.cap_drop,
        "no_new_privs": not {"no-new-privileges=false", "no-new-privileges:false"}
        & set(arguments.security_opt),
        "mounts": [
            *arguments.volume,
            *(_mount(text) for text in arguments.mount),
            *(_tmpfs(text) for text in arguments.tmpfs),
        ],
        "extra_hosts": dict(_host(text) for text in arguments.add_host),
        "limits": Limits(
            memory=arguments.memory,
            swap=swap,
            pids=arguments.pids_limit,
            cpus=arguments.cpus,
            cpuset=arguments.cpuset_cpus,
            best_effort=arguments.best_effort,
            rlimits=tuple(_ulimit(text) for text in arguments.ulimit),
        ),
    }
    return {key: value for key, value in found.items() if value is not None}


def _swap(memory: str | None, both: str) -> int:
    from r2d2 import SpecError
    from r2d2.spec import size_in_bytes

    if memory is None:
        raise SpecError("--memory-swap needs --memory")
    return size_in_bytes(both, "--memory-swap") - size_in_bytes(memory, "--memory")


def _host(text: str) -> tuple[str, str]:
    from r2d2 import SpecError

    name, colon, address = text.partition(":")
    if not colon:
        raise SpecError(f"--add-host {text}: not NAME:IP")
    return name, address


def _ulimit(text: str) -> tuple[str, int]:
    from r2d2 import SpecError

    name, _, value = text.partition("=")
    soft, _, hard = value.partition(":")
    if hard and hard != soft:
        raise SpecError(f"--ulimit {text}: soft and hard limit are the same here")
    try:
        return name, -1 if soft == "unlimited" else int(soft)
    except ValueError:
        raise SpecError(f"--ulimit {text}: not NAME=NUMBER") from None


def _tmpfs(text: str) -> Mount:
    from r2d2 import Mount, SpecError

    target, _, options = text.partition(":")
    size = None
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key != "size":
            raise SpecError(f"--tmpfs {text}: size is the only option")
        size = value
    return Mount(None, target, type="tmpfs", size=size)


def _mount(text: str) -> Mount:
    """``--mount``: fields of CSV, as docker reads them."""
    import csv

    from r2d2 import Mount, SpecError

    fields: dict[str, str] = {}
    for field in next(csv.reader([text]), []):
        key, _, value = field.partition("=")
        fields[key] = value
    target = fields.pop("target", None) or fields.pop("dst", None) or fields.pop("destination", None)
    kind = fields.pop("type", "bind")
    if not target:
        raise SpecError(f"--mount {text}: no target")
    readonly = any(fields.pop(key, "false") in {"", "true", "1"} for key in ("readonly", "ro"))
    source = fields.pop("source", None) or fields.pop("src", None)
    lower = tuple(filter(None, fields.pop("lowerdir", "").split(":")))
    mount = Mount(
        source,
        target,
        readonly,
        type=kind,
        recursive=fields.pop("bind-recursive", "enabled") != "disabled",
        size=fields.pop("tmpfs-size", None),
        lower=lower,
        upper=fields.pop("upperdir", None),
        work=fields.pop("workdir", None),
    )
    if fields:
        raise SpecError(f"--mount {text}: {', '.join(sorted(fields))} is not known")
    return mount
