"""Twenty tests of infrastructure, as somebody would write them for a project of theirs.

They use what README's "In tests" says and nothing else: the plugin's fixtures and markers, waiting, services,
snapshots. Each has a world of its own, so they run in any order and on any number of workers.
"""

from __future__ import annotations

import functools
import http.server
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

import r2d2
from _needs import needs
from r2d2.testing import (
    Nginx,
    PostgreSQL,
    Redis,
    WaitTimeout,
    all_of,
    wait_for_command,
    wait_for_file,
    wait_for_http,
    wait_for_port,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)

SCHEMA = """
create table accounts (name text primary key, balance int check (balance >= 0));
insert into accounts values ('r2', 100), ('d2', 0);
"""


@pytest.fixture(scope="session")
def r2d2_image(r2d2_build: Callable[..., r2d2.Image]) -> r2d2.Image:
    def provision(container: r2d2.Container) -> None:
        container.path("/srv/app").mkdir(parents=True)
        container.path("/srv/app/index.html").write_text("deployed")

    return r2d2_build("host", provision)


def sh(container: r2d2.Container, script: str, **keywords: Any) -> str:
    done = container.run(["sh", "-c", script], capture_output=True, text=True, check=True, **keywords)
    output: str = done.stdout
    return output


# A host of its own for each test


def test_the_deployment_is_there(container: r2d2.Container) -> None:
    assert container.path("/srv/app/index.html").read_text() == "deployed"


def test_an_upgrade_changes_what_it_says(container: r2d2.Container) -> None:
    sh(container, "echo upgraded > /srv/app/index.html; mkdir /srv/app/new; touch /srv/app/new/file")
    assert {str(change) for change in container.diff()} == {
        "C /srv/app/index.html", "A /srv/app/new", "A /srv/app/new/file",
    }  # fmt: skip


def test_a_rollback_is_a_snapshot(container: r2d2.Container, container_factory: Any) -> None:
    before = container.snapshot()
    sh(container, "rm -r /srv/app; mkdir /srv/app")
    assert sh(container_factory(before), "cat /srv/app/index.html") == "deployed"
    assert not container.path("/srv/app/index.html").exists()
    before.remove()


@pytest.mark.r2d2(env={"STAGE": "production"}, hostname="web1")
def test_the_environment(container: r2d2.Container) -> None:
    assert sh(container, "echo $STAGE on $(hostname)") == "production on web1\n"


@pytest.mark.r2d2(readonly=True)
def test_a_service_that_needs_to_write_fails_readably(container: r2d2.Container) -> None:
    with pytest.raises(r2d2.CommandError) as told:
        sh(container, "echo x > /srv/app/index.html")
    assert "Read-only file system" in told.value.stderr


@needs("cgroup")
@pytest.mark.r2d2(limits={"pids": 30})
def test_a_fork_bomb_is_contained(container: r2d2.Container) -> None:
    script = "for i in $(seq 100); do sleep 100 & done > /dev/null 2>&1"
    assert container.run(["sh", "-c", script], stderr=subprocess.DEVNULL).returncode != 0
    assert container.running


@pytest.mark.r2d2(tmpfs_size="8m")
def test_a_full_disk(container: r2d2.Container) -> None:
    with pytest.raises(r2d2.CommandError) as told:
        sh(container, "head -c 20000000 /dev/zero > /srv/app/big")
    assert "No space left on device" in told.value.stderr
    assert sh(container, "rm /srv/app/big; echo again > /srv/app/f; cat /srv/app/f") == "again\n"


def test_a_web_server(container: r2d2.Container) -> None:
    server = container.popen(
        ["python3", "-m", "http.server", "80", "-d", "/srv/app"], stderr=subprocess.DEVNULL
    )
    wait_for_http(container, 80, contains="deployed", process=server)


def test_two_hosts_have_the_same_port(container_factory: Any) -> None:
    for _ in range(2):
        host = container_factory()
        server = host.popen(["python3", "-m", "http.server", "80"], stderr=subprocess.DEVNULL)
        wait_for_port(host, 80, process=server)


def test_a_crash_is_noticed_and_repaired(container: r2d2.Container) -> None:
    start = ["python3", "-m", "http.server", "80", "-d", "/srv/app"]
    server = container.popen(start, stderr=subprocess.DEVNULL)
    wait_for_port(container, 80, process=server)
    server.kill()
    server.wait()
    with pytest.raises(WaitTimeout):
        wait_for_port(container, 80, timeout=0.2)
    again = container.popen(start, stderr=subprocess.DEVNULL)
    wait_for_http(container, 80, contains="deployed", process=again)


def test_a_paused_service_answers_late(container: r2d2.Container) -> None:
    script = "while sleep 0.05; do date +%s%N > /srv/app/beat; done"
    container.popen(["sh", "-c", script])
    wait_for_file(container, "/srv/app/beat")
    container.pause()
    before = container.path("/srv/app/beat").read_text()
    time.sleep(0.3)
    assert container.path("/srv/app/beat").read_text() == before
    container.resume()
    wait_until(lambda: container.path("/srv/app/beat").read_text() not in ("", before))


def test_jobs_that_depend_on_each_other(container: r2d2.Container) -> None:
    sh(container, "(sleep 0.2; touch /srv/app/one; sleep 0.2; touch /srv/app/two) > /dev/null 2>&1 &")
    waits = [functools.partial(wait_for_file, container, f"/srv/app/{name}") for name in ("one", "two")]
    all_of(*waits, timeout=20)
    wait_for_command(container, ["test", "-e", "/srv/app/two"])


# Code of the project, in namespaces of its own


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield "http://127.0.0.1:8080"
        served.shutdown()
        thread.join()


@pytest.mark.isolated
@pytest.mark.parametrize("path", ["/one", "/two"])
def test_our_server_on_its_usual_port(server: str, path: str) -> None:
    with urllib.request.urlopen(server + path, timeout=10) as answer:
        assert answer.read().decode() == path


@pytest.mark.isolated
def test_there_is_no_way_out() -> None:
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=5)


@pytest.mark.isolated
def test_a_lock_file_with_a_fixed_name() -> None:
    with open("/tmp/r2d2-scenario.lock", "x") as file:
        file.write(str(os.getpid()))


# Real servers


@needs("redis")
def test_redis_expires_keys() -> None:
    import redis

    with Redis() as service, redis.from_url(service.url) as client:
        client.set("session", "x", px=100)
        wait_until(lambda: client.get("session") is None, timeout=20)


@pytest.fixture(scope="module")
def schema() -> r2d2.Image:
    return PostgreSQL.prepare(provision=_load)


def _load(service: PostgreSQL) -> None:
    service.execute(SCHEMA)


@needs("postgresql")
@pytest.mark.parametrize("amount", [60, 100])
def test_a_transfer_is_all_or_nothing(schema: r2d2.Image, amount: int) -> None:
    """Both start from the same balances, though each spends them."""
    transfer = f"""
    begin;
    update accounts set balance = balance + {amount} where name = 'd2';
    update accounts set balance = balance - {amount} where name = 'r2';
    commit;
    """
    with PostgreSQL(schema, network="none") as service:
        service.execute(transfer)
        with pytest.raises(r2d2.CommandError, match="exit status 3"):
            service.execute(transfer.replace(str(amount), "101"))
        wanted = f"d2|{amount}\nr2|{100 - amount}\n"
        assert service.execute("select * from accounts order by name") == wanted


@needs("postgresql")
def test_a_database_recovers_from_a_crash(schema: r2d2.Image) -> None:
    with PostgreSQL(schema, network="none", options={"synchronous_commit": "on"}) as service:
        service.execute("insert into accounts values ('bb', 8)")
        crashed = service.container.snapshot()  # as after a power cut: nobody was asked
    with PostgreSQL(crashed, network="none") as service:
        assert service.execute("select balance from accounts where name = 'bb'") == "8\n"
        assert "automatic recovery in progress" in service.log_text()
    crashed.remove()


@needs("nginx")
def test_nginx_serves_and_refuses(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("front")
    with Nginx(root=tmp_path) as service:
        with urllib.request.urlopen(service.url, timeout=10) as answer:
            assert answer.read() == b"front"
        with pytest.raises(urllib.error.HTTPError, match="404") as told:
            urllib.request.urlopen(f"{service.url}/none", timeout=10)
        told.value.close()
