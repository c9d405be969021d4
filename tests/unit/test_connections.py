"""Connections that a worker keeps: until an event, a deadline, or a lack of room."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from typing import TYPE_CHECKING, Any

import pytest

from shared.web.server import connections
from shared.web.server.connections import WaitingConnections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LATER_S = 60.0


class Conn:
    """A connection of gunicorn, with the attributes that are used here."""

    def __init__(self) -> None:
        self.sock, self.client = socket.socketpair()


class Server:
    """The parts of a worker's main thread. It records what happens to the connections."""

    def __init__(self) -> None:
        self.poller = DefaultSelector()
        self.events: list[tuple[str, Conn]] = []
        self.waiting = WaitingConnections(self.poller, partial(self.record, "closed"))
        self._conns: list[Conn] = []

    def record(self, what: str, conn: Any) -> None:
        self.events.append((what, conn))

    def add(self, *, seconds: float = LATER_S, is_idle: bool = False) -> Conn:
        conn = Conn()
        self._conns.append(conn)
        self._wait(conn, partial(self.record, "given up"), seconds=seconds, is_idle=is_idle)
        return conn

    def _wait(
        self,
        conn: Conn,
        give_up: Callable[[Any], None],
        *,
        seconds: float = LATER_S,
        is_idle: bool = False,
    ) -> None:
        self.waiting.add(
            conn,
            EVENT_READ,
            partial(self.record, "resumed"),
            give_up,
            deadline=time.monotonic() + seconds,
            is_idle=is_idle,
        )

    def linger(self, conn: Conn) -> None:
        """Make a connection wait once more when it is given up."""

        def give_up(conn: Any) -> None:
            self.record("lingers", conn)
            self._wait(conn, partial(self.record, "given up"))

        self.waiting.remove(conn)
        self._wait(conn, give_up)

    def poll(self) -> None:
        for key, _ in self.poller.select(0):
            key.data(key.fileobj)

    def close(self) -> None:
        for conn in self._conns:
            conn.sock.close()
            conn.client.close()
        self.poller.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(connections, "_CHECK_S", 0.0)
    with closing(Server()) as server:
        yield server


def test_a_connection_is_resumed_at_each_event_until_it_is_removed(server: Server) -> None:
    conn = server.add()
    conn.client.send(b"x")

    server.poll()
    server.poll()
    server.waiting.remove(conn)
    server.poll()

    assert server.events == [("resumed", conn)] * 2
    assert conn not in server.waiting


def test_a_connection_is_given_up_after_its_deadline_and_not_earlier(server: Server) -> None:
    """This does not depend on the order in which the connections were added."""
    later, late = server.add(), server.add(seconds=0)

    server.waiting.give_up_expired()

    assert server.events == [("given up", late)]
    assert later in server.waiting


def test_the_connection_that_waits_longest_is_closed_to_make_room(server: Server) -> None:
    first, second = server.add(), server.add(seconds=0)

    server.waiting.give_up_longest()
    server.waiting.give_up_longest()
    server.waiting.give_up_longest()

    assert server.events == [("given up", first), ("given up", second)]


def test_room_is_made_at_once_even_if_a_given_up_connection_lingers(server: Server) -> None:
    conn = server.add()
    server.linger(conn)

    server.waiting.give_up_longest()

    assert server.events == [("lingers", conn), ("given up", conn)]


def test_a_connection_that_is_removed_during_a_poll_is_not_resumed(server: Server) -> None:
    """The poll has already reported the event of the connection."""
    first, second = server.add(), server.add()
    first.client.send(b"x")
    second.client.send(b"x")
    reported = server.poller.select(0)

    server.waiting.remove(first)
    server.waiting.give_up(second)
    for key, _ in reported:
        key.data(key.fileobj)

    assert server.events == [("given up", second)]


def test_only_idle_connections_are_given_up_earlier(server: Server) -> None:
    idle, busy = server.add(is_idle=True), server.add()

    server.waiting.shorten_idle(time.monotonic())
    server.waiting.give_up_expired()

    assert server.events == [("given up", idle)]
    assert busy in server.waiting


def test_a_closed_socket_is_not_waited_for(server: Server) -> None:
    conn = Conn()
    conn.sock.close()

    with conn.client:
        is_open = server.waiting.add(conn, EVENT_READ, print, print, deadline=0.0)

    assert not is_open
    assert server.events == [("closed", conn)]
