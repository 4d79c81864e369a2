"""nginx in front of two backends, one of which dies and comes back.

Nobody's request fails while one is left: nginx asks the next one (``proxy_next_upstream``) and leaves the
dead one alone for ``fail_timeout``. With both gone it says so.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import r2d2
from _needs import needs
from r2d2.testing import Nginx, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs("nginx")

BALANCER = """
upstream backends {
    server one:8080 max_fails=1 fail_timeout=2s;
    server two:8080 max_fails=1 fail_timeout=2s;
}
server {
    listen 8080;
    proxy_connect_timeout 2s;
    location / { proxy_pass http://backends; }
}
"""


def test_one_backend_dies_and_comes_back(tmp_path: Path) -> None:
    # The balancer asks for their addresses once, when it starts: they keep them.
    addresses = {"one": "10.80.0.11", "two": "10.80.0.12"}

    def backend(net: r2d2.Network, name: str) -> Nginx:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        (root / "index.html").write_text(name)
        return Nginx(name=name, root=root, network=net.member(addresses[name]))

    with (
        r2d2.Network("10.80.0.0/24", ipv6=False) as net,
        backend(net, "one") as one,
        backend(net, "two") as two,
        Nginx(name="front", config=BALANCER, network=net, ports=["0:8080"]) as front,
    ):

        def answers(number: int) -> Counter[str]:
            found: Counter[str] = Counter()
            for _ in range(number):
                with urllib.request.urlopen(front.url, timeout=30) as answer:
                    found[answer.read().decode()] += 1
            return found

        assert set(answers(10)) == {"one", "two"}, "in turn"

        one.stop()
        assert answers(10) == {"two": 10}
        assert "while connecting to upstream" in front.log_text()

        with backend(net, "one"):
            wait_until(lambda: answers(2)["one"] > 0)
            two.stop()
            assert answers(10) == {"one": 10}

        with pytest.raises(urllib.error.HTTPError, match=r"50[24]") as told:
            answers(1)
        told.value.close()
