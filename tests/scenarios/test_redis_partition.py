"""A Redis primary and its replica, the link between them cut and healed.

While they cannot see each other, clients still reach both: the replica answers with what it last heard, and
the primary, once told to insist on a replica, refuses writes. After healing the replica gets what it missed,
and no more than that (a partial resynchronisation): https://redis.io/docs/latest/operate/oss_and_stack/management/replication/
"""

from __future__ import annotations

from typing import Any

import pytest

import r2d2
from _needs import needs
from r2d2.testing import Redis, wait_until

pytestmark = needs("redis")

#: Each notices within seconds, rather than a minute, that the other is gone.
NOTICE = {"repl-timeout": "3", "repl-ping-replica-period": "1"}


def test_replica_catches_up_after_a_partition() -> None:
    import redis

    with (
        r2d2.Network() as net,
        Redis(name="primary", network=net, ports=["0:6379"], options=NOTICE) as one,
        Redis(
            name="replica",
            network=net,
            ports=["0:6379"],
            options={**NOTICE, "masterauth": one.password or ""},
        ) as two,
        redis.from_url(one.url) as primary,
        redis.from_url(two.url) as replica,
    ):

        def linked() -> bool:
            state: dict[str, Any] = replica.info("replication")
            return state.get("master_link_status") == "up"

        def writes() -> bool:
            try:
                return bool(primary.set("after", "1"))
            except redis.exceptions.ResponseError:
                return False

        replica.replicaof("primary", 6379)
        wait_until(linked)
        primary.set("before", "1")
        assert primary.wait(1, 20_000) == 1, "replicas that have it"
        assert replica.get("before") == b"1"
        full = primary.info("stats")["sync_full"]
        assert full >= 1

        net.partition({"primary"}, {"replica"})
        primary.set("during", "1")
        assert primary.wait(1, 300) == 0
        assert replica.get("during") is None, "a stale read"
        wait_until(lambda: not linked())
        wait_until(lambda: primary.info("replication")["connected_slaves"] == 0)
        primary.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
            primary.set("refused", "1")

        net.heal()
        wait_until(linked)
        wait_until(lambda: replica.get("during") == b"1")
        wait_until(writes)  # it counts its replicas once a second
        assert primary.wait(1, 20_000) == 1
        assert sorted(replica.keys()) == [b"after", b"before", b"during"]
        stats = primary.info("stats")
        assert stats["sync_full"] == full
        assert stats["sync_partial_ok"] >= 1
        assert net.link("primary", "replica").stats.dropped["cut"] > 0
