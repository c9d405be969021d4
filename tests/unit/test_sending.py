"""Answers that clients read slowly: they are sent piece by piece, with limits of time and size."""

from __future__ import annotations

import socket
from contextlib import closing
from selectors import DefaultSelector
from typing import TYPE_CHECKING, Any

import pytest

from shared.web.server import answer_sender
from shared.web.server.answer_sender import AnswerSocket, UnsentAnswers
from shared.web.server.connections import WaitingConnections

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGE = bytes(range(256)) * 8192  # 2 MB, more than a pair of sockets holds


class Server:
    """The parts of a worker's main thread. Its clients are sockets of this process."""

    def __init__(self) -> None:
        self.poller = DefaultSelector()
        self.closed: list[Any] = []
        self.finished: list[Any] = []
        self.waiting = WaitingConnections(self.poller, self._close)
        self.unsent = UnsentAnswers(self.waiting, self._close)
        self._sockets: list[socket.socket] = []

    def answer(self, data: bytes) -> tuple[Any, socket.socket]:
        """Answer a client that does not read yet. Return the connection and the client's socket."""
        server_side, client = socket.socketpair()
        self._sockets += [server_side, client]
        conn = Conn(server_side)
        answer = AnswerSocket(server_side, "/orders")
        answer.sendall(data)
        self.unsent.add(conn, answer, then=lambda: self.finished.append(conn))
        return conn, client

    def turn(self) -> None:
        """Do one turn of the main thread's loop."""
        for key, _ in self.poller.select(0):
            key.data(key.fileobj)
        self.waiting.give_up_expired()

    def _close(self, conn: Any) -> None:
        self.closed.append(conn)
        conn.sock.close()

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self.poller.close()


class Conn:
    """A connection of gunicorn, with the attributes that are used here."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


def test_an_answer_is_sent_as_the_client_reads_it(server: Server) -> None:
    conn, client = server.answer(LARGE)
    received = bytearray()

    while not server.finished:
        received += client.recv(65536)
        server.turn()
    client.settimeout(0)
    while len(received) < len(LARGE):
        received += client.recv(65536)

    assert bytes(received) == LARGE
    assert (server.finished, server.closed) == ([conn], [])


def test_writing_does_not_wait_and_keeps_the_order_of_the_pieces() -> None:
    server_side, client = socket.socketpair()
    with server_side, client:
        answer = AnswerSocket(server_side, "/orders")

        answer.sendall(b"head")
        answer.sendall(LARGE)
        answer.sendall(b"tail")

        taken = b"head" + LARGE + b"tail"
        assert taken.endswith(bytes(answer.unsent))
        assert client.recv(4) == b"head"
        assert server_side.gettimeout() is None


def test_a_part_of_a_file_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    server_side, client = socket.socketpair()
    with server_side, client, file.open("rb") as opened:
        AnswerSocket(server_side, "/docs").sendfile(opened, offset=2, count=5)

        assert client.recv(100) == b"23456"


def test_the_oldest_answer_is_given_up_when_memory_is_short(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_sender, "UNSENT_MAX_BYTES", 2 * len(LARGE))

    first, second, third = (server.answer(LARGE)[0] for _ in range(3))
    assert server.closed == [first]
    server.answer(LARGE)

    assert server.closed == [first, second]
    assert third not in server.closed


def test_an_answer_that_is_read_too_slowly_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_sender, "WRITE_S", 0.05)
    conn, client = server.answer(LARGE)

    while not server.closed:
        client.recv(1)
        server.turn()

    assert server.closed == [conn]


def test_the_connection_of_a_gone_client_is_closed(server: Server) -> None:
    conn, client = server.answer(LARGE)
    client.close()

    server.turn()

    assert (server.closed, server.finished) == ([conn], [])


def test_a_connection_that_gunicorn_has_closed_is_closed(server: Server) -> None:
    """This happens if the app fails after it has sent a part of its answer."""
    server_side, client = socket.socketpair()
    with client:
        answer = AnswerSocket(server_side, "/orders")
        answer.sendall(LARGE)
        server_side.close()
        conn = Conn(server_side)

        server.unsent.add(conn, answer, then=lambda: server.finished.append(conn))

    assert (server.closed, server.finished) == ([conn], [])
