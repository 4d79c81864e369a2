"""``@pytest.mark.isolated``: a test in mount, PID, network, UTS and IPC namespaces of its own.

The test's set-up, call and tear-down run in a fork of the process, in a user namespace where it keeps its
user id (with ``root=True``: is root). Real root has none and keeps its rights. The test is no PID 1: that is
r2d2's, which gets what the test orphans, and when it ends the kernel kills everything that the test started
(pid_namespaces(7)). ``lo`` is up; nothing else is there. /tmp and /dev/shm are empty but for what pytest
needs of them (pytest's directories, the project, this interpreter).

Reports, captured output, warnings, skip, xfail, subtests, ``pytest.exit`` and exceptions come back as data,
each as soon as it is known; assertions are rewritten as ever. Limits:

- what the test changes in the memory of the process is gone with the fork: module variables, caches,
  ``session`` fixtures that it is the first to use (they end with it, and the next test makes its own);
- fixtures of a longer life that were there before are seen as they were. An ``r2d2.Container`` among them
  refuses to be used, since it belongs to the process that started it, as does an event loop;
- objects that were there before are not looked at by the garbage collector (``gc.freeze``);
- other threads do not exist in the fork, as after any fork(2) in a program with threads: what they held
  locked stays locked;
- coverage.py measures it with ``[run] patch = _exit`` and ``parallel = true``;
- a debugger works where it uses the terminal (``--pdb``, ``breakpoint()``), not over a port.
"""

from __future__ import annotations

import contextlib
import gc
import os
import posix
import select
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from . import private_tmp, worlds
from .answer import Answer, parse, tell

if TYPE_CHECKING:
    from collections.abc import Callable


def run(item: pytest.Item, nextitem: pytest.Item | None, mark: pytest.Mark) -> bool:
    """``pytest_runtest_protocol`` of such a test."""
    wanted = _wanted(mark)
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def deliver(kind: str, data: dict[str, Any]) -> None:
        if kind == "warning":
            _replay(item, data)
        else:
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            hook.pytest_runtest_logreport(report=report)

    answer = Answer(deliver)
    call = pytest.CallInfo.from_call(
        lambda: _fork(item, nextitem, wanted, answer),
        when="call",
        reraise=(KeyboardInterrupt, pytest.exit.Exception),
    )
    if answer.raised is not None:
        raise answer.raised
    if call.excinfo is None and answer.refused is not None:
        reason = answer.refused
        from .plugin import refuse

        call = pytest.CallInfo.from_call(lambda: refuse(item.config, reason), when="setup")
    elif call.excinfo is None and answer.exit is None and not answer.complete:
        call = pytest.CallInfo.from_call(lambda: pytest.fail(answer.crash(), pytrace=False), when="call")
    if call.excinfo is not None:
        _log(item, call)
    from .plugin import warn_of_leaks

    # Before the session's own fixtures: outside of any test's phase nobody would collect the warning.
    if answer.left:
        _log_leaks(item, lambda: warn_of_leaks(item, answer.left))
    _tear_down(item, nextitem)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    if answer.exit is not None:
        pytest.exit(answer.exit[0], answer.exit[1])
    return True


def _wanted(mark: pytest.Mark) -> worlds.Wanted:
    options = {"root": False, "net": True, "tmp": True}
    unknown = set(mark.kwargs) - set(options)
    if mark.args or unknown:
        raise pytest.UsageError("@pytest.mark.isolated takes root=, net= and tmp= (true or false)")
    root, net, tmp = (bool(mark.kwargs.get(name, default)) for name, default in options.items())
    return worlds.Wanted(root, net, tmp)


def _of(item: pytest.Item, wanted: worlds.Wanted) -> worlds.Wanted:
    """The same with what this test's /tmp shows."""
    return wanted._replace(kept=private_tmp.kept(item)) if wanted.tmp else wanted


def _report(item: pytest.Item, call: pytest.CallInfo[Any]) -> pytest.TestReport:
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    item.ihook.pytest_runtest_logreport(report=report)
    return report


def _log(item: pytest.Item, call: pytest.CallInfo[Any]) -> None:
    report = _report(item, call)
    if report.when == "setup" or report.failed:
        # Reporters count a test when its tear-down was told.
        _report(item, pytest.CallInfo.from_call(lambda: None, when="teardown"))


def _log_leaks(item: pytest.Item, warn: Callable[[], None]) -> None:
    """Told as the warning of a tear-down; as its error where warnings are errors."""
    with warnings.catch_warnings(record=True) as told:
        call = pytest.CallInfo.from_call(warn, when="teardown")
    for each in told:
        _warn(item, each, "runtest", item.nodeid)
    if call.excinfo is not None:
        _report(item, call)


def _tear_down(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Fixtures of the parent that no later test needs; a failure of theirs is a report."""
    call = pytest.CallInfo.from_call(
        lambda: item.session._setupstate.teardown_exact(nextitem), when="teardown"
    )
    if call.excinfo is not None:
        _report(item, call)


def _warn(item: pytest.Item, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "when": when, "nodeid": nodeid, "location": None}
    )


def _replay(item: pytest.Item, told: dict[str, Any]) -> None:
    module = sys.modules.get(told["module"])
    category = getattr(module, told["category"], UserWarning)
    if not (isinstance(category, type) and issubclass(category, Warning)):
        category = UserWarning
    message = warnings.WarningMessage(told["text"], category, told["file"], told["line"])
    _warn(item, message, told["when"], told["nodeid"])


# The fork


def _fork(item: pytest.Item, nextitem: pytest.Item | None, wanted: worlds.Wanted, answer: Answer) -> None:
    """Runs the protocol in a fork; when it returns, none of it runs any more, however it was left."""
    sys.stdout.flush()
    sys.stderr.flush()
    wanted = _of(item, wanted)
    forked: list[int] = []
    with contextlib.ExitStack() as stack:
        _reporters(item.config)
        answers, telling = _pipe(stack)
        ready, go = _pipe(stack)

        def child(pidfd: int) -> None:
            go.close()
            _child(item, wanted, pidfd, ready, telling)

        try:
            world = worlds.take(wanted, lambda pidfd: _begin(pidfd, forked, child))
        except BaseException as error:
            _end(forked)
            worlds.settle()
            if not isinstance(error, OSError):
                raise
            answer.take("refused", _refusal(error))
            return

        def ended(status: int | None) -> bool:
            left = world.descendants(forked[0])
            if status is None and left:
                return False
            answer.take("left", left)
            if status is None:
                worlds.leave(forked[0])
            else:
                answer.status = status
            world.end(wait=bool(left))
            return True

        try:
            telling.close()
            go.write(b"\0")
            _listen(answers, forked[0], answer, meanwhile=lambda: _prepare(nextitem), ended=ended)
        finally:
            if not world.ended:  # interrupted
                _end(forked)
                world.end()


def _begin(pidfd: int, forked: list[int], child: Callable[[int], None]) -> int:
    """Forks into a world; the child never returns.

    If it is interrupted nothing of it is left: who made the world would wait in vain for that to end.
    """
    try:
        worlds.fork(pidfd, forked)
        if forked[0] == 0:
            child(pidfd)
    except BaseException:
        _end(forked)
        raise
    return forked[0]


def _pipe(stack: contextlib.ExitStack) -> tuple[Any, Any]:
    """Its two ends, closed with the stack."""
    ends = zip(os.pipe(), ("rb", "wb"), strict=True)
    reading, writing = (stack.enter_context(os.fdopen(end, mode, buffering=0)) for end, mode in ends)
    return reading, writing


def _prepare(item: pytest.Item | None) -> None:
    """The world of the next test."""
    if item is not None and (mark := item.get_closest_marker("isolated")) is not None:
        with contextlib.suppress(pytest.UsageError, OSError):  # its own to be told
            worlds.prepare(_of(item, _wanted(mark)))


def _end(forked: list[int]) -> None:
    """Ends the fork, if there is one; if this is it, itself."""
    for pid in forked:
        if pid == 0:
            os._exit(1)
        with contextlib.suppress(ChildProcessError):  # it was waited for
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _listen(
    answers: Any,
    pid: int,
    answer: Answer,
    *,
    meanwhile: Callable[[], None],
    ended: Callable[[int | None], bool],
) -> None:
    """Takes messages until the fork ended, tells ``ended`` its status, then takes what else was written.

    The kernel needs longer to free the memory of a large process than many a test takes. So if the fork has
    said that it is complete, and closed all of its files, ``ended`` is asked without a status whether that
    will do. ``meanwhile`` is done while it runs.

    It reads not to the end of the pipe at once: the test's own forks have it, too, and ``ended`` kills these.
    """
    message = bytearray()
    pidfd = os.pidfd_open(pid)
    done = False
    try:
        meanwhile()
        waiting = select.poll()
        waiting.register(answers, select.POLLIN)
        waiting.register(pidfd, select.POLLIN)
        while not done:
            ready = dict(waiting.poll())
            if answers.fileno() in ready:
                if data := answers.read(1 << 16):
                    message += data
                    parse(message, answer)
                else:
                    waiting.unregister(answers)
                    done = answer.complete and ended(None)
            if not done and pidfd in ready:
                status = 0  # as ``subprocess`` has it, if somebody who waits for all children was first
                with contextlib.suppress(ChildProcessError):
                    status = os.waitpid(pid, 0)[1]
                done = True
                ended(status)
                message += answers.readall()
                parse(message, answer)
    finally:
        os.close(pidfd)


def _refusal(error: OSError) -> str:
    return f"isolated: {error}; see r2d2.doctor()"


def _child(item: pytest.Item, wanted: worlds.Wanted, pidfd: int, ready: Any, telling: Any) -> None:
    """The fork. It enters the world when that is ready, and runs the test. Never returns."""
    code = 1
    writing = telling.fileno()
    try:
        # A timeout of the parent's is the parent's to act on.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        gc.freeze()  # collecting garbage would copy the pages of all that the parent has
        worlds.forget()
        temporary = private_tmp.directory() if wanted.tmp else None
        if ready.read(1):
            worlds.join(pidfd, wanted)
            if temporary is not None and not os.path.isdir(temporary[0]):
                os.makedirs(temporary[0])
                os.chmod(*temporary)
            code = _test(item, writing)
            if code == 0 and os._exit is posix._exit and len(os.listdir("/proc/self/task")) == 1:
                os.closerange(0, 1 << 30)  # all that others could see of it: see _listen
    except OSError as error:
        tell(writing, "refused", _refusal(error))
    finally:
        os._exit(code)


def _test(item: pytest.Item, writing: int) -> int:
    """The test itself: an exit status."""
    try:
        from _pytest.runner import runtestprotocol

        from . import plugin

        reports = _Reports(item.config, writing)
        plugin._forked = reports
        # Reporters of the parent would print, or speak on the parent's connection.
        for caller, _, ours in _reporters(item.config):
            caller._hookimpls = ours
        _forget_finalizers(item.session._setupstate)
        # Pytest's own record of warnings is the parent's; its filters hold here, too.
        with warnings.catch_warnings(record=True) as told:
            try:
                runtestprotocol(item, nextitem=None)  # the reports go by the plugin's hook
            except pytest.exit.Exception as error:
                tell(writing, "exit", [error.msg, error.returncode])
        for each in told:
            reports.warning(each, "runtest", item.nodeid)
        tell(writing, "complete", None)
    except BaseException:  # noqa: BLE001 - a fork must never run on in its parent's place
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


class _Reports:
    """Sends what is told in the fork to the parent."""

    def __init__(self, config: pytest.Config, writing: int) -> None:
        self._config = config
        self._writing = writing

    def report(self, report: Any) -> None:
        """``pytest_runtest_logreport``."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        tell(self._writing, "report", data)

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        """``pytest_warning_recorded``."""
        category = message.category
        told = {
            "text": str(message.message), "module": category.__module__, "category": category.__qualname__,
            "file": message.filename, "line": message.lineno, "when": when, "nodeid": nodeid,
        }  # fmt: skip
        tell(self._writing, "warning", told)


def _reporters(config: pytest.Config) -> list[tuple[Any, list[Any], list[Any]]]:
    """The hooks by which reporters hear of something: whom they call, and which of these are our plugin.

    Made before the fork, where it costs no copies of the pages of all plugins; the lists that are replaced
    there are kept for the same reason.
    """
    from . import plugin

    if (found := config.stash.get(_REPORTERS, None)) is None:
        callers: list[Any] = [config.hook.pytest_runtest_logreport, config.hook.pytest_warning_recorded]
        found = config.stash[_REPORTERS] = [
            (caller, caller._hookimpls, [each for each in caller.get_hookimpls() if each.plugin is plugin])
            for caller in callers
        ]
    return found


_REPORTERS: pytest.StashKey[list[tuple[Any, list[Any], list[Any]]]] = pytest.StashKey()


def _forget_finalizers(state: Any) -> None:
    """What the parent set up is the parent's to tear down."""
    for node, (_, exception) in list(state.stack.items()):
        state.stack[node] = ([], exception)
