"""``Container.explain()``: the steps of a start, as a table, as data, and as a script for ``sh``.

Every row is one step of the list that is also what runs, what errors name and what ``script()`` writes down.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from . import _core
    from .container import Container
    from .spec import StrPath

__all__ = ["ExplainedStep", "Explanation", "explain"]

_WIDTH = 100


class ExplainedStep(NamedTuple):
    """One step of a start.

    Attributes:
        number: its place, from 1.
        who: ``"caller"`` (this process) or ``"child"`` (the new one, before it becomes a program).
        title: what it does.
        syscalls: the system calls that it makes, by their man pages' names (section 2).
        shell: the same by hand, for ``sh`` with util-linux; it starts with ``#`` where no command can do it.
        why: why it is there.
        optional: it may fail without consequence.
        took: nanoseconds; None if it was not carried out.
        errno: of an optional step that was refused; None if it was not.
    """

    number: int
    who: str
    title: str
    syscalls: str
    shell: str
    why: str
    optional: bool = False
    took: int | None = None
    errno: int | None = None

    @property
    def skipped(self) -> str | None:
        """Why an optional step was refused, such as ``"EPERM: Operation not permitted"``, or None."""
        if self.errno is None:
            return None
        import errno

        return f"{errno.errorcode.get(self.errno, self.errno)}: {os.strerror(self.errno)}"


class Explanation:
    """The steps of a start, in order: iterable, comparable, printable.

    Two explanations are equal if their steps do the same; times and what was skipped do not count.

    Attributes:
        name: the container's.
        steps: the rows.
        notes: what differs from what might be expected.
        total: nanoseconds of the whole start; None before it.
    """

    def __init__(
        self, name: str, steps: Sequence[ExplainedStep], notes: Sequence[str], script: _Script | None = None
    ) -> None:
        self.name = name
        self.steps = tuple(steps)
        self.notes = tuple(notes)
        self._script = script

    @property
    def total(self) -> int | None:
        """Nanoseconds of the whole start; None before it."""
        took = [step.took for step in self.steps if step.took is not None]
        return sum(took) if took else None

    def __iter__(self) -> Iterator[ExplainedStep]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> ExplainedStep:
        return self.steps[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Explanation):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[ExplainedStep, ...]:
        return tuple(step._replace(took=None, errno=None) for step in self.steps)

    def __reduce__(self) -> tuple[Any, ...]:
        return Explanation, (self.name, self.steps, self.notes)  # a script needs this host

    def __repr__(self) -> str:
        state = "not started" if self.total is None else _time(self.total)
        return f"<r2d2.Explanation of {self.name}: {len(self)} steps, {state}>"

    def __str__(self) -> str:
        """A table of at most 100 columns; the notes below it."""
        timed = self.total is not None
        digits = len(str(len(self)))
        calls = min(30, max((len(step.syscalls) for step in self), default=0))
        fixed = digits + 2 + 6 + 2 + 2 + calls + (2 + 8 if timed else 0)
        title = max(20, _WIDTH - fixed)
        head = f"{'#':>{digits}}  {'who':<6}  {'step':<{title}}  {'system calls':<{calls}}"
        lines = [(head + (f"  {'took':>8}" if timed else "")).rstrip()]
        for step in self:
            left = _wrap(_shown(step.title), title)
            right = _wrap(step.syscalls, calls)
            took = "" if step.took is None else "skipped" if step.errno is not None else _time(step.took)
            for i in range(max(len(left), len(right))):
                number, who = (str(step.number), step.who) if i == 0 else ("", "")
                row = (
                    f"{number:>{digits}}  {who:<6}  {left[i] if i < len(left) else '':<{title}}"
                    f"  {right[i] if i < len(right) else '':<{calls}}"
                )
                lines.append((row + (f"  {took if i == 0 else '':>8}" if timed else "")).rstrip())
        if self.total is not None:
            lines.append(f"{'':>{digits}}  {len(self)} steps in {_time(self.total)}")
        lines += [f"step {step.number} skipped: {step.skipped}" for step in self if step.skipped]
        for note in self.notes:
            lines += _wrap(f"note: {_shown(note)}", _WIDTH)
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """For Jupyter; a terminal shows the table."""
        del include, exclude
        return {"text/plain": str(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        """A table for Jupyter: no script, no colours of its own."""
        from html import escape

        from .jupyter.reprs import table

        timed = self.total is not None
        heads = ["#", "who", "step", "system calls", "by hand", *(["took"] if timed else []), "why"]
        rows = []
        for step in self:
            took = [step.skipped or ("" if step.took is None else _time(step.took))] if timed else []
            shell = f"`{_shown(step.shell)}"
            rows.append([str(step.number), step.who, step.title, step.syscalls, shell, *took, step.why])
        total = "" if self.total is None else f" in {_time(self.total)}"
        notes = "".join(f"<li>{escape(_shown(note))}</li>" for note in self.notes)
        return table(f"{self.name}: {len(self)} steps{total}", heads, rows) + (
            f'<ul style="color:inherit">{notes}</ul>' if notes else ""
        )

    def script(self, command: Sequence[StrPath] | None = None) -> str:
        """A script for ``sh`` which builds the same container by hand, and runs a command in it.

        It needs util-linux 2.38 or later, ``hostname`` and ``ip``, this machine, and the same user. What it
        cannot do stands in it as comments. Bytes that are not UTF-8 are surrogates, as ``os.fsdecode`` makes
        them: write it to a file with ``errors="surrogateescape"``.

        Args:
            command: the command that runs where the script is given none; ``sh`` by default.
        """
        if self._script is None:
            raise ValueError("this explanation was not made by Container.explain()")
        return self._script(command)

    def to_json(self, **keywords: Any) -> str:
        """As JSON (RFC 8259): name, total, notes and steps; keywords are those of ``json.dumps``."""
        import json

        steps = [{**step._asdict(), "skipped": step.skipped} for step in self]
        value = {"name": self.name, "total": self.total, "notes": list(self.notes), "steps": steps}
        return json.dumps(value, **keywords)


class _Script:
    """Writes the script of a plan, of a running container or of one to be."""

    def __init__(self, plan: _core.Spec | _core.Handle, env: dict[str, str], workdir: str, user: Any) -> None:
        self._plan = plan
        self._env = [os.fsencode(f"{key}={value}") for key, value in env.items()]
        self._workdir = os.fsencode(workdir)
        self._user = user

    def __call__(self, command: Sequence[StrPath] | None) -> str:
        from .process import arguments

        argv = [b"sh"] if command is None else arguments(command)
        return os.fsdecode(self._plan.script(argv, self._env, self._workdir, self._user))


def explain(container: Container) -> Explanation:
    """The steps of a container: with times if it was started, else as they would be."""
    plan = container._resolve() if container._handle is None else container._handle
    who = container._who(None) if container.running else None
    environ = container._environ() if who is None else container._environ(who.home)
    script = _Script(plan, environ, container.spec.workdir, None if who is None else who[:3])
    explanation = explain_plan(container.name, plan, script)
    spec = container.spec
    if spec.slirp is not None:
        from .network import explained

        number = len(explanation) + 1
        explanation.steps += (explained(spec.slirp, spec.ports, number, container._network_took),)
        explanation.notes += (
            "script() does not carry out the last step: it takes an engine of r2d2's"
            if spec.network == "slirp"
            else "script() does not carry out the last step: its commands are root's, outside, with the PID",
        )
    if container._members:
        from .switch.member import explained as plugged

        explanation.steps += tuple(plugged(container, len(explanation) + 1))
        explanation.notes += ("script() does not carry out the last steps: they take an engine of r2d2's",)
    return explanation


def explain_plan(name: str, plan: _core.Spec | _core.Handle, script: _Script | None) -> Explanation:
    """The steps of any plan, or of what was started by it."""
    from . import _core

    took: Sequence[int | None]
    errnos: Sequence[int]
    infos = plan.steps()
    if isinstance(plan, _core.Handle):
        took, errnos = plan.trace()
    else:
        took, errnos = [None] * len(infos), [0] * len(infos)
    steps = [
        ExplainedStep(
            info.number,
            info.actor,
            info.title,
            info.syscalls,
            info.shell,
            info.why,
            info.optional,
            took[i],
            errnos[i] or None,
        )
        for i, info in enumerate(infos)
    ]
    return Explanation(name, steps, plan.notes(), script)


def _time(nanoseconds: int) -> str:
    """Three digits and a unit."""
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1e3:.0f} µs"
    return f"{nanoseconds / 1e6:.2f} ms" if nanoseconds < 100_000_000 else f"{nanoseconds / 1e6:.0f} ms"


def _shown(text: str) -> str:
    """One line that every terminal and UTF-8 file takes."""
    safe = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in safe)


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
