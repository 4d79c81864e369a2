"""What dpkg knows: packages, what they need, and how versions compare (deb-control(5), deb-version(7)).

The database is read as text, from /var/lib/dpkg; dpkg itself is not needed.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from .errors import ImageError, ImageNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

DATABASE = "/var/lib/dpkg"
_RELATION = re.compile(
    r"(?P<name>[a-zA-Z0-9][a-zA-Z0-9+.-]*)(?::(?P<arch>[a-z0-9-]+))?"
    r"\s*(?:\(\s*(?P<sign><<|<=|=|>=|>>|<|>)\s*(?P<version>[^)\s]+)\s*\))?\s*(?:\[[^\]]*\])?\s*"
)


class Relation(NamedTuple):
    """One alternative of a dependency: ``name:arch (sign version)``."""

    name: str
    arch: str | None
    sign: str | None
    version: str | None

    def __str__(self) -> str:
        where = f":{self.arch}" if self.arch else ""
        return f"{self.name}{where}" + (f" ({self.sign} {self.version})" if self.sign else "")


class Package(NamedTuple):
    """A package that is installed, or in a .deb file.

    Attributes:
        name, version, arch: as in its control file.
        essential: whether others may rely on it without saying so.
        needs: for each dependency, its alternatives.
        provides: the virtual packages that it is.
        deb: its .deb file; None: it is installed.
    """

    name: str
    version: str
    arch: str
    essential: bool
    needs: tuple[tuple[Relation, ...], ...]
    provides: tuple[Relation, ...]
    deb: str | None = None


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """The stanzas of a control file; names of fields in lower case."""
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.split("\n"), ""]:
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] += "\n" + line.strip()
        elif ":" in line:
            last, _, value = line.partition(":")
            last = last.lower()
            fields[last] = value.strip()


def relations(text: str) -> tuple[tuple[Relation, ...], ...]:
    """A field such as Depends.

    Raises:
        ImageError: it is malformed.
    """
    found = []
    for group in filter(str.strip, text.split(",")):
        alternatives = []
        for each in group.split("|"):
            match = _RELATION.fullmatch(each.strip())
            if match is None:
                raise ImageError(f"dependency {each.strip()!r}: malformed")
            arch = None if match["arch"] in ("any", "native") else match["arch"]
            sign = {"<": "<=", ">": ">="}.get(match["sign"] or "", match["sign"])  # deb-control(5)
            alternatives.append(Relation(match["name"].lower(), arch, sign, match["version"]))
        found.append(tuple(alternatives))
    return tuple(found)


def package(fields: Mapping[str, str], deb: str | None = None) -> Package:
    """One stanza.

    Raises:
        ImageError: it lacks its name or version, or its relations are malformed.
    """
    for name in ("package", "version", "architecture"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+.:~-]*", fields.get(name, "")):
            raise ImageError(f"{deb or DATABASE}: no usable {name.capitalize()} field")
    return Package(
        fields["package"].lower(),
        fields["version"],
        fields["architecture"],
        fields.get("essential") == "yes",
        relations(fields.get("pre-depends", "")) + relations(fields.get("depends", "")),
        tuple(relation for group in relations(fields.get("provides", "")) for relation in group),
        deb,
    )


def installed(database: str | None = None) -> list[Package]:
    """The packages whose files are there; none where dpkg is not used."""
    try:
        with open(os.path.join(database or DATABASE, "status"), encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return []
    states = ("installed", "triggers-awaited", "triggers-pending")
    return [
        package(each)
        for each in paragraphs(text)
        if each.get("status", "").split()[-1:] and each["status"].split()[-1] in states
    ]


# Versions


def compare(one: str, other: str) -> int:
    """-1, 0 or 1: the order of deb-version(7)."""
    (first_epoch, first), (second_epoch, second) = _epoch(one), _epoch(other)
    if first_epoch != second_epoch:
        return -1 if first_epoch < second_epoch else 1
    for left, right in zip(_revision(first), _revision(second), strict=True):
        if _key(left) != _key(right):
            return -1 if _key(left) < _key(right) else 1
    return 0


def _epoch(version: str) -> tuple[int, str]:
    epoch, colon, rest = version.partition(":")
    return (int(epoch), rest) if colon and epoch.isdigit() else (0, version)


def _revision(version: str) -> tuple[str, str]:
    upstream, dash, revision = version.rpartition("-")
    return (upstream, revision) if dash else (version, "0")


@functools.cache
def _key(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Parts without digits, by letters before all else and ``~`` before even the end; and numbers."""
    return tuple(
        (
            (*((-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256) for c in match[1]), 0),
            int(match[2] or 0),
        )
        for match in re.finditer(r"(\D*)(\d*)", text)
    )


def _fits(version: str | None, wanted: Relation) -> bool:
    if wanted.sign is None or wanted.version is None:
        return True
    if version is None:
        return False
    order = compare(version, wanted.version)
    return {"<<": order < 0, "<=": order <= 0, "=": order == 0, ">=": order >= 0, ">>": order > 0}[
        wanted.sign
    ]


# What a set of packages needs


class Known:
    """The packages to choose from: those of .deb files before those that are installed."""

    def __init__(self, packages: Iterable[Package]) -> None:
        self._named: dict[str, list[Package]] = defaultdict(list)
        self._virtual: dict[str, list[tuple[Package, str | None]]] = defaultdict(list)
        every = sorted(packages, key=lambda each: each.deb is None)
        self.packages = every
        native = [each.arch for each in every if each.name == "dpkg" and each.deb is None]
        self.native = native[0] if native else next((e.arch for e in every if e.arch != "all"), "all")
        for each in every:
            self._named[each.name].append(each)
            for relation in each.provides:
                self._virtual[relation.name].append((each, relation.version))

    def find(self, wanted: Relation) -> Package | None:
        """A package that satisfies it; of this machine's architecture first."""
        found = [each for each in self._named.get(wanted.name, ()) if _fits(each.version, wanted)]
        if (given := self._given(wanted.name)) is not None:
            found = [each for each in found if each is given]  # it replaces the one that is installed
        found += [each for each, version in self._virtual.get(wanted.name, ()) if _fits(version, wanted)]
        if wanted.arch is not None:
            found = [each for each in found if each.arch == wanted.arch]
        found.sort(key=lambda each: each.arch not in (self.native, "all"))
        return found[0] if found else None

    def _given(self, name: str) -> Package | None:
        return next((each for each in self._named.get(name, ()) if each.deb is not None), None)

    def named(self, name: str) -> Package:
        """The package that a caller named.

        Raises:
            ImageNotFound: there is none.
        """
        match = _RELATION.fullmatch(name.strip())
        found = None
        if match is not None:
            found = self.find(Relation(match["name"], match["arch"], match["sign"], match["version"]))
        if found is None:
            plain = name.partition(":")[0].strip()
            near = difflib.get_close_matches(plain, [*self._named, *self._virtual], 3, 0.6)
            also = f"; there is {', '.join(near)}" if near else ""
            raise ImageNotFound(f"package {name!r}: it is not installed{also}").with_hint(
                f"`apt-get download {plain}` fetches its .deb file, whose path may stand for the name"
            )
        return found

    def closure(self, wanted: Iterable[Package]) -> list[Package]:
        """These and all that they depend on, each once, what is needed before what needs it if it can be.

        Raises:
            ImageNotFound: a dependency is neither installed nor given; all that are missing are named.
        """
        chosen: dict[Package, None] = {}
        missing: dict[str, str] = {}
        seen: set[Package] = set()
        stack = [(each, False) for each in reversed(list(wanted))]
        while stack:
            each, done = stack.pop()
            if done:
                chosen[each] = None
            elif each not in seen:
                seen.add(each)
                stack.append((each, True))
                for group in each.needs:
                    found = [one for one in map(self.find, group) if one is not None]
                    if found:
                        # Of alternatives, one that is there anyway.
                        best = next((one for one in found if one in seen), found[0])
                        stack.append((best, False))
                    else:
                        missing[group[0].name] = f"{each.name} needs {' | '.join(map(str, group))}"
        if missing:
            raise ImageNotFound(
                f"packages: {'; '.join(missing.values())}: neither installed nor given"
            ).with_hint(f"`apt-get download {' '.join(missing)}`, and add the .deb files to the list")
        return list(chosen)
