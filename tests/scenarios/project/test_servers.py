"""Servers: on their usual ports, each in a network of its own."""

import socket
import subprocess
import urllib.request

import pytest

from r2d2.testing import Nginx, Redis, wait_for_command, wait_for_file, wait_for_http, wait_for_port

SERVE = ["python3", "-m", "http.server", "80", "--directory", "/srv/app"]


def test_web_server_answers(container):
    container.popen(SERVE)
    wait_for_http(container, 80, "/index.html")


@pytest.mark.r2d2(network="slirp", ports={0: 80})
def test_web_server_from_outside(container):
    container.popen(SERVE)
    wait_for_port(container, 80)
    port = container.ports[0].host_port
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html").read()
    assert page == b"<h1>shop</h1>\n"


def test_start_up_script(container):
    container.popen(["sh", "-c", "sleep 0.2; echo done > /run/ready"])
    wait_for_file(container, "/run/ready")
    wait_for_command(container, ["grep", "done", "/run/ready"])


@pytest.mark.parametrize("number", range(2))
@pytest.mark.isolated
def test_server_on_its_usual_port(number):
    with socket.create_server(("127.0.0.1", 8080)) as server:
        client = socket.create_connection(("127.0.0.1", 8080))
        peer, _ = server.accept()
        with client, peer:
            peer.sendall(b"hello")
            assert client.recv(5) == b"hello"


@pytest.fixture
def redis():
    with Redis() as server:
        yield server


@pytest.mark.parametrize("number", range(2))
def test_redis_is_empty_for_each_test(redis, number):
    cli = ["redis-cli", "--no-auth-warning", "-u", redis.url]
    assert subprocess.check_output([*cli, "incr", "visits"], text=True).strip() == "1"


@pytest.fixture
def nginx(tmp_path):
    (tmp_path / "index.html").write_text("hello")
    with Nginx(root=tmp_path) as server:
        yield server


def test_nginx_serves_files(nginx):
    assert urllib.request.urlopen(nginx.url).read() == b"hello"
