"""``kernel``: Jupyter kernels that run in a container."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from . import options

if TYPE_CHECKING:
    from .parser import Verbs


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verbs.add(
        "kernel",
        kernel,
        "install a Jupyter kernel that runs in a container",
        "install [OPTIONS] | list [--json] | remove NAME",
        epilog="Takes the options of r2d2 run for the container; --name is the kernel's. Without\n"
        "--user, --prefix and --sys-prefix it is for all users.",
    )
    options.add_container(parser, command=False)
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", help="install for you")
    place.add_argument("--prefix", metavar="DIR", help="install below DIR")
    place.add_argument(
        "--sys-prefix",
        action="store_const",
        const=sys.prefix,
        dest="prefix",
        help="install into this environment",
    )
    parser.add_argument("--python", metavar="PROGRAM", help="the kernel's Python inside, with ipykernel")
    parser.add_argument("--display-name", metavar="TEXT", help="what notebooks call it")
    parser.add_argument("-e", "--env", metavar="K[=V]", action="append", default=[], help="set a variable")
    parser.add_argument("--json", action="store_true", help="with list: as JSON")
    parser.add_argument("action", choices=("install", "list", "remove"), metavar="ACTION", help="what to do")
    parser.add_argument("kernel", nargs="?", metavar="NAME", help="which kernel to remove")


def kernel(arguments: argparse.Namespace) -> int:
    """``r2d2 kernel``."""
    from r2d2 import SpecError

    if (arguments.kernel is None) == (arguments.action == "remove"):
        raise SpecError(
            f"kernel {arguments.action}: it takes {'a' if arguments.kernel is None else 'no'} NAME"
        )
    return {"install": _install, "list": _list, "remove": _remove}[arguments.action](arguments)


def _install(arguments: argparse.Namespace) -> int:
    from r2d2.jupyter import kernelspec

    directory = kernelspec.install(
        _stored(arguments),
        name=arguments.name or "r2d2",
        python=arguments.python,
        display_name=arguments.display_name,
        user=arguments.user,
        prefix=arguments.prefix,
    )
    print(directory)
    return 0


def _stored(arguments: argparse.Namespace) -> dict[str, Any]:
    """The container's keywords, as a kernelspec can hold them: those that say something."""
    from r2d2 import SpecError
    from r2d2.spec import Mount

    # --user is Jupyter's here, and the other options of a program have no meaning.
    given = argparse.Namespace(**{**vars(arguments), "user": None, "workdir": None, "env_file": []})
    found = options.keywords(given)
    found["image"] = arguments.image or "host"
    if os.sep in found["image"]:
        found["image"] = os.path.abspath(found["image"])
    limits = {
        key: value for key, value in found.pop("limits")._asdict().items() if value not in (None, False, ())
    }
    found["limits"] = limits
    found.pop("name", None)
    for mount in found["mounts"]:
        if isinstance(mount, Mount):
            raise SpecError("kernel install: a kernelspec holds -v SRC:DST, no --mount or --tmpfs")
    found["mounts"] = [_absolute(mount) for mount in found["mounts"]]
    return {
        key: value for key, value in found.items() if value not in ([], {}, False) or key == "no_new_privs"
    }


def _absolute(volume: str) -> str:
    """The server may start the kernel from anywhere."""
    source, colon, rest = volume.partition(":")
    return f"{os.path.abspath(os.path.expanduser(source))}{colon}{rest}"


def _list(arguments: argparse.Namespace) -> int:
    from r2d2.jupyter import kernelspec

    found = kernelspec.installed()
    if arguments.json:
        import json

        print(json.dumps([{"name": name, **each} for name, each in found.items()], indent=2))
        return 0
    wide = max([len("NAME"), *map(len, found)])
    print(f"{'NAME':<{wide}}  IMAGE     DIRECTORY")
    for name, each in found.items():
        print(f"{name:<{wide}}  {each['options'].get('image', 'host')!s:<8}  {each['directory']}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from r2d2.jupyter import kernelspec

    print(kernelspec.remove(arguments.kernel))
    return 0
