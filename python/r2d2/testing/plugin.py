r"""The pytest plugin: containers as fixtures, and tests in namespaces of their own.

::

    def test_hostname(container):
        assert container.run(["hostname"], capture_output=True, text=True).stdout == "r2d2\n"

    @pytest.mark.r2d2(image="minimal", limits={"pids": 50})
    def test_few(container): ...

    @pytest.mark.isolated
    def test_fixed_port():
        socket.create_server(("127.0.0.1", 80))

Fixtures: ``container`` (a running container, fresh for each test), ``container_factory`` (makes more),
``network`` (an ``r2d2.Network``, as fresh), ``r2d2_image`` (what containers start from), ``r2d2_build``
(provisions an image once for all tests and workers).
The marker ``r2d2`` takes the keywords of ``r2d2.Container``; its ``network=True`` makes the test's containers
members of its ``network``, and a dictionary in place of True has the keywords of ``r2d2.Network``.
With ``r2d2_ahead = true`` in the configuration file the container of a coming test is started while one runs
(``r2d2.testing.ahead``): tests see one more child of their process, and wait less.
``isolated`` is described in ``r2d2.testing.isolated``. On a host that cannot, tests are skipped with
what to do about it.

pytest loads this module in every run, so it imports the standard library and pytest alone.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from r2d2 import Container, Image, Network

    from .recorded import Recorded
    from .recorded_network import RecordedNetwork

_SCOPES = ("function", "class", "module", "package", "session")
_FIXTURES = {"container", "container_factory", "network", "r2d2_image", "r2d2_build"}
recorded = pytest.StashKey[list["Recorded | RecordedNetwork"]]()
#: Whether a test is the last one.
last = pytest.StashKey[bool]()
_new = pytest.StashKey[set[int]]()
_opened = pytest.StashKey[list["Network"]]()
#: In the fork of an isolated test: the way to its parent.
_forked: Any = None
_shown = pytest.StashKey[set[str]]()


class R2d2LeakWarning(pytest.PytestWarning):
    """A test left something running."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options; each has its place in the configuration file, too."""
    group = parser.getgroup("r2d2", "containers (r2d2)")
    group.addoption(
        "--r2d2-required", action="store_true", help="a host that cannot make containers fails the tests"
    )
    group.addoption("--r2d2-image", metavar="IMAGE", help="what r2d2_image is: host, minimal, a directory")
    group.addoption(
        "--r2d2-scope", choices=_SCOPES, help="how long a container and a network last (default: function)"
    )
    group.addoption("--r2d2-keep", action="store_true", help="keep what r2d2_build made for the next run")
    parser.addini("r2d2_image", "what the fixture r2d2_image is", default="host")
    parser.addini(
        "r2d2_ahead", "start the container of a coming test while one runs", type="bool", default=False
    )
    parser.addini("r2d2_scope", "the scope of the fixtures container and network", default="function")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers."""
    config.addinivalue_line(
        "markers", "r2d2(**keywords): keywords of r2d2.Container for the fixture container"
    )
    config.addinivalue_line(
        "markers",
        "isolated(root=False, net=True, tmp=True): run the test in namespaces of its own; "
        "root: as their root; net, tmp: with a network and a /tmp of its own",
    )
    config.stash[_shown] = set()


# What this host allows


def _uses(item: pytest.Item) -> bool:
    """Whether a test is isolated, or has one of the fixtures below; not one of its own of the same name."""
    if item.get_closest_marker("isolated") is not None:
        return True
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return any(known[name][-1].func.__module__ == __name__ for name in _FIXTURES & known.keys())


def wants_container(item: pytest.Item) -> bool:
    """Whether a test has the fixture ``container``, as above."""
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).get("container", ())
    return any(each.func.__module__ == __name__ for each in known)


def forked() -> bool:
    """Whether this is the fork of an isolated test."""
    return _forked is not None


def _verdict() -> str:
    from r2d2 import doctor

    return f"r2d2: {doctor().verdict}"


def pytest_report_header(config: pytest.Config) -> str | None:
    """Where workers collect, nobody here knows whether r2d2 is used: said if it is required."""
    return _verdict() if config.getoption("r2d2_required") else None


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """What ``r2d2.doctor()`` says, if a test uses r2d2 at all: it takes a tenth of a second."""
    said = config.getoption("r2d2_required")
    return _verdict() if not said and any(_uses(item) for item in items) else None


def refuse(config: pytest.Config, reason: str) -> None:
    """Skips, or with ``--r2d2-required`` fails, a test that this host cannot run."""
    if config.getoption("r2d2_required"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def explain_refusal(error: BaseException) -> str | None:
    """Why this host cannot do it, and what would help; None if it is another kind of failure."""
    from r2d2 import SetupError, UnsupportedError

    if isinstance(error, SetupError):
        from r2d2 import doctor

        if doctor().exit_code < 2:
            return None
    elif not isinstance(error, UnsupportedError):
        return None
    hint = getattr(error, "hint", None)
    return f"{error} (hint: {hint})" if hint else str(error)


@contextmanager
def refusals(config: pytest.Config) -> Iterator[None]:
    """Turns what this host cannot do into a skip with the hint, whoever asked for it."""
    try:
        yield
    except OSError as error:
        if type(error).__module__ != "r2d2.errors":
            raise
        reason = explain_refusal(error)
        if reason is None:
            raise
        refuse(config, reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fixtures of the project's own, too: a service that this host cannot have is no failure of the test."""
    with refusals(item.config):
        return (yield)


# Fixtures


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    del fixture_name
    scope = config.getoption("r2d2_scope") or config.getini("r2d2_scope")
    if scope not in _SCOPES:
        raise pytest.UsageError(f"r2d2_scope: {scope!r} is none of {', '.join(_SCOPES)}")
    return scope


def keywords(node: pytest.Item | pytest.Collector) -> dict[str, Any]:
    """Those of all markers ``r2d2``, the nearest last."""
    found: dict[str, Any] = {}
    for mark in reversed(list(node.iter_markers("r2d2"))):
        if mark.args:
            raise pytest.UsageError(f"@pytest.mark.r2d2{mark.args!r}: keywords only, such as image='minimal'")
        found |= mark.kwargs
    return found


def joins(network: Any) -> bool:
    """Whether a marker's ``network`` stands for the fixture of this name."""
    return network is True or isinstance(network, dict)


@pytest.fixture(scope=_scope)
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A running container: an ``r2d2.Container`` of ``r2d2_image``, or of what the marker ``r2d2`` says."""
    from .factory import Factory

    factory = Factory(request)
    try:
        yield factory.first()
    finally:
        factory.close()


@pytest.fixture
def container_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., Container]]:
    """Makes running containers: ``container_factory(image=None, **keywords)``; all end with the test."""
    from .factory import Factory

    factory = Factory(request)
    try:
        yield factory
    finally:
        factory.close()


@pytest.fixture(scope=_scope)
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A running ``r2d2.Network``; the marker's ``network={"seed": 7}`` has its keywords."""
    from .recorded_network import RecordedNetwork

    marked = keywords(request.node).get("network")
    made = RecordedNetwork(**(marked if isinstance(marked, dict) else {}))
    known = request.node.stash.setdefault(recorded, [])
    known.append(made)
    try:
        with refusals(request.config):
            made.start()
        yield made
    finally:
        made.close()
        known.remove(made)


@pytest.fixture(scope="session")
def r2d2_image(pytestconfig: pytest.Config) -> Image:
    """The image of ``container``: ``--r2d2-image``. Override it with one that ``r2d2_build`` made."""
    from r2d2.image import image_of

    return image_of(pytestconfig.getoption("r2d2_image") or pytestconfig.getini("r2d2_image"))


@pytest.fixture(scope="session")
def r2d2_build(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Image]:
    """Provisions an image: ``r2d2_build(base, provision, *inputs, **keywords)``.

    ``provision(container)`` runs once, whatever the number of workers; then the container's changes are
    frozen. Built again when ``base``, the source of ``provision``, the keywords or an input changes (a path
    stands for what is in the file). Removed after the run unless ``--r2d2-keep``. If it fails, the error is
    shown once; the other tests that need it name it in a line.
    """
    from .build import Builder

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(pytestconfig, "workerinput") else base
    return Builder(_session_directory(shared), keep=pytestconfig.getoption("r2d2_keep"))


def _session_directory(shared: Path) -> Path:
    directory = shared / "r2d2-builds"
    directory.mkdir(exist_ok=True)
    return directory


def _settle(*names: str) -> None:
    """What was prepared for a test, or is left of one, ends."""
    for name in names:
        module: Any = sys.modules.get(f"r2d2.testing.{name}")
        if module is not None:
            module.settle()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Ends what was started ahead; the controller removes what was built for this run."""
    _settle("worlds", "ahead")
    factory: Any = getattr(session.config, "_tmp_path_factory", None)
    if hasattr(session.config, "workerinput") or getattr(factory, "_basetemp", None) is None:
        return
    directory = Path(factory.getbasetemp()) / "r2d2-builds"
    if directory.is_dir():
        from .build import clean

        clean(directory, keep=session.config.getoption("r2d2_keep"))


# Reports


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the containers of a failed test did; the same failed build is told once."""
    report = yield
    if report.failed and report.when in ("setup", "call"):
        for node in [item, *item.listchain()[:-1]]:
            for each in node.stash.get(recorded, ()):
                report.sections.extend(each.sections(verbose=item.config.getoption("verbose") > 0))
    if report.failed and call.excinfo is not None:
        shown = item.config.stash[_shown]
        key = getattr(call.excinfo.value, "r2d2_build", None)
        if key is not None and (key in shown or getattr(call.excinfo.value, "r2d2_told", False)):
            report.longrepr = f"r2d2_build: {call.excinfo.value.args[0]}"
        elif key is not None:
            shown.add(key)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Remembers which processes the test itself started."""
    if not _uses(item) or _forked is not None:
        return (yield)
    before, networks = leaks.children(), leaks.networks()
    try:
        return (yield)
    finally:
        item.stash[_new] = leaks.children() - before
        item.stash[_opened] = [each for each in leaks.networks() if each not in networks]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Names what the test left running. Containers of fixtures that live longer are theirs."""
    result = yield
    new = item.stash.get(_new, set())
    if new:
        fixtures = [each for node in item.listchain() for each in node.stash.get(recorded, ())]
        opened = [each for each in item.stash.get(_opened, []) if each.alive and each not in fixtures]
        item.stash[_opened] = []
        warn_of_leaks(item, leaks.left(new, opened, {each.pid for each in fixtures if each.running}))
    return result


def warn_of_leaks(item: pytest.Item, left: list[str]) -> None:
    """A warning with the names; an error where warnings are."""
    if left:
        text = f"{item.nodeid} left running: {', '.join(left)}"
        warnings.warn(R2d2LeakWarning(text), stacklevel=2)


# Isolated tests


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Hands tests that are marked ``isolated`` over."""
    item.stash[last] = nextitem is None
    mark = item.get_closest_marker("isolated")
    if mark is None:
        _settle("worlds")  # before anybody else could see it
        return None
    from .isolated import run

    return run(item, nextitem, mark)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the fork of an isolated test: a report, of its phases or of a subtest."""
    if _forked is not None:
        _forked.report(report)


def pytest_warning_recorded(warning_message: warnings.WarningMessage, when: str, nodeid: str) -> None:
    """The same of a warning."""
    if _forked is not None:
        _forked.warning(warning_message, when, nodeid)


# testinfra


def pytest_plugin_registered(plugin: Any) -> None:
    """Teaches testinfra the backend ``r2d2://NAME``, where it is installed."""
    if getattr(plugin, "__name__", "") == "testinfra.plugin":
        from .testinfra import register

        register()
