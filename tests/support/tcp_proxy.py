"""A TCP proxy that can disturb connections, and knows the names of its clients.

All parts of a system can use one proxy, although a test disturbs only one part. A client of
PostgreSQL sends its application_name when it connects, and a client of Kafka its client_id. An HTTP
client has no name.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    Greeting = Callable[[StreamReader, StreamWriter], Awaitable[tuple[str, bytes]]]

# The codes in place of a protocol version, from PostgreSQL's documentation, "Message Formats".
_SSL_REQUEST, _GSSENC_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_POLL_S = 0.02
_CHUNK = 64 * 1024
# A connection that is closed with this option ends with a reset.
_RESETS = struct.pack("ii", 1, 0)


async def postgres_client(reader: StreamReader, writer: StreamWriter) -> tuple[str, bytes]:
    """Read a PostgreSQL client's application_name and the bytes to forward to the server."""
    while True:
        head = await reader.readexactly(8)
        size, code = struct.unpack(">ii", head)
        if code not in {_SSL_REQUEST, _GSSENC_REQUEST}:
            break
        writer.write(b"N")  # no encryption, so the client continues in plain text
    rest = await reader.readexactly(size - 8)
    if code == _CANCEL_REQUEST:
        return "", head + rest
    words = rest.split(b"\0")
    parameters = dict(zip(words[::2], words[1::2], strict=False))
    return parameters.get(b"application_name", b"").decode(), head + rest


async def kafka_client(reader: StreamReader, _: StreamWriter) -> tuple[str, bytes]:
    """Read a Kafka client's client_id and the bytes to forward to the server."""
    head = await reader.readexactly(4)
    frame = await reader.readexactly(struct.unpack(">i", head)[0])
    (size,) = struct.unpack_from(">h", frame, 8)  # after api_key, api_version, correlation_id
    return frame[10 : 10 + max(size, 0)].decode(), head + frame


async def http_client(_: StreamReader, __: StreamWriter) -> tuple[str, bytes]:
    """Return an empty name, because an HTTP client does not have one."""
    return "", b""


@dataclass(eq=False)
class _Disturbance:
    """A disturbance of the clients whose names begin with one of these texts."""

    who: tuple[str, ...]
    delay_s: float = 0.0
    stalled: bool = False
    cut: bool = False


@dataclass(eq=False)
class _Link:
    """A client's connection and the proxy's own connection to the server."""

    name: str
    client: StreamWriter
    server: StreamWriter
    left_behind: bool = False
    garbled: tuple[bytes, bytes] | None = None


class Wire:
    """Forward clients that connect to `port` to `server_port`, both on 127.0.0.1.

    Args:
        greeting: Reads the client's name.
        port: The port to listen on.
        server_port: The server's port. The server need not run yet.
    """

    def __init__(self, greeting: Greeting, port: int, server_port: int) -> None:
        self.port = port
        self._greeting = greeting
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire")
        self._links: set[_Link] = set()
        self._disturbances: list[_Disturbance] = []
        self._loses_next = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512), self._loop
        ).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # The disturbances. `who` is the beginning of the clients' names.

    def reset(self, *who: str) -> int:
        """Reset these clients' connections once, and return how many. They may connect again."""
        return asyncio.run_coroutine_threadsafe(self._reset(who), self._loop).result()

    def delayed(self, *who: str, delay_s: float) -> AbstractContextManager[None]:
        """Delay each piece of data that these clients send or receive."""
        return self._disturb(_Disturbance(who, delay_s=delay_s))

    def stalled(self, *who: str) -> AbstractContextManager[None]:
        """Forward no data of these clients, and do not close their connections."""
        return self._disturb(_Disturbance(who, stalled=True))

    def cut(self, *who: str) -> AbstractContextManager[None]:
        """Close these clients' connections, and refuse new ones until the context ends."""
        return self._disturb(_Disturbance(who, cut=True))

    def fail_over(self) -> None:
        """Forward nothing over the present connections, but keep them open. New ones are served.

        Clients see this when an address moves to another server.
        """
        for link in list(self._links):
            link.left_behind = True

    def garble(self, found: bytes, instead: bytes, *who: str) -> None:
        """Replace bytes that the server sends to these clients over the present connections."""
        assert len(found) == len(instead)
        for link in list(self._links):
            if link.name.startswith(who):
                link.garbled = found, instead

    @contextmanager
    def losing_an_answer(self) -> Iterator[None]:
        """Close the connection instead of forwarding the server's next answer."""
        self._loses_next = True
        yield
        assert not self._loses_next, "no server sent an answer"

    @contextmanager
    def _disturb(self, disturbance: _Disturbance) -> Iterator[None]:
        self._disturbances.append(disturbance)
        try:
            if disturbance.cut:
                self.reset(*disturbance.who)
            yield
        finally:
            self._disturbances.remove(disturbance)

    def names(self) -> set[str]:
        """Return the names of the connected clients."""
        return {link.name for link in list(self._links)}

    # The methods below run in the thread of the event loop.

    def _disturbances_of(self, name: str) -> list[_Disturbance]:
        return [
            disturbance
            for disturbance in list(self._disturbances)
            if name.startswith(disturbance.who)
        ]

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            _reset(writer)  # the client sees the same as from a server that is down
        finally:
            self._tasks.discard(task)

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> None:
        name, first = await self._greeting(reader, writer)
        await self._hold_back(name)
        if any(disturbance.cut for disturbance in self._disturbances_of(name)):
            _reset(writer)
            return
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        link = _Link(name, writer, to_server)
        self._links.add(link)
        try:
            to_server.write(first)
            await self._both_ways(link, reader, from_server)
        finally:
            self._links.discard(link)
            for each in (writer, to_server):
                each.close()

    async def _both_ways(
        self, link: _Link, reader: StreamReader, from_server: StreamReader
    ) -> None:
        pumps = [
            asyncio.create_task(self._pump(link, reader, link.server)),
            asyncio.create_task(self._pump(link, from_server, link.client)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, link: _Link, source: StreamReader, target: StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._hold_back(link.name)
                while link.left_behind:
                    await asyncio.sleep(_POLL_S)
                if self._loses_next and target is link.client:
                    self._loses_next = False
                    return
                if link.garbled and target is link.client:
                    data = data.replace(*link.garbled)
                target.write(data)
                await target.drain()

    async def _hold_back(self, name: str) -> None:
        if not self._disturbances:
            return
        await asyncio.sleep(sum(disturbance.delay_s for disturbance in self._disturbances_of(name)))
        while any(disturbance.stalled for disturbance in self._disturbances_of(name)):
            await asyncio.sleep(_POLL_S)

    async def _reset(self, who: tuple[str, ...]) -> int:
        affected = [link for link in self._links if link.name.startswith(who)]
        for link in affected:
            _reset(link.client)
            _reset(link.server)
        return len(affected)

    async def _end(self) -> None:
        self._listening.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _reset(writer: StreamWriter) -> None:
    with suppress(OSError):
        # With SO_LINGER of zero, closing sends a reset and drops unsent data.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)
    writer.transport.abort()
