"""PostgreSQL streaming replication over a bad line, and the standby that takes over.

A line of 100 ms with 1 % loss lies between primary and standby. A commit that waits for the standby is there
after the primary has died; one that did not wait, made while the line was cut, is not. The application knows
both names and asks for the one that takes writes: libpq finds it (``target_session_attrs``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

import r2d2
from _needs import needs
from r2d2.testing import PostgreSQL, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs("postgresql"), pytest.mark.timeout(300)]

#: At least so long must a commit take that waits for the standby: there and back.
ROUND_TRIP = 0.2


def schema(server: PostgreSQL) -> None:
    server.execute("create table log (line text)")


@pytest.fixture(scope="module")
def primary_image() -> r2d2.Image:
    return PostgreSQL.prepare(provision=schema)


@pytest.fixture(scope="module")
def standby_image(primary_image: r2d2.Image) -> Iterator[r2d2.Image]:
    """The same cluster, told to follow: the snapshot is the base backup that both start from."""
    with r2d2.Container(primary_image) as container:
        (data,) = container.path("/var/lib").glob("*/data")
        (data / "standby.signal").touch()
        image = container.snapshot()
    yield image
    image.remove()


def test_failover_keeps_what_was_confirmed(primary_image: r2d2.Image, standby_image: r2d2.Image) -> None:
    with (
        r2d2.Network(seed=2) as net,
        PostgreSQL(
            primary_image, name="primary", network=net, options={"synchronous_commit": "on"}
        ) as primary,
        PostgreSQL(
            standby_image,
            name="standby",
            network=net,
            options={
                "primary_conninfo": f"host=primary user=postgres password={primary.password}",
                "wal_retrieve_retry_interval": "1s",
            },
        ) as standby,
        r2d2.Container("host", name="app", network=net) as app,
    ):

        def ask(statement: str) -> str:
            url = f"postgresql://postgres:{primary.password}@primary,standby/postgres"
            url += "?target_session_attrs=read-write&connect_timeout=5"
            command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, url]
            done = app.run(command, capture_output=True, text=True, check=True, timeout=60)
            answer: str = done.stdout
            return answer

        def log(server: PostgreSQL) -> list[str]:
            return server.execute("select line from log order by line").split()

        streaming = "select count(*) from pg_stat_replication where state = 'streaming'"
        wait_until(lambda: primary.execute(streaming) == "1\n")
        with pytest.raises(r2d2.CommandError) as told:
            standby.execute("insert into log values ('refused')")
        assert "read-only transaction" in told.value.stderr

        # From here on a commit is confirmed when the standby has it, too.
        primary.execute("alter system set synchronous_standby_names = '*'")
        primary.execute("select pg_reload_conf()")
        synchronous = "select count(*) from pg_stat_replication where sync_state = 'sync'"
        wait_until(lambda: primary.execute(synchronous) == "1\n")

        line = net.link("primary", "standby")
        line.set(delay=ROUND_TRIP / 2, loss=0.01)
        confirmed: list[str] = []
        while len(confirmed) < 5 or (line.stats.dropped["loss"] == 0 and len(confirmed) < 60):
            began = time.monotonic()
            ask(f"insert into log values ('line{len(confirmed):02}')")
            assert time.monotonic() - began >= ROUND_TRIP
            confirmed.append(f"line{len(confirmed):02}")
        assert line.stats.dropped["loss"] > 0, "the line loses packets"

        net.cut("primary", "standby")
        ask("set synchronous_commit = local; insert into log values ('unconfirmed')")
        assert log(primary) == [*confirmed, "unconfirmed"]
        primary.stop()

        wait_until(
            lambda: log(standby) == confirmed
        )  # confirmed is what it has written, not yet what it shows
        assert standby.execute("select pg_promote()") == "t\n"
        ask("insert into log values ('next')")
        assert log(standby) == [*confirmed, "next"]
