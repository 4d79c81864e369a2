"""``doctor()``: what this host allows, tried out in throwaway children, and what would help elsewhere.

The probes are the steps of a real start (``src/container/probe.rs``), so they fail as a start would, and a
failure carries the hint that the start's exception would carry (:mod:`r2d2.hints`). What is only read, not
tried, is worded as such. Nothing stays behind.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _core
from .errors import R2d2Error
from .hint_words import HINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OK, DEGRADED, FAILED = "ok", "degraded", "failed"


class Check(NamedTuple):
    """One capability of this host.

    Attributes:
        name: in a word or two.
        needed_for: what r2d2 does with it.
        required: whether a container can be had at all without it.
        status: ``"ok"``, ``"degraded"`` (something stands in for it) or ``"failed"``.
        fact: what was seen.
        hint: what to do about it, or None.
    """

    name: str
    needed_for: str
    required: bool
    status: str
    fact: str
    hint: str | None


class Report:
    """What :func:`doctor` found: a sequence of :class:`Check`, which prints as a table."""

    def __init__(self, checks: list[Check]) -> None:
        self.checks = tuple(checks)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of that name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    @property
    def exit_code(self) -> int:
        """0: everything required works; 1: something stands in for part of it; 2: no container can be had."""
        worst = {check.status for check in self.checks if check.required}
        return 2 if FAILED in worst else 1 if DEGRADED in worst else 0

    @property
    def verdict(self) -> str:
        """The exit code in a sentence."""
        missing = sum(not check.required and check.status != OK for check in self.checks)
        more = f"; {missing} of what is optional is not to be had" if missing else ""
        return (
            f"containers work here{more}",
            f"containers work here, with something standing in{more}",
            "containers do not work here",
        )[self.exit_code]

    def __str__(self) -> str:
        wide = max(len(check.name) for check in self.checks)
        lines = [f"r2d2 doctor: {self.verdict}", ""]
        said: dict[str, str] = {}
        for check in self.checks:
            mark = check.status if check.required or check.status == OK else f"({check.status})"
            lines.append(f"{mark:<10}  {check.name:<{wide}}  {check.fact}")
            if check.status != OK:
                lines.append(f"{'':<12}{'':<{wide}}  for: {check.needed_for}")
            if check.hint:
                first = said.setdefault(check.hint, check.name)
                text = check.hint if first == check.name else f"as for {first}"
                lines.append(f"{'':<12}{'':<{wide}}  hint: {text}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<r2d2 doctor: {self.verdict}>"

    def to_json(self) -> str:
        """A JSON object: ``verdict``, ``exit_code`` and ``checks``, objects with a Check's fields."""
        import json

        checks = [check._asdict() for check in self.checks]
        return json.dumps({"verdict": self.verdict, "exit_code": self.exit_code, "checks": checks}, indent=2)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter; a terminal shows the table."""
        del include, exclude
        return {"text/plain": str(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        from .jupyter.reprs import report

        return report(self)


def doctor() -> Report:
    """Finds out what this host allows, and what would help where it does not.

    Takes some 0.1 s, changes nothing and raises nothing: what fails is in the report.

    Returns:
        A :class:`Report`; print it.
    """
    examiner = _Examiner()
    examiner.host()
    examiner.kernel()
    examiner.namespaces()
    examiner.mounts()
    examiner.network()
    examiner.cgroups()
    examiner.limits()
    examiner.directories()
    examiner.whole()
    return Report(examiner.checks)


class _Examiner:
    """Collects the checks."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.lacking: str | None = None
        self.mountless: str | None = None

    def add(
        self,
        name: str,
        needed_for: str,
        status: str,
        fact: str,
        hint: str | None = None,
        *,
        required: bool = False,
    ) -> None:
        self.checks.append(Check(name, needed_for, required, status, fact, hint))

    def attempt(self, what: Callable[[], Any]) -> tuple[Any, R2d2Error | None]:
        """Its result, or the error."""
        try:
            return what(), None
        except R2d2Error as error:
            return None, error

    def probe(
        self,
        name: str,
        probe: str,
        needed_for: str,
        *,
        required: bool = False,
        fact: Callable[[Any], str] = lambda _: "works",
        instead: tuple[str, str] | None = None,
    ) -> bool:
        """Tries; with ``instead`` (a probe, a text) another way if that fails. Whether the first works."""
        value, error = self.attempt(lambda: _core.probe(probe))
        if error is None:
            self.add(name, needed_for, OK, fact(value), required=required)
            return True
        status, seen = FAILED, str(error)
        if instead is not None:
            other, text = instead
            if self.attempt(lambda: _core.probe(other))[1] is None:
                status, seen = DEGRADED, f"{seen}; {text}"
        self.add(name, needed_for, status, seen, error.hint, required=required)
        return False

    def inside(self, name: str, probe: str, needed_for: str, **keywords: Any) -> bool:
        """A probe that happens in a user namespace: without one there is nothing to try."""
        if self.lacking is None:
            return self.probe(name, probe, needed_for, **keywords)
        required = bool(keywords.get("required"))
        self.add(name, needed_for, FAILED, f"not tried: {self.lacking}", required=required)
        return False

    def host(self) -> None:
        from .surroundings import engine, filtered, imitation, read, release

        kernel = os.uname()
        name = imitation()
        new = release() >= (5, 12)
        hint = (
            HINTS[f"platform.{name}"]
            if name
            else None
            if new
            else HINTS["kernel.old"].format(release=kernel.release)
        )
        self.add(
            "kernel", "every system call of a start (Linux 5.12)", OK if new and not name else FAILED,
            f"Linux {kernel.release}" + (f", imitated by {name}" if name else ""), hint, required=True,
        )  # fmt: skip
        good = kernel.machine in ("x86_64", "amd64")
        self.add(
            "architecture",
            "the program that becomes PID 1",
            OK if good else FAILED,
            kernel.machine,
            required=True,
        )
        around = [f"in a {inside} container" if (inside := engine()) else "in no container that shows itself"]
        around.append("under a seccomp filter" if filtered() else "no seccomp filter")
        profile = read("/proc/self/attr/apparmor/current") or read("/proc/self/attr/current")
        if profile:
            around.append(f"security label {profile}")
        self.add("surroundings", "choosing the words of hints", OK, ", ".join(around))

    def kernel(self) -> None:
        self.probe(
            "memfd", "memfd", "PID 1 from a sealed file in memory, which nobody can change", required=True,
            instead=("unlinked", "a file without a name stands in"),
        )  # fmt: skip
        self.probe("openat2", "openat2", "paths that cannot lead out of a container", required=True)
        self.probe("seccomp", "seccomp", "system call filters")
        self.probe("Landlock", "landlock", "file access rules", fact=lambda version: f"version {version}")

    def namespaces(self) -> None:
        for name, probe, needed_for in (
            ("user namespace", "user", "root inside that is nobody outside"),
            ("id map", "idmap", "root inside that is nobody outside"),
        ):
            if not self.inside(name, probe, needed_for, required=True):
                self.lacking = self.lacking or f"no {name}"
        self.inside("subuid", "subuid", 'many users in one container (userns="subuid")')
        for kind, needed_for in (
            ("mount", "a file system of its own"),
            ("pid", "processes of its own"),
            ("uts", "a host name of its own"),
            ("ipc", "shared memory and queues of its own"),
            ("net", "a network of its own"),
            ("cgroup", "a view of control groups of its own"),
        ):
            if not self.inside(f"{kind} namespace", kind, needed_for, required=True) and kind == "mount":
                self.mountless = "no mount namespace"
        self.inside("time namespace", "time", "clocks of its own (clock_offsets=)")
        self.inside("keyring", "keyring", "keys of its own")
        if os.geteuid() == 0:
            self.probe("no user namespace", "root", 'real root inside (userns="host")')
        from .surroundings import number

        kinds = ("user", "mnt", "pid", "uts", "ipc", "net", "cgroup", "time")
        limits = {kind: number(f"user.max_{kind}_namespaces") for kind in kinds}
        zero = [kind for kind, limit in limits.items() if limit == 0]
        known = [limit for limit in limits.values() if limit is not None]
        self.add(
            "namespace limits", "many containers at a time", FAILED if zero else OK,
            "".join(f"user.max_{kind}_namespaces is 0 " for kind in zero).strip()
            or (f"at least {min(known)} of each kind" if known else "unknown"),
            HINTS["userns.limit.zero"].format(sysctl=f"max_{zero[0]}_namespaces") if zero else None,
        )  # fmt: skip

    def mounts(self) -> None:
        before, self.lacking = self.lacking, self.lacking or self.mountless
        self.inside("tmpfs", "tmpfs", "what a container writes", required=True)
        self.inside("tmpfs attributes", "xattr", "layers in memory that know opaque directories (Linux 6.6)")
        self.inside("overlay", "overlay", "images below, what is written above", required=True)
        self.inside("overlay lowerdir+", "lowerdir+", "images of many layers with long paths (Linux 6.5)")
        self.inside(
            "proc", "proc", "processes in /proc", required=True,
            instead=("proc-bind", 'the outer one, read-only, stands in (proc="auto")'),
        )  # fmt: skip
        self.inside("sysfs", "sysfs", "/sys with its own network devices")
        self.inside("devpts", "devpts", "terminals of its own", required=True)
        self.inside("mqueue", "mqueue", "POSIX message queues")
        self.inside("pivot_root", "pivot_root", "leaving the host's files behind", required=True)
        self.lacking = before

    def network(self) -> None:
        veth = self.inside("veth", "veth", "a link from the container to the network engine")
        packet = self.inside("packet socket", "packet", "the engine's end of a veth link")
        self.inside(
            "tap", "tap", "a faster link to the network engine",
            instead=("packet", "a veth pair and a packet socket stand in") if veth and packet else None,
        )  # fmt: skip
        from . import bridge

        possible, fact, hint = bridge.possible()
        self.add(
            "bridge", 'network="bridge", for root: the kernel\'s own network', OK if possible else FAILED,
            fact, hint,
        )  # fmt: skip
        import socket

        tried = []
        for kind, name in ((socket.SOCK_DGRAM, "datagram"), (socket.SOCK_RAW, "raw")):
            try:
                socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP).close()
            except OSError as error:
                tried.append(f"{name} socket: {error.strerror}")
            else:
                break
        needed_for = "ping out of a container"
        if not tried:
            self.add("ping", needed_for, OK, "works")
        elif len(tried) == 1:
            self.add("ping", needed_for, DEGRADED, f"{tried[0]}; a raw one stands in")
        else:
            group = os.getegid()
            hint = HINTS["ping"].format(group=group)
            self.add("ping", needed_for, FAILED, "; ".join(tried), hint)

    def cgroups(self) -> None:
        from .hints import hint_for

        report: Any = _core.cgroup_report()
        advice = hint_for("unsupported", None, None, 95, None, None, "cgroup")
        needed_for = {
            "memory": "limits memory", "pids": "limits pids", "cpu": "limits cpus", "cpuset": "limits cpuset",
            "freezer": "pause()",
        }  # fmt: skip
        for name, facts in report["controllers"].items():
            if facts["usable"]:
                self.add(
                    f"cgroup {name}", needed_for[name], OK, f"version {facts['version']}, {facts['parent']}"
                )
                continue
            instead = None
            if name == "pids" and report["rlimit_pids"] is None:
                instead = "RLIMIT_NPROC stands in"
            if name == "freezer":
                instead = "SIGSTOP stands in"
            fact = f"{facts['why']} (cgroups: {report['layout']})"
            status = DEGRADED if instead else FAILED
            self.add(
                f"cgroup {name}", needed_for[name], status, f"{fact}; {instead}" if instead else fact, advice
            )

    def limits(self) -> None:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = resource.RLIM_INFINITY
        few = 0 <= soft < 64
        hint = HINTS["descriptors"].format(soft=soft, hard=hard if hard != unlimited else "RLIM_INFINITY")
        self.add(
            "open descriptors", "every start", FAILED if few else DEGRADED if 0 <= soft < 256 else OK,
            "unlimited" if soft == unlimited else f"RLIMIT_NOFILE {soft}", hint if 0 <= soft < 256 else None,
            required=True,
        )  # fmt: skip
        from .hints import hint_for

        full = hint_for("step", "clone", "clone", 11, None)
        soft, _hard = resource.getrlimit(resource.RLIMIT_NPROC)
        text = "unlimited" if soft == unlimited else f"RLIMIT_NPROC {soft}"
        near = full is not None and full != HINTS["clone.threads"]
        self.add("processes", "every start", DEGRADED if near else OK, text, full if near else None)

    def directories(self) -> None:
        from .cache import bases

        tried = [(base, _unwritable(base)) for base in bases()]
        wrong = [why for _, why in tried if why]
        usable = next((base for base, why in tried if why is None), None)
        needed_for = "images, and upper layers on disk"
        if usable is None or wrong:
            hint = HINTS["directory"].format(variable="R2D2_CACHE")
            status = FAILED if usable is None else DEGRADED
            fact = "; ".join(wrong) + (f"; {usable} stands in" if usable else "")
            self.add("cache directory", needed_for, status, fact, hint)
        else:
            self.add("cache directory", needed_for, OK, usable)
        temporary = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - is it usable?
        places = [
            (
                "runtime directory", "named containers", os.environ.get("XDG_RUNTIME_DIR") or temporary,
                "XDG_RUNTIME_DIR",
            ),
            ("temporary directory", "passing files", temporary, "TMPDIR"),
        ]  # fmt: skip
        for name, needed_for, directory, variable in places:
            why = _unwritable(directory)
            advice = HINTS["directory"].format(variable=variable) if why else None
            self.add(name, needed_for, FAILED if why else OK, why or directory, advice)

    def whole(self) -> None:
        from .container import Container
        from .image import Image

        for name, needed_for, image in (
            ("a container", "everything", Image.scratch()),
            ("the host's image", 'Container("host"), the default', Image.host()),
        ):
            container = Container(image)
            try:
                _, error = self.attempt(container.start)
            finally:
                container.stop()
            required = name == "a container"
            if error is None:
                self.add(name, needed_for, OK, "started and ended", required=required)
            else:
                # What a probe has explained is not explained twice.
                known = any(check.hint == error.hint for check in self.checks)
                hint = None if known else error.hint
                self.add(name, needed_for, FAILED, str(error), hint, required=required)


def _unwritable(directory: str) -> str | None:
    """Why nothing can be made in a directory, or where it would be made; None if it can."""
    there = directory
    while not os.path.lexists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    try:
        trial = os.path.join(there, f".r2d2-doctor-{os.getpid()}")
        os.mkdir(trial, 0o700)
        os.rmdir(trial)
    except OSError as error:
        return f"{directory}: {error.strerror} ({there})"
    return None
