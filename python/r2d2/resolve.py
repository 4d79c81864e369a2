"""A container's words for the core: resolved against this host and this user.

The other half of ``r2d2.spec``, which checks the words and asks the host nothing.
"""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from . import _core
from .errors import SpecError
from .spec import Limits, size_in_bytes

if TYPE_CHECKING:
    from .spec import ContainerSpec, Mount, StrPath

_UNLIMITED = Limits()


class CoreMount(NamedTuple):
    """A mount as the core takes it: bytes, and a size in bytes."""

    kind: str
    source: bytes | None
    target: bytes
    readonly: bool
    recursive: bool
    size: int | None
    keep: list[bytes]
    lower: list[bytes]
    upper: bytes | None
    work: bytes | None
    volatile: bool


class _CoreLimits(NamedTuple):
    memory: int | None
    swap: int | None
    pids: int | None
    cpus: float | None
    cpu_weight: int | None
    cpuset: str | None
    best_effort: bool


def id_map(userns: str) -> str | None:
    """What ``userns="auto"`` is for this user."""
    if userns == "host":
        return None
    if userns == "auto":
        return "identity" if os.geteuid() == 0 else "single"
    return userns


@functools.cache
def needs_disk() -> bool:
    """Whether this kernel's tmpfs carries no user xattrs (before 6.6).

    Without them an overlay in a user namespace cannot replace a directory of a lower layer.
    """
    numbers = re.findall(r"\d+", os.uname().release)[:2]
    return [int(number) for number in numbers] < [6, 6]


def _upper(spec: ContainerSpec) -> tuple[bytes | None, bytes | None]:
    """The upper layer and its work directory; neither: a tmpfs; the first alone: one that vanishes."""
    if spec.upper is not None and spec.work is not None:
        return _absolute(spec.upper), _absolute(spec.work)
    layered = spec.image.kind in ("layers", "host")
    if spec.storage == "auto":
        disk = layered and "user" in spec.namespaces and needs_disk()
    else:
        disk = spec.storage == "disk"
    if not disk:
        return None, None
    from .cache import upper_dir

    return os.fsencode(upper_dir()), None


def _absolute(path: StrPath) -> bytes:
    return os.fsencode(os.path.abspath(os.path.expanduser(path)))


def _etc(spec: ContainerSpec) -> list[tuple[str, bytes]]:
    """The files of /etc that every container has of its own."""
    hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    if spec.hostname:
        hosts.append(f"127.0.1.1\t{spec.hostname}")
    hosts += [f"{address}\t{name}" for name, address in spec.extra_hosts]
    files = [("hosts", "\n".join(hosts).encode() + b"\n")]
    if spec.hostname:
        files.append(("hostname", spec.hostname.encode() + b"\n"))
    if spec.network == "host":
        try:
            with open("/etc/resolv.conf", "rb") as file:
                files.append(("resolv.conf", file.read()))
        except OSError:
            pass
    if spec.slirp is not None:
        from .network import resolv_conf

        files.append(("resolv.conf", resolv_conf(spec.slirp)))
    if spec.resolvers:
        files.append(("resolv.conf", "".join(f"nameserver {r}\n" for r in spec.resolvers).encode()))
    return files


_proc_refused = False


def _proc(spec: ContainerSpec) -> str:
    """What ``proc="auto"`` is for this process: what worked last."""
    if spec.proc != "auto":
        return spec.proc
    return "bind" if _proc_refused and "user" in spec.namespaces else "mount"


def fall_back(spec: ContainerSpec, error: OSError, step: str | None) -> bool:
    """Whether to start once more with the host's /proc, because the kernel refuses a new one; remembers that.

    It refuses where mounts cover parts of the outer /proc, as in most containers (mount_namespaces(7)). Not
    without a user namespace: there, ``/proc/1/root`` of the host's would lead out.
    """
    global _proc_refused  # noqa: PLW0603 - a fact about this process
    import errno

    refused = error.errno == errno.EPERM and ", mount proc on " in (step or "")
    if spec.proc != "auto" or "user" not in spec.namespaces or not refused:
        return False
    _proc_refused = True
    return True


def resolve(spec: ContainerSpec, group: str) -> _core.Spec:
    """The same for the core: paths made absolute, sizes in bytes, names looked up on this host.

    Args:
        spec: what the user asked for.
        group: the name of its control groups, which nobody else has.

    Raises:
        SpecError: an argument that can never work.
        UnsupportedError: something that this host cannot do, such as a limit that would not bind.
    """
    upper, work = _upper(spec)
    idmap, proc = id_map(spec.userns), _proc(spec)
    if upper is None and not spec.mounts and spec.network == "none" and spec.limits == _UNLIMITED:
        words = spec._replace(name="", user=None, env=(), workdir="")
        return _alike(words, idmap, proc).named(group)
    return _resolve(spec, group, upper, work, idmap, proc)


@functools.lru_cache(maxsize=64)
def _alike(words: ContainerSpec, idmap: str | None, proc: str) -> _core.Spec:
    """What containers share that are described by the same words alone: nothing of it is looked up anew."""
    return _resolve(words, "alike", None, None, idmap, proc)


def _resolve(
    spec: ContainerSpec, group: str, upper: bytes | None, work: bytes | None, idmap: str | None, proc: str
) -> _core.Spec:
    limits = spec.limits
    rlimits = []
    for name, value in limits.rlimits:
        import resource

        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None or not isinstance(value, int):
            raise SpecError(f"rlimit {name!r}={value!r}: a name of getrlimit(2) without RLIMIT_, and an int")
        rlimits.append((number, value if value >= 0 else 2**64 - 1))
    return _core.Spec(
        name=group,
        namespaces=list(spec.namespaces),
        idmap=idmap,
        root=spec.image.kind,
        layers=[os.fsencode(layer) for layer in spec.image.layers],
        upper=upper,
        work=work,
        tmpfs_size=spec.tmpfs_size,
        readonly=spec.readonly,
        proc=proc,
        system=True,
        masked=True,
        hostname=spec.hostname.encode() if spec.hostname else None,
        etc=_etc(spec),
        mounts=[core_mount(mount) for mount in spec.mounts],
        rlimits=rlimits,
        cap_add=list(spec.cap_add),
        cap_drop=list(spec.cap_drop),
        no_new_privs=spec.no_new_privs,
        clock_offsets=spec.clock_offsets,
        limits=_CoreLimits(
            None if limits.memory is None else size_in_bytes(limits.memory, "memory"),
            None if limits.swap is None else size_in_bytes(limits.swap, "swap"),
            limits.pids,
            limits.cpus,
            limits.cpu_weight,
            limits.cpuset,
            limits.best_effort,
        ),
    )


def core_mount(mount: Mount) -> CoreMount:
    """A mount as the core takes it."""
    return CoreMount(
        kind=mount.type,
        source=None if mount.source is None else _absolute(mount.source),
        target=os.fsencode(mount.target),
        readonly=mount.readonly,
        recursive=mount.recursive,
        size=None if mount.size is None else size_in_bytes(mount.size, "size"),
        keep=[],
        lower=[_absolute(layer) for layer in mount.lower],
        upper=None if mount.upper is None else _absolute(mount.upper),
        work=None if mount.work is None else _absolute(mount.work),
        volatile=mount.volatile,
    )
