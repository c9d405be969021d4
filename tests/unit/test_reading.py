"""Requests that arrive in pieces: when a thread reads them, and when they are refused."""

from __future__ import annotations

import socket
from contextlib import closing
from selectors import DefaultSelector
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from gunicorn.http.body import ChunkedReader, LengthReader

from shared.web.server import connections, incomplete_requests, request_reader
from shared.web.server.connections import WaitingConnections
from shared.web.server.incomplete_requests import IncompleteRequests
from shared.web.server.request_reader import (
    CONTINUE,
    RequestError,
    RequestPending,
    RequestTooSlowError,
    Unreader,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = b"POST /orders HTTP/1.1\r\nHost: x\r\n\r\n"
IDLE_S = 60.0


class Client:
    """A client, and the bytes that the server has received from it."""

    def __init__(self) -> None:
        server_side, self.sock = socket.socketpair()
        server_side.settimeout(0)
        self.unreader = Unreader(server_side)

    def send(self, data: bytes) -> bool:
        """Send bytes, and return whether a thread should read the request now."""
        self.sock.sendall(data)
        return self.unreader.receive()

    def send_each(self, data: bytes) -> list[bool]:
        """Send the bytes one by one, and return the result for each."""
        return [self.send(bytes([byte])) for byte in data]

    def read_head(self) -> None:
        """Read the head that was sent, as a thread does."""
        self.unreader.rewind(queued_s=0.0)
        taken = self.unreader.read()
        self.unreader.unread(taken.partition(b"\r\n\r\n")[2])

    def expect_body(self, length: int | None, invite: Any = None) -> LengthReader | ChunkedReader:
        """Continue with a body of this length, or in chunks for None, and return its reader."""
        self.read_head()
        reader = (
            ChunkedReader(None, self.unreader)
            if length is None
            else LengthReader(self.unreader, length)
        )
        self.unreader.expect_body(reader, invite)
        return reader

    def close(self) -> None:
        self.unreader.sock.close()
        self.sock.close()


@pytest.fixture
def client() -> Iterator[Client]:
    with closing(Client()) as client:
        yield client


def test_the_time_in_the_queue_does_not_count_against_the_client(client: Client) -> None:
    client.send(HEAD)
    deadline = client.unreader.deadline

    client.unreader.rewind(queued_s=12.0)

    assert deadline is not None
    assert client.unreader.deadline == deadline + 12.0


def test_a_head_is_read_once_when_it_is_complete(client: Client) -> None:
    assert client.send_each(HEAD) == [False] * (len(HEAD) - 1) + [True]


def test_an_invalid_head_is_read_at_once(client: Client) -> None:
    assert client.send(b"GET / HTTP/1.1\n")


def test_a_head_is_read_when_it_is_too_large(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_reader, "HEAD_MAX_BYTES", 10)
    client.unreader.expect_request()

    is_ready = client.send_each(b"x" * 11)
    client.unreader.rewind(queued_s=0.0)

    assert is_ready == [False] * 10 + [True]
    assert client.unreader.read() == b"x" * 11
    with pytest.raises(RequestError, match="The headers have more than"):
        client.unreader.read()


@pytest.mark.parametrize("spare", [0, 5])
def test_a_chunked_body_within_the_limit_is_read_with_a_request_behind_it(
    client: Client, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    body = b"14\r\n" + b"x" * 0x14 + b"\r\n0\r\n\r\n"
    monkeypatch.setattr(request_reader, "BODY_MAX_BYTES", len(body) + spare)
    client.send(HEAD)
    reader = client.expect_body(length=None)

    client.sock.sendall(body + HEAD)

    assert reader.read(100) == b"x" * 0x14


def test_a_chunked_body_over_the_limit_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"14\r\n" + b"x" * 0x14 + b"\r\n0\r\n\r\n"
    monkeypatch.setattr(request_reader, "BODY_MAX_BYTES", len(body) - 1)
    client.send(HEAD)
    reader = client.expect_body(length=None)

    client.sock.sendall(body + HEAD)

    with pytest.raises(RequestError, match="The body has more than"):
        reader.read(100)


def test_a_body_of_known_length_is_read_once_when_it_is_complete(client: Client) -> None:
    client.send(HEAD + b"a")
    client.expect_body(4)
    with pytest.raises(RequestPending):
        client.unreader.read(4)

    is_ready = client.send_each(b"bcd")
    client.read_head()

    assert is_ready == [False, False, True]
    assert client.unreader.read(4) == b"abcd"


@pytest.mark.parametrize("trailer", [b"", b"X: a\r\nY: b\r\n"])
def test_a_body_in_chunks_is_read_once_when_it_is_complete(client: Client, trailer: bytes) -> None:
    """Bytes within a chunk that look like the end are not the end."""
    chunks = b"c;x=y\r\n0\r\n\r\n\r\n0\r\n\r\n\r\n3\r\nabc\r\n0\r\n" + trailer + b"\r\n"
    client.send(HEAD)
    client.expect_body(length=None)

    is_ready = client.send_each(chunks)

    assert is_ready == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize(
    "chunks", [b"-5\r\n", b"\r\n", b"zz\r\n", b"1;" + b"x" * 8192, b"0\r\n" + b"X: a\r\n" * 1400]
)
def test_invalid_chunks_are_read_at_once(client: Client, chunks: bytes) -> None:
    client.send(HEAD)
    client.expect_body(length=None)

    client.sock.sendall(chunks)
    is_ready = any(client.unreader.receive() for _ in range(2))

    assert is_ready


def test_100_continue_is_sent_once_and_only_before_the_body_arrives(client: Client) -> None:
    sent: list[bytes] = []
    client.send(HEAD)

    for _ in range(2):
        client.expect_body(4, sent.append)
        with pytest.raises(RequestPending):
            client.unreader.read(4)
    client.send(b"abcd")
    client.expect_body(4, sent.append)

    assert client.unreader.read(4) == b"abcd"
    assert sent == [CONTINUE]


def test_a_pipelined_request_is_kept_for_later(client: Client) -> None:
    client.send(HEAD + HEAD[:-1])
    client.read_head()

    client.unreader.expect_request()

    assert not client.unreader.is_ready()
    assert client.send(b"\n")
    assert client.unreader.size == len(HEAD)


def test_a_connection_that_ends_before_a_request_raises_an_error(client: Client) -> None:
    client.sock.shutdown(socket.SHUT_WR)

    with pytest.raises(ConnectionResetError):
        client.unreader.receive()


class Server:
    """Receive the requests of several clients, and record what happens to them."""

    def __init__(self) -> None:
        self.poller = DefaultSelector()
        self.started: list[Any] = []
        self.refused: list[tuple[Any, type[RequestError]]] = []
        self.closed: list[Any] = []
        self.waiting = WaitingConnections(self.poller, self.closed.append)
        self.incoming = IncompleteRequests(
            self.waiting, start=self.started.append, refuse=self._refuse, close=self.closed.append
        )
        self._clients: list[Client] = []

    def connect(self) -> Any:
        client = Client()
        self._clients.append(client)
        conn = Conn(client)
        self.incoming.expect(conn, idle_s=IDLE_S)
        return conn

    def _refuse(self, conn: Any, error: RequestError) -> None:
        self.incoming.forget(conn)
        self.refused.append((conn, type(error)))

    def turn(self) -> None:
        for key, _ in self.poller.select(0):
            key.data(key.fileobj)
        self.waiting.give_up_expired()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.poller.close()


class Conn:
    """A connection of gunicorn, with the attributes that are used here."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.sock = client.unreader.sock
        self.parser = SimpleNamespace(unreader=client.unreader)

    def send(self, data: bytes) -> None:
        self.client.sock.sendall(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(connections, "_CHECK_S", 0.0)
    with closing(Server()) as server:
        yield server


def test_a_request_is_started_when_it_is_complete(server: Server) -> None:
    conn = server.connect()

    conn.send(HEAD[:10])
    server.turn()
    before = list(server.started)
    conn.send(HEAD[10:])
    server.turn()

    assert before == []
    assert server.started == [conn]
    assert conn not in server.waiting


def test_a_client_that_closes_without_a_request_is_closed(server: Server) -> None:
    conn = server.connect()

    conn.client.sock.close()
    server.turn()

    assert server.closed == [conn]
    assert server.started == []


def test_the_time_limit_of_a_request_starts_at_its_first_byte(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_reader, "READ_S", 0.0)
    silent, slow = server.connect(), server.connect()

    slow.send(b"P")
    server.turn()

    assert server.refused == [(slow, RequestTooSlowError)]
    assert silent in server.waiting


def test_the_oldest_request_is_refused_when_memory_is_short(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incomplete_requests, "INCOMPLETE_MAX_BYTES", 100)
    conns = [server.connect() for _ in range(4)]

    for conn in conns:
        conn.send(b"x" * 40)
        server.turn()
    conns[2].send(b"x" * 40)
    server.turn()

    assert [conn for conn, _ in server.refused] == conns[:3]
    assert conns[3] in server.waiting


def test_a_request_that_waits_for_a_thread_is_counted_but_not_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incomplete_requests, "INCOMPLETE_MAX_BYTES", 60)
    complete, partial_ = server.connect(), server.connect()

    for data in (HEAD[:-1], HEAD[-1:]):
        complete.send(data)
        server.turn()
    partial_.send(b"x" * 40)
    server.turn()
    refused = [conn for conn, _ in server.refused]
    server.incoming.forget(complete)
    after = server.connect()
    after.send(b"x" * 40)
    server.turn()

    assert server.started == [complete]
    assert refused == [partial_]
    assert after in server.waiting
