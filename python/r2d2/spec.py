"""What a container is to be: frozen, comparable, picklable data, checked before anything is started.

These are the words of Docker and the OCI; the core gets the same, resolved against the host
(``r2d2.resolve``).
"""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import SpecError
from .image import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .bridge import Bridge
    from .netspec import Slirp
    from .network import Publish

StrPath = str | os.PathLike[str]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def size_in_bytes(value: int | str, what: str) -> int:
    """An amount of memory: an int in bytes, or a string such as ``"64m"`` or ``"1.5g"`` (powers of 1024)."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SpecError(f"{what}={value!r}: an int in bytes or a string such as '64m'")
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise SpecError(f"{what}={value!r}: not an amount of memory such as '64m' or '1.5g'")
    factor = 1024 ** " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * factor)


class Mount(NamedTuple):
    """A mount of a container.

    Args:
        source: path on the host, for ``type="bind"``.
        target: absolute path in the container.
        readonly: refuse writes, on mounts below it too.
        type: ``"bind"``, ``"tmpfs"`` or ``"overlay"``.
        recursive: with the mounts below the source.
        size: of a tmpfs, in bytes or as ``"64m"``.
        lower: layers of an overlay, top first.
        upper, work: its writable layer; without them it is read-only.
        volatile: never sync that layer to disk.
    """

    source: StrPath | None
    target: StrPath
    readonly: bool = False
    type: str = "bind"
    recursive: bool = True
    size: int | str | None = None
    lower: tuple[StrPath, ...] = ()
    upper: StrPath | None = None
    work: StrPath | None = None
    volatile: bool = False

    @classmethod
    def parse(cls, text: str) -> Mount:
        """``SRC:DST[:ro]``, as ``docker run -v`` takes it."""
        parts = text.split(":")
        if len(parts) == 3 and parts[2] in ("ro", "rw"):
            return cls(parts[0], parts[1], parts[2] == "ro")
        if len(parts) == 2:
            return cls(parts[0], parts[1])
        raise SpecError(f"mount {text!r}: not SRC:DST or SRC:DST:ro; use r2d2.Mount for a path with colons")


class Limits(NamedTuple):
    """Limits of a whole container (cgroups(7)).

    Args:
        memory: bytes, or ``"64m"``.
        swap: bytes of swap beyond memory.
        pids: number of processes and threads.
        cpus: share of CPU time; 1.5 is one and a half CPUs.
        cpu_weight: relative weight, 1 to 10000, 100 by default.
        cpuset: CPUs to run on, such as ``"0-1"``.
        best_effort: accept a limit that would not bind here; otherwise it is an ``UnsupportedError``.
        rlimits: per process, by the names of ``resource`` without ``RLIMIT_``: ``{"nofile": 64}``.
    """

    memory: int | str | None = None
    swap: int | str | None = None
    pids: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    best_effort: bool = False
    rlimits: tuple[tuple[str, int], ...] = ()


class ContainerSpec(NamedTuple):
    """Everything that makes a container, filled in by ``Container(**keywords)``; unlike one it pickles."""

    image: Image
    name: str
    hostname: str
    user: str | int | None
    env: tuple[tuple[str, str], ...]
    workdir: str
    network: str
    mounts: tuple[Mount, ...]
    limits: Limits
    readonly: bool
    userns: str
    namespaces: tuple[str, ...]
    cap_add: tuple[str, ...]
    cap_drop: tuple[str, ...]
    no_new_privs: bool
    proc: str
    storage: str
    tmpfs_size: int | None
    upper: str | None
    work: str | None
    clock_offsets: tuple[int, int] | None
    extra_hosts: tuple[tuple[str, str], ...]
    slirp: Slirp | Bridge | None = None
    ports: tuple[Publish, ...] = ()
    resolvers: tuple[str, ...] = ()


_NO_IMAGE = Image("empty", name="none")
_STORAGE = ("auto", "tmpfs", "disk")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_hostname(name: str) -> str:
    """At most 64 bytes (sethostname(2)) of letters, digits, ``-`` and ``.``."""
    if len(os.fsencode(name)) > 64:
        raise SpecError(f"hostname of {len(os.fsencode(name))} bytes: at most 64 (sethostname(2))")
    if not _HOSTNAME.fullmatch(name):
        raise SpecError(f"hostname {name!r}: letters, digits, '-', '_' and '.' only")
    return name


def check_name(name: str) -> str:
    """As Docker's container names."""
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"name {name!r}: letters, digits, '_', '.' and '-', at most 64, a letter or digit first"
        )
    return name


def environment(env: Mapping[str, str] | Iterable[tuple[str, str]] | None) -> tuple[tuple[str, str], ...]:
    """Checked pairs."""
    if env is None:
        return ()
    pairs = env.items() if hasattr(env, "items") else env
    checked = []
    for key, value in pairs:
        if not isinstance(key, str) or not isinstance(value, str):
            raise SpecError(f"env {key!r}: {value!r}: names and values are strings")
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise SpecError(f"env name {key!r}: not empty, no '=', and no zero byte in name or value")
        checked.append((key, value))
    return tuple(checked)


def hosts_of(hosts: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Checked names and addresses for /etc/hosts: one word each, so that none can bring a line of its own."""
    pairs = environment(hosts)
    for name, address in pairs:
        if name.split() != [name] or address.split() != [address] or "#" in name + address:
            raise SpecError(f"extra_hosts {name!r}: {address!r}: a name and an address, without spaces")
    return pairs


def mounts_of(items: Iterable[Any]) -> tuple[Mount, ...]:
    """``Mount`` objects, ``"SRC:DST:ro"`` strings, or tuples of a Mount's fields."""
    if isinstance(items, str):
        raise SpecError(f"mounts={items!r}: a list of mounts, not one string")
    result = []
    for item in items:
        if isinstance(item, Mount):
            mount = item
        elif isinstance(item, str):
            mount = Mount.parse(item)
        elif isinstance(item, tuple | list) and len(item) >= 2:
            mount = Mount(*item)
        else:
            raise SpecError(f"mount {item!r}: a Mount, 'SRC:DST[:ro]' or a tuple (source, target, readonly)")
        if mount.type == "bind" and mount.source is None:
            raise SpecError(f"mount on {os.fspath(mount.target)}: a bind mount needs a source")
        result.append(mount)
    return tuple(result)


def limits_of(value: Limits | Mapping[str, Any] | None) -> Limits:
    """A ``Limits``, or a mapping with its fields."""
    if value is None:
        return Limits()
    if isinstance(value, Limits):
        return value
    try:
        fields = dict(value)
        rlimits = fields.pop("rlimits", ())
        pairs = tuple(rlimits.items()) if hasattr(rlimits, "items") else tuple(rlimits)
        return Limits(**fields, rlimits=pairs)
    except (TypeError, ValueError) as error:
        raise SpecError(f"limits={value!r}: fields are {', '.join(Limits._fields)}") from error


def clock_offsets_of(value: Any) -> tuple[int, int] | None:
    """Checked offsets of the monotonic and the boot-time clock in seconds; one number is for both."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(each, int) and not isinstance(each, bool) for each in pair):
        raise SpecError(f"clock_offsets={value!r}: whole seconds, or a pair: (monotonic, boottime)")
    if not all(-(2**63) <= each < 2**63 for each in pair):
        raise SpecError(f"clock_offsets={value!r}: no clock goes that far (time_namespaces(7))")
    return pair


def namespaces_of(network: str, userns: str, clock: bool) -> tuple[str, ...]:
    """The namespaces of a container."""
    kinds = ["mount", "pid", "uts", "ipc", "cgroup"]
    if userns != "host":
        kinds.insert(0, "user")
    if network != "host":
        kinds.append("net")
    if clock:
        kinds.append("time")
    return tuple(kinds)


#: Types of words that cannot change.
_CONSTANT = frozenset({str, int, bool, type(None)})


def check(*values: Any) -> ContainerSpec:
    """The words of a container, checked; its image, name and network are still to be filled in.

    Takes ``Container``'s keywords, in the order of :func:`_check`. Who starts a thousand containers says the
    same a thousand times: words that cannot change are checked once.
    """
    return _checked(*values) if _CONSTANT.issuperset(map(type, values)) else _check(*values)


def _check(
    hostname: str,
    user: str | int | None,
    env: Mapping[str, str] | Iterable[tuple[str, str]] | None,
    workdir: StrPath,
    network: str,
    mounts: Iterable[Any] | None,
    limits: Limits | Mapping[str, Any] | None,
    readonly: bool,
    userns: str,
    cap_add: Iterable[str] | None,
    cap_drop: Iterable[str] | None,
    no_new_privs: bool,
    proc: str,
    storage: str,
    tmpfs_size: int | str | None,
    upper: StrPath | None,
    work: StrPath | None,
    clock_offsets: Any,
    extra_hosts: Mapping[str, str] | None,
) -> ContainerSpec:
    if storage not in _STORAGE:
        raise SpecError(f"storage={storage!r}: one of {', '.join(map(repr, _STORAGE))}")
    if storage == "disk" and tmpfs_size is not None:
        raise SpecError("tmpfs_size: the upper layer is on disk")
    if (upper is None) != (work is None):
        raise SpecError("upper and work go together: overlayfs needs both, on one file system")
    if not os.fspath(workdir).startswith("/"):
        raise SpecError(f"workdir={os.fspath(workdir)!r}: an absolute path inside the container")
    for what, value in (("cap_add", cap_add), ("cap_drop", cap_drop)):
        if isinstance(value, str):
            raise SpecError(f"{what}={value!r}: a list of capabilities, not one string")
    return ContainerSpec(
        image=_NO_IMAGE,
        name="",
        hostname=check_hostname(hostname),
        user=user,
        env=environment(env),
        workdir=os.fspath(workdir),
        network=network,
        mounts=mounts_of(mounts or ()),
        limits=limits_of(limits),
        readonly=readonly,
        userns=userns,
        namespaces=namespaces_of(network, userns, clock_offsets is not None),
        cap_add=tuple(cap_add or ()),
        cap_drop=tuple(cap_drop or ()),
        no_new_privs=no_new_privs,
        proc=proc,
        storage=storage,
        tmpfs_size=None if tmpfs_size is None else size_in_bytes(tmpfs_size, "tmpfs_size"),
        upper=None if upper is None else os.fspath(upper),
        work=None if work is None else os.fspath(work),
        clock_offsets=clock_offsets_of(clock_offsets),
        extra_hosts=hosts_of(extra_hosts),
    )


_checked = functools.lru_cache(maxsize=64, typed=True)(_check)
