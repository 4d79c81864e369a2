"""An upload over a slow line, with a timeout for progress.

A limit for the whole transfer would end uploads that are merely slow. The server's limit (nginx's
``client_body_timeout``) and the client's (a socket's timeout) count from the last byte instead: the slow
upload takes longer than either and succeeds; one that makes no progress is given up by both.
"""

from __future__ import annotations

import json
import subprocess
import textwrap

import r2d2
from _needs import needs
from r2d2.testing import Nginx, wait_for_file, wait_until

pytestmark = needs("nginx")

#: Seconds without a byte until either side gives up.
PATIENCE = 3
RATE = 2_000_000
SIZE = 1_250_000  # five seconds, at that rate

SERVER = f"""
server {{
    listen 8080;
    client_max_body_size 100m;
    client_body_timeout {PATIENCE}s;
    root /tmp/uploads;
    create_full_put_path on;
    dav_methods PUT;
}}
"""

CLIENT = textwrap.dedent(f"""
    import json, os, socket, sys, time
    name, size = sys.argv[1], int(sys.argv[2])
    s = socket.create_connection(("server", 8080), 20)
    s.settimeout({PATIENCE})
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)  # what is sent has nearly arrived
    began = time.monotonic()
    sent, status = 0, None
    try:
        head = [f"PUT /{{name}} HTTP/1.1", "Host: server", f"Content-Length: {{size}}", "", ""]
        s.sendall("\\r\\n".join(head).encode())
        while sent < size:
            sent += s.send(bytes(min(4096, size - sent)))
            if sent > size // 5: open("/tmp/under-way", "w").close()
        status = int(s.recv(1000).split()[1])
    except TimeoutError:
        status = "no progress"
    print(json.dumps([status, sent, time.monotonic() - began]))
""")


def test_slow_is_not_stalled() -> None:
    with (
        r2d2.Network(ipv6=False) as net,
        Nginx(name="server", config=SERVER, network=net) as server,
        r2d2.Container("host", name="client", network=net) as client,
    ):
        net.link("client", "server", both=False).set(rate=RATE)

        def command(name: str) -> list[str]:
            return ["python3", "-c", CLIENT, name, str(SIZE)]

        # Slow: the whole takes longer than anybody's patience.
        done = client.run(command("slow"), capture_output=True, text=True, check=True, timeout=100)
        status, sent, took = json.loads(done.stdout)
        assert (status, sent) == (201, SIZE)
        assert took > SIZE * 8 / RATE * 0.9 > PATIENCE
        assert server.container.path("/tmp/uploads/slow").stat().st_size == SIZE

        # Stalled: the line breaks on the way.
        client.path("/tmp/under-way").unlink()
        with client.popen(command("stalled"), stdout=subprocess.PIPE, text=True) as upload:
            wait_for_file(client, "/tmp/under-way", process=upload)
            net.cut("client", "server")
            output, _ = upload.communicate(timeout=100)
        status, sent, took = json.loads(output)
        assert status == "no progress"
        assert took >= PATIENCE
        assert SIZE // 5 < sent < SIZE
        wait_until(lambda: '"PUT /stalled HTTP/1.1" 408' in server.access_log())
        assert not server.container.path("/tmp/uploads/stalled").exists()

        # The line is back, and so is the service.
        net.heal()
        done = client.run(command("again"), capture_output=True, text=True, check=True, timeout=100)
        assert json.loads(done.stdout)[0] == 201
