"""Users of a container: who ``user="…"`` is.

Names are looked up in the container's own /etc/passwd and /etc/group, read through its root directory.
Their content is the container's and may be hostile: lines that make no sense are passed over, and nothing
else of the container is asked.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from .errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .container import Container

__all__ = ["Identity", "identity", "lookup"]

#: More than the largest directory services export.
_LIMIT = 16 << 20
_LAST = 2**32 - 2


class Identity(NamedTuple):
    """Who a program runs as.

    Attributes:
        uid, gid: inside the container.
        groups: supplementary groups, as initgroups(3) sets them.
        home: home directory; ``"/"`` where /etc/passwd knows none, as Docker has it.
        name: login name, or None.
    """

    uid: int
    gid: int
    groups: list[int]
    home: str
    name: str | None


def _lines(container: Container, path: bytes) -> Iterator[list[bytes]]:
    """The fields of each line; nothing where the file is absent, no file, or unreadably large."""
    try:
        descriptor = container._files().open(path, os.O_RDONLY)
    except OSError:
        return
    with open(descriptor, "rb") as file:
        text = file.read(_LIMIT + 1)
    if len(text) <= _LIMIT:
        for line in text.split(b"\n"):
            yield line.split(b":")


def _number(field: bytes | str) -> int | None:
    """A decimal id, and nothing that merely looks like one to ``int()``."""
    if not field or len(field) > 10 or not field.isascii() or not field.isdigit():
        return None
    value = int(field)
    return value if value <= _LAST else None


class _User(NamedTuple):
    name: bytes
    uid: int
    gid: int
    home: bytes


def _users(container: Container) -> Iterator[_User]:
    for fields in _lines(container, b"/etc/passwd"):
        if len(fields) >= 4 and fields[0]:
            uid, gid = _number(fields[2]), _number(fields[3])
            if uid is not None and gid is not None:
                yield _User(fields[0], uid, gid, fields[5] if len(fields) > 5 else b"")


def _groups(container: Container) -> Iterator[tuple[bytes, int, list[bytes]]]:
    for fields in _lines(container, b"/etc/group"):
        if len(fields) >= 3 and fields[0] and (gid := _number(fields[2])) is not None:
            yield fields[0], gid, fields[3].split(b",") if len(fields) > 3 else []


def lookup(container: Container, user: str | int) -> Identity:
    """Who ``user`` is, whether or not that id exists in the container's user namespace.

    The rules are Docker's: a name, or a number that /etc/passwd need not know (its group is 0 then); with
    ``:group`` (name or number) that group alone; without, also the groups of /etc/group that list the user.

    Args:
        user: ``"name"``, ``"uid"``, ``"name:group"``, ``"uid:gid"`` or an int.

    Raises:
        SpecError: there is no such name, or the number is none.
    """
    if isinstance(user, bool) or not isinstance(user, str | int):
        raise SpecError(f"user={user!r}: a name, 'uid', 'name:group', 'uid:gid' or an int")
    who, colon, group = str(user).partition(":")
    if not who or (colon and not group):
        raise SpecError(f"user={user!r}: a name, 'uid', 'name:group', 'uid:gid' or an int")
    name, uid = os.fsencode(who), _number(who)
    if uid is None and who.lstrip("-").isdigit():
        raise SpecError(f"user={user!r}: ids are 0 to {_LAST}")
    entry = None if isinstance(user, int) else next((u for u in _users(container) if u.name == name), None)
    if entry is None and uid is not None:
        entry = next((u for u in _users(container) if u.uid == uid), None)
    if entry is not None:
        uid, home, login = entry.uid, entry.home or b"/", entry.name
    else:
        home, login = b"/", b""
    if uid is None:
        raise SpecError(f"user={user!r}: the image's /etc/passwd has no {who!r}").with_hint(
            "use a number, such as user=1000, or make the user in the image"
        )
    if colon:
        gid = _group(container, group, user)
        supplementary: list[int] = []
    elif entry is not None:
        gid = entry.gid
        members = [number for _, number, users in _groups(container) if entry.name in users]
        supplementary = list(dict.fromkeys([gid, *members]))
    else:
        gid, supplementary = 0, []
    return Identity(uid, gid, supplementary, os.fsdecode(home), os.fsdecode(login) or None)


def _group(container: Container, group: str, user: str | int) -> int:
    name, number = os.fsencode(group), _number(group)
    for found, gid, _ in _groups(container):
        if found == name:
            return gid
    if number is None:
        raise SpecError(f"user={user!r}: the image's /etc/group has no {group!r}").with_hint("use a number")
    return number


def resolve(container: Container, user: str | int) -> Identity:
    """As :func:`lookup`, for this container's user namespace.

    Raises:
        SpecError: there is no such name.
        UnsupportedError: the id does not exist in the user namespace; the hint says what would change that.
    """
    who = lookup(container, user)
    spec = container._resolve()
    for what, value, exists in (
        ("user", who.uid, spec.has_uid(who.uid)),
        ("group", who.gid, spec.has_gid(who.gid)),
    ):
        if not exists:
            raise _unmapped(container, user, what, value)
    users, groups = spec.idmap()
    single = bool(users) and sum(count for _, _, count in groups) == 1
    # With a single id setgroups(2) is denied (user_namespaces(7)), and no other group exists anyway.
    supplementary = [] if single else [gid for gid in who.groups if spec.has_gid(gid)]
    return who._replace(groups=supplementary)


def _unmapped(container: Container, user: str | int, what: str, value: int) -> UnsupportedError:
    import errno

    users, groups = container._resolve().idmap()
    ranges = users if what == "user" else groups
    mapped = ", ".join(
        str(first) if count == 1 else f"{first} to {first + count - 1}" for first, _, count in ranges
    )
    message = (
        f"user={user!r}: {what} id {value} does not exist in this container: its user namespace has {mapped} "
        f"only (userns={container.spec.userns!r})"
    )
    error = UnsupportedError(errno.EINVAL, message)
    error.args = (message,)
    error.with_hint(
        "an ordinary user may map its own id only, and that is root inside: leave user out, or use "
        "userns='subuid' with ranges for you in /etc/subuid and /etc/subgid (usermod --add-subuids, "
        "--add-subgids) and the package uidmap installed"
        if sum(count for _, _, count in ranges) == 1
        else "use an id of these, or have the ranges in /etc/subuid and /etc/subgid made larger"
    )
    return error


def identity(container: Container, user: str | int) -> tuple[int, int, list[int]]:
    """``(uid, gid, supplementary groups)`` of ``user`` inside; see :func:`resolve`."""
    who = resolve(container, user)
    return who.uid, who.gid, who.groups
