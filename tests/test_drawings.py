"""Drawings tell what is there, whatever it is called, and can be shown anywhere."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import r2d2
from _guest import inside
from _needs import needs
from _nodes import nodes
from _proc import children, until
from r2d2 import drawings
from r2d2.drawings.canvas import Canvas, clean, shorten, width
from r2d2.drawings.timeline import _bars
from r2d2.overlay import Overlay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from r2d2.drawings import Drawing

SVG = "{http://www.w3.org/2000/svg}"
#: What XML forbids, what it escapes, what turns a line around, what is no UTF-8, and what is wide.
ODD = os.fsdecode("<script>&\"'\x1b[31m\n\u202e字]]>".encode() + b"\xff")


def checked(drawing: Drawing) -> ET.Element:
    """The root element of a drawing that keeps all promises of its kind."""
    root = ET.fromstring(drawing.svg)
    assert drawing.svg.encode()
    assert root.tag == SVG + "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(SVG + "title") == drawing.title
    assert root.findtext(SVG + "desc") == drawing.text != ""
    assert 0 < int(root.get("width", "")) <= 900
    kinds = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert kinds <= {"svg", "title", "desc", "style", "text", "rect", "polygon", "path"}
    assert not {name for element in root.iter() for name in element.attrib} & {
        "id",
        "href",
        "onload",
        "class",
    }
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", drawing.svg)
    assert re.fullmatch(
        r"svg:root\{[^}]*\}@media\([^)]*\)\{svg:root\{[^}]*\}\}", root.findtext(SVG + "style")
    )
    assert root.get("fill") == "currentColor"
    left, _, wide, _ = map(float, root.get("viewBox", "").split())
    for element in root.iter(SVG + "text"):
        words = "".join(element.itertext()).removeprefix(element.findtext(SVG + "title") or "")
        assert words.isprintable()
        look = {
            "mono": "monospace" in element.get("font-family", ""),
            "bold": element.get("font-weight") == "600",
        }
        size, x = float(element.get("font-size", "13")), float(element.get("x", ""))
        long = width(words, size, **look)
        start = {"middle": x - long / 2, "end": x - long}.get(element.get("text-anchor", ""), x)
        assert left <= start, f"{words!r} begins outside"
        assert start + long <= left + wide, f"{words!r} ends outside"
    return root


def words(drawing: Drawing) -> list[str]:
    """The texts of the picture itself, tooltips left out."""
    found = []
    for element in checked(drawing).iter(SVG + "text"):
        tip = element.findtext(SVG + "title") or ""
        found.append("".join(element.itertext()).removeprefix(tip))
    return found


@pytest.fixture
def container(image: r2d2.Image) -> Iterator[r2d2.Container]:
    with r2d2.Container(image, name="drawn") as c:
        yield c


@contextmanager
def running(container: r2d2.Container, args: list[str], **keywords: object) -> Iterator[r2d2.Process]:
    """A program that is killed in the end, whatever a test found."""
    process = container.popen(args, **keywords)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_namespaces_are_those_of_the_kernel(container: r2d2.Container) -> None:
    with running(container, ["sleep", "1000"]) as sleep:
        drawing = drawings.namespaces(container, sleep)
        shown = words(drawing)
        for link in os.listdir("/proc/self/ns"):
            if link.endswith("_for_children"):
                continue
            inodes = [os.stat(f"/proc/{pid}/ns/{link}").st_ino for pid in ("self", container.pid, sleep.pid)]
            assert inodes[1] == inodes[2]  # the control: the same container
            assert shown.count(str(inodes[0])) == inodes.count(inodes[0])
            assert shown.count(str(inodes[1])) == inodes.count(inodes[1])
            kind = "mount" if link == "mnt" else link
            line = next(line for line in drawing.text.splitlines() if line.startswith(f"{kind} "))
            assert f"{inodes[2]} shared" in line
            assert (f"{inodes[1]} own" in line) == (inodes[0] != inodes[1])
        assert f"pid {sleep.pid}" in shown
        assert f"it is pid {sleep.inner_pid}" in shown


def test_processes_have_their_pid_on_each_side(container: r2d2.Container) -> None:
    script = "sleep 1000 >&- & echo $!; wait"
    with running(container, ["sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        inner = int(shell.stdout.readline())
        assert until(lambda: "sleep 1000\n" in f"{drawings.processes(container)}\n")  # execve(2) was done
        drawing = drawings.processes(container)
        rows = [line.split(maxsplit=2) for line in drawing.text.splitlines()[1:]]
        inside = {int(row[0]): row[1] for row in rows}
        assert inside[os.getpid()] == "-"
        assert inside[container.pid] == "1"
        assert inside[shell.pid] == str(shell.inner_pid)
        assert sorted(map(int, set(inside.values()) - {"-"})) == sorted([1, shell.inner_pid, inner])
        shown = words(drawing)
        assert {str(container.pid), "1", str(shell.pid), str(inner)} <= set(shown)
        assert "sleep 1000" in shown


def test_a_crowd_is_cut_in_the_picture_and_whole_in_the_text(container: r2d2.Container) -> None:
    script = "for i in $(seq 80); do sleep 1000 >&- 2>&- & done; echo all; wait"
    with running(container, ["sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        shell.stdout.readline()
        drawing = drawings.processes(container)
        assert len(drawing.text.splitlines()) == 1 + 1 + 1 + 1 + 80
        assert any("23 more are not drawn" in line for line in words(drawing))
        container.run(["killall", "sleep"])


@needs("unshare")
def test_a_process_that_entered_is_shown(container: r2d2.Container) -> None:
    nsenter = ["nsenter", "-t", str(container.pid), "-U", "-p", "--preserve-credentials", "sleep", "1000"]
    with subprocess.Popen(nsenter) as entered:
        try:
            assert until(lambda: "1000" in drawings.processes(container).text)
            checked(drawings.processes(container))
        finally:
            for pid in children(entered.pid):
                os.kill(pid, 9)
            entered.wait()


def test_a_process_of_our_own_namespace_has_one_pid() -> None:
    with subprocess.Popen(["sleep", "1000"]) as sleep:
        drawing = drawings.processes(sleep.pid)
        assert "the same pids" in drawing.svg
        assert re.search(rf"^ +{sleep.pid} +{sleep.pid} ", drawing.text, re.MULTILINE)
        checked(drawing)
        sleep.kill()


def test_id_maps_are_those_of_the_kernel(container: r2d2.Container) -> None:
    drawing = drawings.id_maps(container)
    shown = words(drawing)
    with open(f"/proc/{container.pid}/uid_map") as file:
        rows = [tuple(map(int, line.split())) for line in file]
    assert rows
    for first, outer, count in rows:
        for start in (first, outer):
            assert (str(start) if count == 1 else f"{start}\u2013{start + count - 1}") in shown
        assert f"\u00d7{count}" in shown


def test_the_id_map_of_one_id() -> None:
    with r2d2.Container("scratch", userns="single") as c:
        drawing = drawings.id_maps(c)
        assert f"0 = {os.geteuid()} (\u00d71)" in drawing.text
        assert "setgroups(2) is denied" in drawing.text
        assert any("65534" in line for line in words(drawing))


def test_mounts_are_those_of_the_kernel(container: r2d2.Container) -> None:
    drawing = drawings.mounts(container)
    with open(f"/proc/{container.pid}/mountinfo") as file:
        rows = [line.split() for line in file]
    points = [line.split()[0] for line in drawing.text.splitlines()]
    assert points == [row[4] for row in rows]
    assert f"{len(rows)} mounts in this mount namespace" in " ".join(words(drawing))
    top = drawing.text.splitlines()[0]
    assert top.startswith("/  overlay rw ")
    assert "/proc/sys  proc ro" in drawing.text


def test_overlay_shows_what_the_diff_has(tmp_path: Path) -> None:
    for layer in ("first", "second", "upper"):
        (tmp_path / layer).mkdir()
    (tmp_path / "first/changed").write_text("old")
    (tmp_path / "first/untouched").write_text("stays")
    (tmp_path / "second/removed").write_text("old")
    lower = [tmp_path / "first", tmp_path / "second"]
    with Overlay(lower, tmp_path / "upper") as overlay:
        before = drawings.overlay(overlay)
        assert "✕" not in words(before)
        assert "copy-up" not in words(before)
        overlay.run(["sh", "-c", "echo new >> changed; rm removed; echo > added"], check=True)
        drawing = drawings.overlay(overlay)
    shown = words(drawing)
    for name in ("/changed", "/removed", "/added", "/untouched"):
        assert name in shown
    assert shown.count("✕") == shown.count("whiteout") == shown.count("gone") == 1
    assert shown.count("copy-up") == 1
    assert {"lower 1", "lower 2", str(tmp_path / "upper"), "new content", "old content"} <= set(shown) | {
        str(tmp_path / "upper")
    }
    assert "/removed  whiteout" in drawing.text
    assert "/changed  copied up and changed" in drawing.text
    assert "/added  new here" in drawing.text


def test_overlay_of_a_container(container: r2d2.Container) -> None:
    container.run(["sh", "-c", "echo x > /new; rm /bin/cat; echo x >> /etc/hosts"], check=True)
    drawing = drawings.overlay(container)
    assert "/usr/bin/cat  whiteout" in drawing.text
    shown = words(drawing)
    assert {"/new", "/etc/hosts", "/usr/bin/cat", "✕"} <= set(shown)
    with r2d2.Container("scratch") as empty:
        assert "no change yet" in drawings.overlay(empty).text
        checked(drawings.overlay(empty))


def connect(container: r2d2.Container, address: str, port: int) -> int:
    """The errno of a connection from inside."""
    code = f"import socket; print(socket.socket().connect_ex(({address!r}, {port})))"
    command = ["/usr/bin/python3", "-c", code]
    return int(container.run(command, capture_output=True, text=True, check=True, timeout=20).stdout)


def test_a_packet_goes_where_the_drawing_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port, closed = server.getsockname()[1], other.getsockname()[1]
        with r2d2.Container("host", network=r2d2.Slirp(host_loopback=[port])) as c:
            assert connect(c, "10.0.2.2", port) == 0
            through = drawings.packet(c, f"10.0.2.2:{port}")
            assert connect(c, "10.0.2.2", closed) == errno.ENETUNREACH
            refused = drawings.packet(c, f"10.0.2.2:{closed}")
            engine = c.network.pid
    shown = words(through)
    assert f"127.0.0.1:{port}" in shown
    assert f"engine (pid {engine})" in shown
    assert "✕" not in shown
    assert "answers ENETUNREACH" in words(refused)
    assert "✕" in words(refused)
    assert "refused" in refused.text


def test_packets_without_a_network_of_their_own(container: r2d2.Container) -> None:
    assert "ENETUNREACH" in words(drawings.packet(container))
    assert "✕" not in words(drawings.packet(container, "127.0.0.1:80"))
    with r2d2.Container("scratch", network="host") as shared:
        assert "nothing between" in words(drawings.packet(shared, "[2001:db8::1]:80"))


@pytest.mark.parametrize(
    ("rules", "destination", "passes"),
    [
        ({"deny": ["192.0.2.0/24"]}, "192.0.2.9:80", False),
        ({"deny": ["192.0.2.0/24:443"]}, "192.0.2.9:80", True),
        ({"deny": ["*:20-30"]}, "192.0.2.9:25", False),
        ({"deny": ["*"], "allow": ["192.0.2.9"]}, "192.0.2.9:25", True),
        ({"deny": ["[2001:db8::]/32:80"]}, "[2001:db8::1]:80", False),
        ({"deny": ["2001:db8::/32"]}, "[2001:db8::1]:80", False),
        ({"deny": ["[2001:db8::]/32"]}, "[2001:db8::1]:80", False),
        ({"deny": ["[2001:db8::]/32:80"]}, "192.0.2.9:80", True),
        ({"ipv6": False}, "[2001:db8::1]:80", False),
        ({}, "10.0.2.3:53", True),
        ({}, "10.0.2.3:80", False),
        ({}, "example.org:80", True),
    ],
)
def test_rules_hold_packets(rules: dict[str, object], destination: str, passes: bool) -> None:
    with r2d2.Container("scratch", network=r2d2.Slirp(**rules)) as c:
        drawing = drawings.packet(c, destination)
        assert ("✕" not in words(drawing)) == passes
        assert drawings.packet(c.network, "192.0.2.1").svg


def test_steps_are_all_there_once() -> None:
    container = r2d2.Container("host")
    before = drawings.steps(container)
    assert "none taken yet" in before.title
    with container:
        drawing = drawings.steps(container)
        explanation = container.explain()
    assert drawing.text == "\n".join(line.rstrip() for line in str(explanation).splitlines())
    bars = _bars(explanation)
    assert [n for bar in bars for n in range(bar.first, bar.last + 1)] == list(range(1, len(explanation) + 1))
    assert sum(bar.took or 0 for bar in bars) == explanation.total
    assert len(bars) < len(explanation)
    shown = words(drawing)
    for title in ("pivot_root into the new root", "set no_new_privs", "start PID 1"):
        assert title in shown
    checked(before)
    assert drawings.steps(explanation) == drawing


@needs("cgroup")
def test_what_control_groups_count() -> None:
    with r2d2.Container("scratch", limits={"memory": "64m", "pids": 50}) as c:
        drawing = drawings.cgroup(c)
        assert "limit 64 MiB" in drawing.text
        assert "processes: 1 now, limit 50" in drawing.text
        assert "memory: held by cgroup v" in drawing.text
        checked(drawing)


def test_without_a_control_group_nothing_is_counted(container: r2d2.Container) -> None:
    drawing = drawings.cgroup(container)
    assert drawing.text.count("not counted") == 3
    assert words(drawing).count("not counted: no cgroup of its own") == 3


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    for layer in ("lower " + ODD, "upper" + ODD):
        (tmp_path / layer).mkdir()
    lower, upper = tmp_path / ("lower " + ODD), tmp_path / ("upper" + ODD)
    (lower / ODD.replace("/", "")).write_text("old")
    with Overlay(lower, upper) as overlay:
        name = overlay.merged / ("new" + ODD).replace("/", "")
        name.write_text("x")
        drawing = drawings.overlay(overlay)
        mounts = drawings.mounts(overlay)
    assert "\\x1b" in drawing.text
    assert "\\u202e" in drawing.text
    assert "\\udcff" in drawing.text
    for each in (drawing, mounts):
        checked(each)
        assert "<script" not in each.svg
        assert str(each).isascii() or str(each).encode()
    mounts.save(tmp_path / "mounts.svg")
    ET.parse(tmp_path / "mounts.svg")


def test_a_command_line_is_text_and_nothing_else(container: r2d2.Container) -> None:
    with running(container, ["sh", "-c", "sleep 1000; true", ODD]):
        drawing = drawings.processes(container)
    assert "<script>" in drawing.text  # it was there
    assert "<script" not in drawing.svg
    checked(drawing)


@needs("unshare")
def test_a_network_is_drawn_with_what_its_links_do() -> None:
    with r2d2.Network("10.89.77.0/24", seed=5, name="lan") as net, nodes(net, "db", "web", "spare") as pids:
        net.link("db", "web").set(delay=0.02, jitter=0.005, rate=10_000_000)
        net.node("spare").set(loss=0.25)
        net.link("gateway", "db", both=False).set(duplicate=0.5)
        net.cut("web", "spare", both=False)
        shown = words(net.draw())
        assert {"lan", "db", "web", "spare", "gateway", "no way out"} <= {*shown}
        for member in net.members.values():
            assert f"{member.address} {member.address6}" in shown
            assert f"{member.name} ({member.device})" in shown
        assert "db ↔ web: 20 ms ±5 ms, 10 Mbit/s" in shown
        assert "gateway → db: 50 % twice" in shown
        assert "web → spare: cut, nothing passes" in shown
        assert "↔ 25 % lost" in shown
        assert "packets" not in net.draw().text
        assert net.draw() == drawings.network(net)
        net.node("spare").clear()
        inside(pids["web"], "ping", "-c1", "-W1", str(net.members["db"].address))
        inside(pids["web"], "ping", "-c1", "-W1", str(net.members["spare"].address))

        def counted() -> tuple[int, int]:
            passed = net.link("web", "db", both=False).stats.packets
            return passed, net.link("web", "spare", both=False).stats.dropped["cut"]

        before, text, after = counted(), net.draw(counters=True).text, counted()
        assert before[1] > 0
        # Neighbours are looked for at any moment, so the numbers lie between.
        passed, cut = (range(least, most + 1) for least, most in zip(before, after, strict=True))
        assert any(f"\n  web → db: {number} packets" in text for number in passed)
        assert any(f"nothing passes (0 packets, {number} cut off)" in text for number in cut)
        net.heal()
        net.link("db", "web").clear()
        assert "cut" not in net.draw().text
        assert "20 ms" not in net.draw().text
        bundle = net._repr_mimebundle_()
        assert bundle["image/svg+xml"] == net.draw().svg
    assert net._repr_mimebundle_() == {"text/plain": repr(net)}
    with pytest.raises(r2d2.ContainerClosed):
        net.draw()


@needs("unshare")
def test_a_partition_is_drawn_between_groups() -> None:
    names = [f"node{number}" for number in range(16)]
    with r2d2.Network() as net, nodes(net, *names):
        whole = net.draw()
        assert "partition" not in whole.text
        net.partition(names[:5], names[5:])
        for a in names[6:9]:
            for b in names[6:9]:
                if a != b:
                    net.link(a, b, both=False).set(delay=0.003)
        drawing = net.draw()
        shown = words(drawing)
        assert shown.count("✕ partition: nothing passes") == 1
        assert "among node6, node7, node8: 3 ms" in shown
        assert f"partition: {', '.join(names[:5])} | {', '.join(names[5:])}" in drawing.text
        assert shown.index("node4") < shown.index("✕ partition: nothing passes") < shown.index("node5")
        net.heal("node0", "node15")  # a way between the groups: what is cut are pairs now
        shown = words(net.draw())
        assert "✕ partition: nothing passes" not in shown
        assert any(each.endswith("cut, nothing passes") for each in shown)
        net.heal()
        net.link("node6", "node7").clear()
        net.link("node6", "node8").clear()
        net.link("node7", "node8").clear()
        assert net.draw() == whole


def test_a_router_is_drawn_in_both_of_its_networks(image: r2d2.Image) -> None:
    with (
        r2d2.Network(name="front") as front,
        r2d2.Network(name="back", gateway=True) as back,
        r2d2.Container(image, name="middle", network=[front.member(forward=True), back]),
        r2d2.Container(image, name="web", network=front.member(aliases=["www"])),
    ):
        drawing = front.draw(back)
        shown = words(drawing)
        assert shown.count("middle") == 2
        assert f"router, also {back.members['middle'].address} in back" in shown
        assert "as www" in shown
        assert {"front", "back", f"{back.subnet.network_address + 1}: the way out", "no way out"} <= {*shown}
        assert words(front.draw()).count("middle") == 1
        with pytest.raises(r2d2.SpecError, match="twice"):
            front.draw(front)
    for bad in ((), ("a string",)):
        with pytest.raises(r2d2.SpecError):
            drawings.network(*bad)


def test_the_same_state_is_the_same_drawing(container: r2d2.Container) -> None:
    for draw in (drawings.namespaces, drawings.id_maps, drawings.mounts, drawings.overlay, drawings.steps):
        assert draw(container) == draw(container), draw.__name__
    first = drawings.overlay(container)
    container.path("/new").write_text("x")
    assert drawings.overlay(container) != first


def test_mime_bundle_and_file(container: r2d2.Container, tmp_path: Path) -> None:
    drawing = drawings.mounts(container)
    assert drawing._repr_mimebundle_() == {"image/svg+xml": drawing.svg, "text/plain": drawing.text}
    drawing.save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == drawing.svg
    assert "Mounts of drawn" in repr(drawing)


def test_what_cannot_be_drawn(container: r2d2.Container) -> None:
    for draw in (drawings.namespaces, drawings.overlay, drawings.packet, drawings.steps, drawings.cgroup):
        with pytest.raises(r2d2.SpecError):
            draw("a string")
    with pytest.raises(r2d2.SpecError, match="at most 5"):
        drawings.namespaces(*[container] * 6)
    for bad in ("", "1.1.1.1:0", "1.1.1.1:http", "[::1]:70000"):
        with pytest.raises(r2d2.SpecError):
            drawings.packet(container, bad)
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(FileNotFoundError):
        drawings.namespaces(process.pid)
    ended = r2d2.Container("scratch")
    for draw in (drawings.namespaces, drawings.processes, drawings.mounts, drawings.cgroup, drawings.packet):
        with pytest.raises(r2d2.ContainerClosed):
            draw(ended)


def test_lines_fit_their_room() -> None:
    assert shorten("short", 100, 13) == "short"
    for text in ("a" * 200, "容器" * 100, "W" * 200, "/usr/lib/" + "x" * 200 + "/end"):
        for mono in (False, True):
            cut = shorten(text, 100, 13, mono=mono)
            assert 60 < width(cut, 13, mono=mono) <= 100
            assert "…" in cut
    assert shorten("/usr/lib/x/end", 60, 13).endswith("/end")
    assert width("容器", 10, mono=True) == 20
    assert clean("a\x00\ud800\n") == "a\\x00\\ud800\\n"
    canvas = Canvas(100, "<&>\x01")
    canvas.text(0, 10, "x" * 50)
    assert checked(canvas.drawing("one\ntwo")).find(f"{SVG}text/{SVG}title").text == "x" * 50
