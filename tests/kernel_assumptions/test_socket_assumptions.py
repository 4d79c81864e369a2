"""What the engine takes for granted of the kernel's sockets (src/helper/engine/host.rs)."""

from __future__ import annotations

import errno
import select
import socket
import struct
from contextlib import closing

import pytest

SO_PEEK_OFF = 42


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    client.settimeout(10)
    peer.settimeout(10)
    return client, peer


def test_bytes_are_taken_out_of_a_stream_unread_and_the_next_look_moves_along(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """MSG_TRUNC on TCP discards without a copy; SO_PEEK_OFF (Linux 6.9 on TCP) is moved back by as much."""
    client, peer = pair
    with client, peer:
        peer.sendall(b"abcdefghi")
        client.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        assert [client.recv(3, socket.MSG_PEEK) for _ in range(2)] == [b"abc", b"def"]
        place = bytearray(b"....")
        assert client.recv_into(place, 4, socket.MSG_TRUNC) == 4
        assert place == b"....", "nothing was copied"
        assert client.recv(3, socket.MSG_PEEK) == b"ghi", "two of six seen remain before it"
        client.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        assert client.recv(9) == b"efghi"


@pytest.mark.parametrize("ours", [False, True], ids=["open", "shut"])
@pytest.mark.parametrize("theirs", [False, True], ids=["open", "shut"])
def test_what_is_closed_without_lingering_resets(
    pair: tuple[socket.socket, socket.socket], ours: bool, theirs: bool
) -> None:
    """How a guest's reset is passed on. Where both ends have been shut there is nothing left to reset."""
    client, peer = pair
    with client, peer:
        if ours:
            client.shutdown(socket.SHUT_WR)
        if theirs:
            peer.shutdown(socket.SHUT_WR)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        error = peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if ours and theirs:
            assert error == 0
        else:
            assert error in (errno.ECONNRESET, errno.EPIPE)


def test_what_is_closed_with_bytes_unread_resets(pair: tuple[socket.socket, socket.socket]) -> None:
    client, peer = pair
    with client, peer:
        peer.sendall(b"never read")
        assert select.select([client], [], [], 10)[0]
        client.close()
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_a_listening_descriptor_that_was_handed_over_is_the_same_socket() -> None:
    """Its giver may close its own; with the last one the port is free, and its clients are refused."""
    given = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    given.bind(("127.0.0.1", 0))
    name = given.getsockname()
    taken = given.dup()
    with closing(taken), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect(name)
        given.close()
        client.send(b"x")
        taken.settimeout(10)
        assert taken.recv(9) == b"x"
        taken.close()
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(9)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(name)


def test_an_empty_datagram_is_one() -> None:
    """It wakes its reader, is read as nothing, and is gone: no end of a stream."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reader,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as writer,
    ):
        reader.bind(("127.0.0.1", 0))
        writer.sendto(b"", reader.getsockname())
        writer.sendto(b"x", reader.getsockname())
        assert select.select([reader], [], [], 10)[0]
        assert [reader.recv(9), reader.recv(9)] == [b"", b"x"]


def test_a_connected_socket_has_its_datagrams_before_a_bound_one() -> None:
    """Of two sockets at one address (SO_REUSEADDR) the one connected to the sender gets what it sends."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for each in (bound, connected):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.settimeout(10)
        bound.bind(("127.0.0.1", 0))
        connected.bind(bound.getsockname())
        one.bind(("127.0.0.1", 0))
        connected.connect(one.getsockname())
        one.sendto(b"one", bound.getsockname())
        other.sendto(b"other", bound.getsockname())
        assert (connected.recv(9), bound.recv(9)) == (b"one", b"other")
