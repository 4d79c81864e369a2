"""The primitives one by one: ``unshare``, ``overlay``, ``rootfs``."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import command, status

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from r2d2 import Process
    from r2d2.chroot import Installed
    from r2d2.overlay import Overlay

    from .parser import Verbs

_KINDS = (
    ("-U", "user"), ("-m", "mount"), ("-p", "pid"), ("-u", "uts"), ("-i", "ipc"), ("-n", "net"),
    ("-C", "cgroup"), ("-T", "time"),
)  # fmt: skip


def add(verbs: Verbs) -> None:
    """Adds the verbs."""
    parser = verbs.add(
        "unshare",
        unshare,
        "run a command in new namespaces, as unshare(1)",
        "[OPTIONS] [COMMAND] [ARG...]",
        epilog="An ordinary user gets a user namespace with every other one. Without COMMAND: $SHELL.",
    )
    for short, kind in _KINDS:
        parser.add_argument(short, f"--{kind}", action="store_true", help=f"a new {kind} namespace")
    parser.add_argument("-f", "--fork", action="store_true", help="with --pid: the command becomes PID 1")
    parser.add_argument("--mount-proc", action="store_true", help="mount a new /proc (with --pid --fork)")
    parser.add_argument("-r", "--map-root-user", action="store_true", help="be root inside (implies --user)")
    parser.add_argument("-R", "--root", metavar="DIR", help="chroot into this directory")
    parser.add_argument("-w", "--wd", metavar="DIR", help="working directory")
    parser.add_argument("words", nargs="...", metavar="COMMAND", help="the command and its arguments")

    parser = verbs.add(
        "overlay",
        overlay,
        "run a command where an overlay is mounted, as mount -t overlay",
        "-o lowerdir=A[:B…][,upperdir=U[,workdir=W]] MERGED [COMMAND] [ARG...]",
        epilog="Nobody else sees the mount, and it goes with the command; what was written stays in upperdir."
        "\n"
        "A backslash before a colon or a comma makes it part of a path. Without COMMAND: $SHELL.",
    )
    parser.add_argument(
        "-o", "--options", metavar="OPTIONS", action="append", required=True, help="as of mount(8)"
    )
    parser.add_argument("merged", metavar="MERGED", help="the directory to mount on")
    parser.add_argument("words", nargs="...", metavar="COMMAND", help="the command and its arguments")

    parser = verbs.add(
        "rootfs",
        rootfs,
        "copy programs and exactly what they need into a directory",
        "[--busybox] [--etc] [--json] DIR [PROGRAM...]",
    )
    parser.add_argument(
        "--busybox", action="store_true", help="also busybox and links for all of its applets"
    )
    parser.add_argument("--etc", action="store_true", help="also a minimal /etc")
    parser.add_argument("--json", action="store_true", help="the files as a JSON array")
    parser.add_argument("directory", metavar="DIR", help="the directory; made if it is missing")
    parser.add_argument("programs", metavar="PROGRAM", nargs="*", help="names or paths, also of other files")


def _shell() -> list[str]:
    return [os.environ.get("SHELL") or "/bin/sh"]


@contextmanager
def _patient(process: Process) -> Iterator[None]:
    """Hands SIGTERM and SIGHUP on.

    The keys of the terminal reach the program by themselves, for it shares our process group.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, lambda number, frame: process.send_signal(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def unshare(arguments: argparse.Namespace) -> int:
    """``r2d2 unshare``."""
    from r2d2 import namespace

    words = command(arguments.words) or _shell()
    kinds = {kind: getattr(arguments, kind) for _, kind in _KINDS}
    # None: for everybody but root.
    kinds["user"] = kinds["user"] or arguments.map_root_user or None
    with (
        namespace.popen(
            words,
            **kinds,
            fork=arguments.fork,
            mount_proc=arguments.mount_proc,
            root=arguments.root,
            cwd=arguments.wd,
        ) as process,
        _patient(process),
    ):
        return status(process.wait())


def _mount_options(texts: list[str]) -> dict[str, str]:
    """``key=value`` by commas; a backslash protects the next character."""
    import re

    fields: dict[str, str] = {}
    for text in texts:
        for field in re.findall(r"(?:[^,\\]|\\.)+", text, re.DOTALL):
            key, _, value = field.partition("=")
            fields[key] = value
    return fields


def _unescape(text: str) -> str:
    import re

    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def overlay(arguments: argparse.Namespace) -> int:
    """``r2d2 overlay``."""
    import re

    from r2d2 import SpecError
    from r2d2.overlay import Overlay

    fields = _mount_options(arguments.options)
    lower = [
        _unescape(each) for each in re.findall(r"(?:[^:\\]|\\.)+", fields.pop("lowerdir", ""), re.DOTALL)
    ]
    upper, work = (fields.pop(key, None) for key in ("upperdir", "workdir"))
    volatile = fields.pop("volatile", None) is not None
    for silent in ("userxattr", "rw"):
        fields.pop(silent, None)
    if fields:
        raise SpecError(f"-o {', '.join(sorted(fields))}: lowerdir, upperdir, workdir and volatile are known")
    if not lower:
        raise SpecError("-o lowerdir=…: an overlay needs a lower layer")
    mounted = Overlay(
        lower,
        None if upper is None else _unescape(upper),
        None if work is None else _unescape(work),
        arguments.merged,
        volatile=volatile,
    )
    from .foreground import attend, forwarding

    with mounted, forwarding() as forward:
        process = _at_terminal(mounted, command(arguments.words) or _shell())
        forward.target = process.send_signal
        with process:
            return attend(process, interactive=True)


def _at_terminal(mounted: Overlay, words: list[str]) -> Process:
    """A terminal of its own where we have one: the program leads another session, and cannot have ours."""
    if not os.isatty(0):
        return mounted.popen(words)
    master, slave = os.openpty()
    try:
        process = mounted.popen(words, stdin=slave, stdout=slave, stderr=slave, tty=True)
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    process.tty = os.fdopen(master, "r+b", buffering=0)
    return process


def rootfs(arguments: argparse.Namespace) -> int:
    """``r2d2 rootfs``."""
    from r2d2 import SpecError
    from r2d2.chroot import Rootfs

    if not arguments.programs and not arguments.busybox and not arguments.etc:
        raise SpecError("rootfs: nothing to put there").with_hint("name programs, or use --busybox or --etc")
    root = Rootfs(arguments.directory)
    files: dict[str, Installed] = {}
    if arguments.programs:
        files.update((file.path, file) for file in root.install(arguments.programs))
    if arguments.busybox:
        files.update((file.path, file) for file in root.install_busybox())
    if arguments.etc:
        files.update((file.path, file) for file in root.minimal_etc())
    if arguments.json:
        import dataclasses
        import json

        print(json.dumps([dataclasses.asdict(file) for file in files.values()], indent=2))
        return 0
    for file in files.values():
        print(file)
    return 0
