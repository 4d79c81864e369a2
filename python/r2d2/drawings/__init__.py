"""Drawings of what is there: SVG from the live state, and the same in words.

>>> with r2d2.Container("host") as c:                       # doctest: +SKIP
...     r2d2.drawings.namespaces(c).save("namespaces.svg")

In Jupyter a `Drawing` that a cell ends in is shown; ``print`` shows its text. A drawing is of the moment when
it was made, and two of the same state are equal. Names that a container chose (of files, of processes) are
drawn as text and can be nothing else.

| file | draws |
| --- | --- |
| ``sides`` | namespaces, id maps |
| ``trees`` | processes, mounts |
| ``slides`` | overlays |
| ``route`` | the way of a packet |
| ``wiring`` | networks of containers |
| ``timeline`` | the steps of a start |
| ``gauges`` | control groups |
| ``canvas``, ``facts`` | what they draw with, and what they look at |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .canvas import Drawing

if TYPE_CHECKING:
    from r2d2.container import Container
    from r2d2.detached import Detached
    from r2d2.explain import Explanation
    from r2d2.overlay import Overlay
    from r2d2.process import Process
    from r2d2.slirp import Network
    from r2d2.switch import Network as Switched

__all__ = [
    "Drawing",
    "cgroup",
    "id_maps",
    "mounts",
    "namespaces",
    "network",
    "overlay",
    "packet",
    "processes",
    "steps",
]


def namespaces(*targets: int | Container | Detached | Overlay | Process) -> Drawing:
    """This process and others side by side: each namespace's inode, what is shared and what is own.

    Source: namespaces(7).

    Args:
        targets: containers, overlays, processes or pids, at most five.

    Raises:
        SpecError: too many, or something else.
        ContainerClosed: one does not run.
        SetupNotFoundError: there is no such process.
        SetupPermissionError: it belongs to somebody else.
    """
    from .sides import namespaces as draw

    return draw(targets)


def processes(target: int | Container | Detached | Overlay) -> Drawing:
    """The process tree seen from both sides: pid on the host, pid inside.

    Source: pid_namespaces(7), ``NSpid`` of proc_pid_status(5).

    Args:
        target: a container, or a process with all its descendants.

    Raises:
        As `namespaces`.
    """
    from .trees import processes as draw

    return draw(target)


def id_maps(target: int | Container | Detached | Overlay | Process) -> Drawing:
    """Which user and group ids inside are which ids outside.

    Source: user_namespaces(7).

    Raises:
        As `namespaces`.
    """
    from .sides import id_maps as draw

    return draw(target)


def mounts(target: int | Container | Detached | Overlay | Process) -> Drawing:
    """The mount tree: where, of what type, whether it takes writes, and what is seen there.

    Source: proc_pid_mountinfo(5).

    Raises:
        As `namespaces`.
    """
    from .trees import mounts as draw

    return draw(target)


def overlay(target: Container | Overlay) -> Drawing:
    """The layers as slides on each other: what was copied up, added, hidden by a whiteout.

    Made from ``target.diff()``.

    Raises:
        SpecError: it has no upper layer, or is something else.
        And what its ``diff`` raises.
    """
    from .slides import overlay as draw

    return draw(target)


def packet(target: Container | Network, destination: str = "192.0.2.1:80") -> Drawing:
    """The way of a packet: the program, the namespace's own stack, the interface, the engine, the host.

    Args:
        target: a running container, or a network that ``slirp.attach`` made.
        destination: ``ADDRESS``, ``ADDRESS:PORT``, ``[ADDRESS6]:PORT`` or ``NAME:PORT``. Nothing
            is sent there.

    Raises:
        SpecError: no such destination can be, or it is something else.
        ContainerClosed: it does not run.
    """
    from .route import packet as draw

    return draw(target, destination)


def network(*networks: Switched, counters: bool = False) -> Drawing:
    """Networks of containers: members and addresses, the gateway, what links do to frames, what is cut.

    Args:
        networks: one or several ``r2d2.Network``; containers that are in several are joined by a line.
        counters: what passed over each link so far, and what was dropped.

    Raises:
        SpecError: none is given, one twice, or something else.
        ContainerClosed: one does not run.
    """
    from .wiring import network as draw

    return draw(networks, counters)


def steps(target: Container | Overlay | Explanation) -> Drawing:
    """The steps of a start, with the time that each took if it was started.

    Of a long list, neighbours that build one thing are drawn as one row; the text has them all.

    Raises:
        What ``explain()`` raises.
    """
    from .timeline import steps as draw

    return draw(target)


def cgroup(target: Container) -> Drawing:
    """What a container uses, and its limits: memory, processes, CPU time; what is not counted says so.

    Source: cgroups(7).

    Raises:
        ContainerClosed: it does not run.
    """
    from .gauges import cgroup as draw

    return draw(target)
