r"""Linux containers as a Python library: rootless, no daemon, nothing else to install.

>>> import r2d2
>>> r2d2.run(["echo", "hello"], capture_output=True, text=True).stdout
'hello\n'

``Container`` is all of these primitives together, and each stands alone:

- ``r2d2.namespace``: a view of its own of one of the kernel's global resources (namespaces(7)):

      user    user and group ids, capabilities
      mount   the mount table
      pid     process ids
      uts     host name and domain name
      ipc     System V IPC, POSIX message queues
      net     network devices, addresses, ports
      cgroup  the root of the control groups
      time    the monotonic and the boot-time clock

- ``r2d2.chroot``: another directory as ``/``, with exactly the files that its programs ask for (chroot(2));
- ``r2d2.overlay``: read-only layers seen through one that takes the writes, like slides laid on each other
  (overlayfs, "overlay2");
- ``r2d2.bridge``: a container in the kernel's own network, for root;
- ``r2d2.slirp``: a way to the world for a network namespace, through ordinary sockets of its user;
- ``r2d2.Network``: containers that reach each other, over links as bad as you like.

``r2d2.doctor()`` tells what this host allows, ``r2d2.drawings`` shows what is there, and ``%load_ext r2d2``
brings containers to Jupyter's cells (`r2d2.jupyter`).
"""

from __future__ import annotations

import sys

if sys.platform != "linux":
    raise ImportError("r2d2 needs Linux: use WSL2, a virtual machine, or a Linux container on this system")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import bridge, chroot, course, drawings, namespace, overlay, slirp
    from .bridge import Bridge
    from .container import Container, run
    from .detached import Detached
    from .diagnosis import doctor
    from .errors import (
        CallError,
        CommandError,
        CommandTimeout,
        ContainerClosed,
        ImageError,
        ImageNotFound,
        NetworkError,
        R2d2Error,
        SetupError,
        SetupNotFoundError,
        SetupPermissionError,
        SpecError,
        UnsupportedError,
    )
    from .image import Image
    from .netspec import Slirp
    from .pool import Pool
    from .process import CompletedProcess, Process
    from .spec import Limits, Mount
    from .switch import Network

__version__ = "0.1.0"

#: Where each public name lives; imported when it is first asked for, so that ``import r2d2`` stays quick.
_HOMES = {
    "Bridge": "bridge",
    "CallError": "errors",
    "CommandError": "errors",
    "CommandTimeout": "errors",
    "CompletedProcess": "process",
    "Container": "container",
    "ContainerClosed": "errors",
    "Detached": "detached",
    "Image": "image",
    "ImageError": "errors",
    "ImageNotFound": "errors",
    "Limits": "spec",
    "Mount": "spec",
    "Network": "switch",
    "NetworkError": "errors",
    "Pool": "pool",
    "Process": "process",
    "R2d2Error": "errors",
    "SetupError": "errors",
    "SetupNotFoundError": "errors",
    "SetupPermissionError": "errors",
    "Slirp": "netspec",
    "SpecError": "errors",
    "UnsupportedError": "errors",
    "bridge": "",
    "chroot": "",
    "course": "",
    "doctor": "diagnosis",
    "drawings": "",
    "namespace": "",
    "overlay": "",
    "run": "container",
    "slirp": "",
}

__all__ = [
    "Bridge",
    "CallError",
    "CommandError",
    "CommandTimeout",
    "CompletedProcess",
    "Container",
    "ContainerClosed",
    "Detached",
    "Image",
    "ImageError",
    "ImageNotFound",
    "Limits",
    "Mount",
    "Network",
    "NetworkError",
    "Pool",
    "Process",
    "R2d2Error",
    "SetupError",
    "SetupNotFoundError",
    "SetupPermissionError",
    "Slirp",
    "SpecError",
    "UnsupportedError",
    "bridge",
    "chroot",
    "course",
    "doctor",
    "drawings",
    "namespace",
    "overlay",
    "run",
    "slirp",
]


def __getattr__(name: str) -> object:
    """Imports a public name from its home (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'r2d2' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"r2d2.{home or name}")
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def load_ipython_extension(ipython: object) -> None:
    """``%load_ext r2d2``: the magics ``%%container``, ``%containers`` and ``%r2d2``."""
    from .jupyter.magics import load

    load(ipython)  # type: ignore[arg-type]


def unload_ipython_extension(ipython: object) -> None:
    """``%unload_ext r2d2``."""
    from .jupyter.magics import unload

    unload(ipython)  # type: ignore[arg-type]


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
