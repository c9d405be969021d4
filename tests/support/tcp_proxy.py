"""A wire that can be hurt: a TCP proxy before a server, which knows who of its clients is who.

All parts of a system can go over one wire, and one pair of them alone have trouble: a client of
PostgreSQL says its application_name when it connects, a client of Kafka its client_id. A client of
HTTP has no name.
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

# PostgreSQL's documentation, "Message Formats": the codes in place of a protocol version.
_SSL_REQUEST, _GSSENC_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_POLL_S = 0.02
_CHUNK = 64 * 1024
# A connection closed with this ends in a reset, not in an orderly end.
_RESETS = struct.pack("ii", 1, 0)


async def postgres_client(reader: StreamReader, writer: StreamWriter) -> tuple[str, bytes]:
    """Read who connects to PostgreSQL; its application_name, and what the server shall see."""
    while True:
        head = await reader.readexactly(8)
        size, code = struct.unpack(">ii", head)
        if code not in {_SSL_REQUEST, _GSSENC_REQUEST}:
            break
        writer.write(b"N")  # no encryption here; it goes on in plain
    rest = await reader.readexactly(size - 8)
    if code == _CANCEL_REQUEST:
        return "", head + rest
    words = rest.split(b"\0")
    parameters = dict(zip(words[::2], words[1::2], strict=False))
    return parameters.get(b"application_name", b"").decode(), head + rest


async def kafka_client(reader: StreamReader, _: StreamWriter) -> tuple[str, bytes]:
    """Read who connects to a broker; the client_id, and what the server shall see."""
    head = await reader.readexactly(4)
    frame = await reader.readexactly(struct.unpack(">i", head)[0])
    (size,) = struct.unpack_from(">h", frame, 8)  # after api_key, api_version, correlation_id
    return frame[10 : 10 + max(size, 0)].decode(), head + frame


async def http_client(_: StreamReader, __: StreamWriter) -> tuple[str, bytes]:
    """Nobody says who it is that asks by HTTP."""
    return "", b""


@dataclass(eq=False)
class _Harm:
    """What is done to the clients whose names begin with one of these."""

    who: tuple[str, ...]
    delay_s: float = 0.0
    stalled: bool = False
    cut: bool = False


@dataclass(eq=False)
class _Link:
    """A client's connection and the one to the server in its stead."""

    name: str
    client: StreamWriter
    server: StreamWriter
    left_behind: bool = False
    garbled: tuple[bytes, bytes] | None = None


class Wire:
    """Clients connect to `port`; what they send goes to `server_port`, both on 127.0.0.1.

    Args:
        greeting: reads who connects.
        port: where to listen.
        server_port: where the server listens, whenever it does.
    """

    def __init__(self, greeting: Greeting, port: int, server_port: int) -> None:
        self.port = port
        self._greeting = greeting
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire")
        self._links: set[_Link] = set()
        self._harms: list[_Harm] = []
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

    # What can be done to it. `who`: how the names of the clients begin.

    def reset(self, *who: str) -> int:
        """Reset every connection of theirs, once; they may connect again. Returns how many."""
        return asyncio.run_coroutine_threadsafe(self._reset(who), self._loop).result()

    def delayed(self, *who: str, delay_s: float) -> AbstractContextManager[None]:
        """Hold back everything they send and receive for so long, each piece of it."""
        return self._harm(_Harm(who, delay_s=delay_s))

    def stalled(self, *who: str) -> AbstractContextManager[None]:
        """Pass nothing on, and say nothing about it."""
        return self._harm(_Harm(who, stalled=True))

    def cut(self, *who: str) -> AbstractContextManager[None]:
        """End their connections, and those that they try to make meanwhile."""
        return self._harm(_Harm(who, cut=True))

    def fail_over(self) -> None:
        """Leave all connections that there are behind; those to come are to the next server."""
        for link in list(self._links):
            link.left_behind = True

    def garble(self, found: bytes, instead: bytes, *who: str) -> None:
        """Replace bytes in what the server sends over the connections that there are now."""
        assert len(found) == len(instead)
        for link in list(self._links):
            if link.name.startswith(who):
                link.garbled = found, instead

    @contextmanager
    def losing_an_answer(self) -> Iterator[None]:
        """End a connection in place of the first that a server says from now on."""
        self._loses_next = True
        yield
        assert not self._loses_next, "no server said anything"

    @contextmanager
    def _harm(self, harm: _Harm) -> Iterator[None]:
        self._harms.append(harm)
        try:
            if harm.cut:
                self.reset(*harm.who)
            yield
        finally:
            self._harms.remove(harm)

    def names(self) -> set[str]:
        """Who is connected now."""
        return {link.name for link in list(self._links)}

    # All below runs in the loop's thread.

    def _done_to(self, name: str) -> list[_Harm]:
        return [harm for harm in list(self._harms) if name.startswith(harm.who)]

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            _reset(writer)  # as a server that is down, or a client that is gone
        finally:
            self._tasks.discard(task)

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> None:
        name, first = await self._greeting(reader, writer)
        await self._hold_back(name)
        if any(harm.cut for harm in self._done_to(name)):
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
        if not self._harms:
            return
        await asyncio.sleep(sum(harm.delay_s for harm in self._done_to(name)))
        while any(harm.stalled for harm in self._done_to(name)):
            await asyncio.sleep(_POLL_S)

    async def _reset(self, who: tuple[str, ...]) -> int:
        hit = [link for link in self._links if link.name.startswith(who)]
        for link in hit:
            _reset(link.client)
            _reset(link.server)
        return len(hit)

    async def _end(self) -> None:
        self._listening.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _reset(writer: StreamWriter) -> None:
    with suppress(OSError):
        # SO_LINGER of zero: closing sends a reset, and what was not sent is gone.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)
    writer.transport.abort()
