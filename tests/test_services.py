"""Real servers, asked by real clients."""

from __future__ import annotations

import functools
import os
import pwd
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

import r2d2
from _needs import needs
from r2d2 import snapshot
from r2d2.testing import Nginx, PostgreSQL, Redis, wait_for_command, wait_for_log
from r2d2.testing.service import find

if TYPE_CHECKING:
    from pathlib import Path

    import pg8000.native

pytestmark = pytest.mark.timeout(600)


def notes(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@needs("redis")
def test_redis() -> None:
    import redis

    with Redis(options={"maxmemory": "10mb"}) as one, Redis() as two:
        with redis.from_url(one.url) as first, redis.from_url(two.url) as second:
            first.set("key", "value")
            assert first.get("key") == b"value"
            assert second.get("key") is None, "each has its own"
            assert first.config_get("maxmemory") == {"maxmemory": str(10 << 20)}
        wrong = one.url.replace(one.password or "", "wrong")
        with redis.from_url(wrong) as other, pytest.raises(redis.exceptions.AuthenticationError):
            other.get("key")
        assert one.port != two.port
        assert one.running
        wait_for_log(one, "Ready to accept connections", timeout=0)
        who = one.container.run(["ps", "-C", "redis-server", "-o", "uid="], capture_output=True, text=True)
        assert int(who.stdout) == (pwd.getpwnam("redis").pw_uid if os.geteuid() == 0 else 0)
    assert not one.running
    one.stop()


@needs("redis")
def test_a_service_that_cannot_start_says_why() -> None:
    with pytest.raises(r2d2.ContainerClosed, match="the program ended with status 1") as told:
        Redis(options={"maxmemory": "nonsense"}, network="none").start()
    assert "argument must be a memory value" in notes(told.value)
    server = Redis(network="none")
    with pytest.raises(r2d2.ContainerClosed, match="was not started"):
        server.url  # noqa: B018 - a property that raises
    with server:
        assert server.port == 6379
        cli = ["redis-cli", "-a", server.password or "", "ping"]
        wait_for_command(server.container, cli)
        with pytest.raises(r2d2.ContainerClosed, match="started before"):
            server.start()


def test_an_image_without_the_server(image: r2d2.Image) -> None:
    for service in (Redis(image, network="none"), Nginx(image, network="none")):
        with pytest.raises(r2d2.ImageNotFound, match="it has no") as told:
            service.start()
        assert "apt install" in notes(told.value)
    with r2d2.Container(image) as container, pytest.raises(r2d2.ImageNotFound):
        find(container, "postgres", "postgresql")


def connect(server: PostgreSQL) -> pg8000.native.Connection:
    import pg8000.native

    return pg8000.native.Connection(
        server.user, host=server.host, port=server.port, password=server.password, database=server.database
    )


@pytest.fixture
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D2_CACHE", str(tmp_path / "cache"))


@needs("postgresql")
@pytest.mark.usefixtures("_store")
def test_postgresql_fresh_each_time() -> None:
    import pg8000.native

    with PostgreSQL(options={"max_connections": "17"}) as server:
        client = connect(server)
        client.run("create table t (n int)")
        client.run("insert into t values (1)")
        assert client.run("show max_connections") == [["17"]]
        assert server.execute("select count(*) from t; select 'a'") == "1\na\n"
        client.close()
        with pytest.raises(pg8000.native.DatabaseError):
            pg8000.native.Connection("postgres", host=server.host, port=server.port, password="wrong")
        with pytest.raises(r2d2.CommandError) as told:
            server.execute("select * from missing")
        assert 'relation "missing" does not exist' in str(told.value.stderr)
    layers = snapshot.stored()
    with PostgreSQL() as server:
        client = connect(server)
        assert client.run("select count(*) from pg_tables where tablename = 't'") == [[0]]
        client.close()
    assert snapshot.stored() == layers, "initdb ran once"
    assert len(layers) == 1


@needs("postgresql")
@pytest.mark.usefixtures("_store")
def test_postgresql_from_a_provisioned_snapshot() -> None:
    calls = []

    def schema(server: PostgreSQL) -> None:
        calls.append(1)
        server.execute("create table users (name text); insert into users values ('r2');")

    image = PostgreSQL.prepare(provision=schema)
    assert PostgreSQL.prepare(provision=schema) == image
    assert calls == [1]
    with PostgreSQL(image) as one, PostgreSQL(image) as two:
        first, second = connect(one), connect(two)
        first.run("insert into users values ('d2')")
        assert first.run("select name from users order by name") == [["d2"], ["r2"]]
        assert second.run("select name from users") == [["r2"]]
        assert "database system was not properly shut down" not in one.log_text()
        first.close()
        second.close()


@needs("postgresql")
@pytest.mark.usefixtures("_store")
def test_warmed_servers_from_a_pool() -> None:
    """A server that is up in each container of a pool before it is asked for."""
    image = PostgreSQL.prepare()
    command = ["sh", "-c", "test -d /var/lib/r2d2-postgresql/data"]
    warm = functools.partial(r2d2.Container.run, args=command, check=True)
    with r2d2.Pool(image, 1, warm=warm) as pool, pool.container() as container:
        assert container.image == image


@needs("nginx")
def test_nginx(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("served")
    with Nginx(root=tmp_path) as server:
        with urllib.request.urlopen(f"{server.url}/page.html", timeout=30) as answer:
            assert answer.read() == b"served"
            assert answer.headers["Content-Type"] == "text/html"
        with pytest.raises(urllib.error.HTTPError, match="404") as told:
            urllib.request.urlopen(f"{server.url}/none", timeout=30)
        told.value.close()
        assert [line.split()[8] for line in server.access_log().splitlines()] == ["200", "404"]
    config = "server { listen 8080; location / { return 418 'teapot'; } }"
    with Nginx(config=config) as server, pytest.raises(urllib.error.HTTPError, match="418") as told:
        urllib.request.urlopen(server.url, timeout=30)
    told.value.close()
    with pytest.raises(r2d2.ContainerClosed) as closed:
        Nginx(config="nonsense;", network="none").start()
    assert 'unknown directive "nonsense"' in notes(closed.value)
