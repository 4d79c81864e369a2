"""Several machines, and what is between them."""

import time

import pytest

from r2d2.testing import wait_for_port, wait_until

pytestmark = pytest.mark.r2d2(network={"seed": 7})
PING = ["ping", "-c1", "-W1", "db"]


@pytest.fixture
def db(container_factory):
    return container_factory(name="db")


@pytest.fixture
def web(container_factory, db):
    return container_factory(name="web")


def reaches(container):
    return container.run(PING, capture_output=True).returncode == 0


def test_names_resolve(network, db, web):
    assert set(network) == {"db", "web"}
    assert reaches(web)


def test_partition_and_healing(network, db, web):
    network.partition(["db"], ["web"])
    assert not reaches(web)
    network.heal()
    wait_until(lambda: reaches(web))


def test_client_of_a_slow_link(network, db, web):
    assert reaches(web)
    network.link("db", "web").set(delay=0.1)
    before = time.monotonic()
    assert reaches(web)
    assert time.monotonic() - before >= 0.2


def test_request_is_seen_on_the_wire(network, db, web):
    db.popen(["python3", "-m", "http.server", "80", "--directory", "/srv/app"])
    wait_for_port(db, 80)
    with network.capture(protocol="tcp", nodes="db") as seen:
        code = "import urllib.request as u; print(u.urlopen('http://db/index.html').read())"
        web.run(["python3", "-c", code], check=True, capture_output=True)
    assert any(b"GET /index.html" in packet.payload for packet in seen)


def test_replica_is_left_alone(network, db, web, container_factory):
    container_factory(name="replica")
    with network.capture(protocol="icmp", nodes="replica") as seen:
        assert reaches(web)
    assert not [packet for packet in seen if not packet.destination.is_multicast]
