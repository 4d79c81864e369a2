"""Waiting: it returns when it is true, and says what it saw when it is not."""

from __future__ import annotations

import functools
import re
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import r2d2
from _needs import needs
from r2d2.testing import (
    WaitTimeout,
    all_of,
    any_of,
    wait_for_command,
    wait_for_file,
    wait_for_http,
    wait_for_log,
    wait_for_port,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from r2d2.process import Process

SERVER = """
import http.server, sys, time
time.sleep(float(sys.argv[2]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/" else 503)
        self.end_headers()
        self.wfile.write(b"body " + self.headers.get("X-Mine", "none").encode())
class Server(http.server.HTTPServer):
    def server_bind(self): http.server.socketserver.TCPServer.server_bind(self)
server = Server(("0.0.0.0", int(sys.argv[1])), Handler)
print("listening on", sys.argv[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def here() -> Iterator[r2d2.Container]:
    with r2d2.Container("host") as container:
        yield container


def serve(container: r2d2.Container, log: Path, delay: float = 0.3, port: int = 80) -> Process:
    with open(log, "wb") as file:
        args = ["python3", "-c", SERVER, str(port), str(delay)]
        return container.popen(args, stdout=file, stderr=subprocess.STDOUT)


def notes(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def finish(process: Process) -> None:
    process.kill()
    process.wait()


def test_a_port_that_opens_late(here: r2d2.Container, tmp_path: Path) -> None:
    server = serve(here, tmp_path / "log")
    with pytest.raises(WaitTimeout):
        wait_for_port(here, 80, timeout=0)
    wait_for_port(here, 80, process=server)
    wait_for_http(here, 80, contains="body none")
    wait_for_http(here, 80, headers={"X-Mine": "mine"}, contains="body mine")
    wait_for_http(here, 80, "/other", status=503)
    wait_for_http(here, 80, "/other", status=lambda code: code >= 500)
    assert wait_for_log(tmp_path / "log", r"listening on (\d+)").group(1) == "80"
    finish(server)


def test_what_was_seen_last_is_told(here: r2d2.Container, tmp_path: Path) -> None:
    server = serve(here, tmp_path / "log", 0, 81)
    wait_for_port(here, 81)
    with pytest.raises(WaitTimeout, match=r"port 82 of .*: not within 0.1 s") as told:
        wait_for_port(here, 82, timeout=0.1, log=tmp_path / "log")
    assert "listening: 81" in notes(told.value)
    assert "the log's end:\nlistening on 81" in notes(told.value)
    assert isinstance(told.value, TimeoutError)
    with pytest.raises(WaitTimeout, match=r"GET http://127.0.0.1:81/other") as told:
        wait_for_http(here, 81, "/other", timeout=0.1)
    assert "status 503: 'body none'" in notes(told.value)
    finish(server)


def test_the_end_of_the_server_ends_the_wait(here: r2d2.Container, tmp_path: Path) -> None:
    script = "echo cannot open it; exit 4"
    start = time.monotonic()
    for wait in (
        functools.partial(wait_for_port, here, 80),
        functools.partial(wait_for_file, here, "/none"),
        functools.partial(wait_for_command, here, ["false"]),
    ):
        with open(tmp_path / "log", "wb") as file:
            process = here.popen(["sh", "-c", script], stdout=file)
        with pytest.raises(r2d2.ContainerClosed, match="ended with status 4") as told:
            wait(process=process, log=tmp_path / "log", timeout=100)
        assert "cannot open it" in notes(told.value)
    here.stop()
    with pytest.raises(r2d2.ContainerClosed):
        wait_for_port(here, 80, timeout=100)
    assert time.monotonic() - start < 60


def test_ipv6_alone(here: r2d2.Container) -> None:
    script = (
        "import socket; s = socket.create_server(('::1', 80), family=socket.AF_INET6); s.accept(); s.accept()"
    )
    server = here.popen(["python3", "-c", script])
    wait_for_port(here, 80, host="::1", process=server)
    finish(server)


def test_the_callers_network(tmp_path: Path) -> None:
    with r2d2.Container("host", network="host") as container:
        server = serve(container, tmp_path / "log", 0, 18087)
        wait_for_port(container, 18087, process=server)
        wait_for_http(container, 18087)
        finish(server)


@needs("busybox")
def test_an_image_without_python(image: r2d2.Image, tmp_path: Path) -> None:
    with r2d2.Container(image) as container:
        container.path("/index.html").write_text("from busybox")
        with open(tmp_path / "log", "wb") as file:
            server = container.popen(
                ["busybox", "httpd", "-f", "-p", "80", "-h", "/"], stdout=file, stderr=file
            )
        wait_for_http(container, 80, contains="from busybox", process=server)
        finish(server)


def test_files_commands_and_logs(here: r2d2.Container) -> None:
    script = "sleep 0.2; echo one > /tmp/f; sleep 0.2; echo two >> /tmp/f; sleep 100"
    writer = here.popen(["sh", "-c", script])
    wait_for_file(here, "/tmp/f")
    wait_for_file(here, "/tmp/f", contains="two")
    wait_for_command(here, ["grep", "-q", "two", "/tmp/f"])
    wait_for_command(here, ["false"], status=1)
    wait_for_log(here.path("/tmp/f"), "^two$")
    assert wait_for_log(lambda: "a1\na2\n", r"a(\d)", times=2).group(1) == "2"
    with pytest.raises(WaitTimeout, match=re.escape("a line that matches 'x'")) as told:
        wait_for_log(here.path("/tmp/f"), "x", timeout=0)
    assert "one\ntwo" in notes(told.value)
    with pytest.raises(WaitTimeout) as told:
        wait_for_command(here, ["sh", "-c", "echo why; exit 3"], timeout=0.1)
    assert "exit status 3\nwhy" in notes(told.value)
    with pytest.raises(WaitTimeout) as told:
        wait_for_file(here, "/tmp/f", contains="three", timeout=0)
    assert "ends in 'one\\ntwo\\n'" in notes(told.value)
    with pytest.raises(r2d2.SpecError, match="a path, a Detached"):
        wait_for_log(writer, "x")
    finish(writer)


def test_combinations(here: r2d2.Container) -> None:
    here.path("/tmp/two").touch()
    one, two = (functools.partial(wait_for_file, here, f"/tmp/{name}") for name in ("one", "two"))
    assert any_of(one, two) == 1
    with pytest.raises(WaitTimeout, match=r"all_of: not within 0.1 s") as told:
        all_of(one, two, timeout=0.1)
    assert "/tmp/one is not there" in notes(told.value)
    assert "/tmp/two" not in notes(told.value)
    with pytest.raises(WaitTimeout):
        any_of(one, timeout=0)
    here.path("/tmp/one").touch()
    all_of(one, two)
    all_of(functools.partial(any_of, one, two), two)
    with pytest.raises(r2d2.SpecError, match="nothing to wait for"):
        any_of()
    answers = iter([False, 0, "yes"])
    wait_until(lambda: next(answers))
    with pytest.raises(WaitTimeout):
        wait_until(lambda: False, timeout=0.05)


@needs("testcontainers")
def test_strategies_of_testcontainers(tmp_path: Path) -> None:
    from testcontainers.core.wait_strategies import (
        CompositeWaitStrategy,
        ExecWaitStrategy,
        HttpWaitStrategy,
        LogMessageWaitStrategy,
        PortWaitStrategy,
    )

    from r2d2.testing.waiting import Target

    with r2d2.Container("host", network="slirp", ports={0: 80}) as container:
        log = tmp_path / "log"
        server = serve(container, log)
        target = Target(container, log)
        strategies = [
            LogMessageWaitStrategy("listening on"),
            PortWaitStrategy(80),
            HttpWaitStrategy(80).for_status_code(200),
            ExecWaitStrategy(["true"]),
        ]
        for strategy in strategies:
            wait_until(strategy.with_poll_interval(0.05).with_startup_timeout(20), target)
        wait_until(CompositeWaitStrategy(*strategies), target)
        with pytest.raises(r2d2.SpecError, match=r"port 81 of .* is not published"):
            wait_until(PortWaitStrategy(81).with_startup_timeout(1), container)
        with pytest.raises(TimeoutError):
            wait_until(LogMessageWaitStrategy("never").with_startup_timeout(1), target)
        with pytest.raises(r2d2.SpecError, match="needs the container"):
            wait_until(PortWaitStrategy(80))
        finish(server)
