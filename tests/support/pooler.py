"""A transaction pooler for PostgreSQL, like PgBouncer with ``pool_mode = transaction``.

Between transactions, a client has no server connection. A transaction gets the connection that was
returned last, perhaps by another client. So a client loses its session's state, such as LISTEN.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

# The codes in place of a protocol version, from PostgreSQL's documentation, "Message Formats".
_SSL_REQUEST, _GSSENC_REQUEST = 80877103, 80877104
# The authentication messages that the client must answer.
_ASKS = {3, 5, 10, 11}
_READY, _AUTHENTICATION, _TERMINATE = b"Z", b"R", b"X"
_IDLE = b"I"


class Pooler:
    """Forward the transactions of clients that connect to `port` to `server_port`.

    Args:
        server_port: The port of PostgreSQL.
        ignored: Start-up parameters that are not forwarded, like PgBouncer's
            ``ignore_startup_parameters``.
    """

    def __init__(self, server_port: int, *, ignored: Collection[bytes] = ()) -> None:
        self._server_port = server_port
        self._ignored = ignored
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._free: list[socket.socket] = []
        self._open: list[socket.socket] = []

    @contextmanager
    def serving(self) -> Iterator[Pooler]:
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            self._listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            self._listening.close()
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError):
            self._log_in(client)
            while (message := _message(client))[:1] != _TERMINATE:
                # Each login has added a server connection, so there is always a free one.
                server = self._free.pop()
                server.sendall(message)
                while (ready := _pass_on(server, client))[5:6] != _IDLE:
                    client.sendall(ready)
                    server.sendall(_message(client))
                # Return the connection before the client knows that its transaction is over. So the
                # client's next transaction gets the same connection, if no other client takes it.
                self._free.append(server)
                client.sendall(ready)

    def _log_in(self, client: socket.socket) -> None:
        """Let a client log in over a new server connection, which all clients share afterwards."""
        server = socket.create_connection(("127.0.0.1", self._server_port))
        self._open.append(server)
        while True:
            (size,) = struct.unpack(">i", _exactly(client, 4))
            rest = _exactly(client, size - 4)
            if struct.unpack_from(">i", rest)[0] not in {_SSL_REQUEST, _GSSENC_REQUEST}:
                break
            client.sendall(b"N")
        rest = self._without_ignored(rest)
        server.sendall(struct.pack(">i", len(rest) + 4) + rest)
        while (message := _message(server))[:1] != _READY:
            client.sendall(message)
            if message[:1] == _AUTHENTICATION and struct.unpack_from(">i", message, 5)[0] in _ASKS:
                server.sendall(_message(client))
        self._free.append(server)
        client.sendall(message)

    def _without_ignored(self, startup: bytes) -> bytes:
        """Remove parameters from a start-up message, which is a version, then names and values."""
        names_and_values = startup[4:].rstrip(b"\0").split(b"\0")
        if len(names_and_values) % 2:
            names_and_values.append(b"")  # the last value was empty
        pairs = zip(names_and_values[::2], names_and_values[1::2], strict=True)
        kept = [name + b"\0" + value + b"\0" for name, value in pairs if name not in self._ignored]
        return startup[:4] + b"".join(kept) + b"\0"


def _pass_on(server: socket.socket, client: socket.socket) -> bytes:
    """Forward an answer, and return its last message, which says if a transaction is open."""
    while (message := _message(server))[:1] != _READY:
        client.sendall(message)
    return message


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, struct.unpack(">i", head[1:])[0] - 4)


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = source.recv(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
