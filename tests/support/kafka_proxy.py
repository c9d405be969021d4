"""A TCP proxy in front of a broker. It can make requests fail, and drop answers."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka.errors import OutOfOrderSequenceNumberError, UnknownError
from kafka.protocol.producer import ProduceRequest, ProduceResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.broker import Broker

# How a produce request fails. With the first two, the proxy answers with an error. After
# UNKNOWN_ERROR, an idempotent producer sends nothing more; after OUT_OF_ORDER, it takes a new epoch
# and continues. CUT_BEFORE cuts the connection before the broker has the request. CUT_AFTER cuts it
# when the broker has answered, so that the answer is lost.
UNKNOWN_ERROR, OUT_OF_ORDER = "unknown error", "out of order"
CUT_BEFORE, CUT_AFTER = "cut before", "cut after"
# The answer is lost, but the connection stays open. `lose_answer` does this to any request.
NO_ANSWER = "no answer"
_ERRORS = {UNKNOWN_ERROR: UnknownError, OUT_OF_ORDER: OutOfOrderSequenceNumberError}


class Proxy:
    """Forward the clients that connect to `port` to `broker_port`.

    Args:
        port: The port to listen on. The broker must advertise it.
        broker_port: The broker's port on 127.0.0.1.
        fails: Called with the number of each produce request, from 1. It returns how the request
            fails, or None if it is forwarded.

    Attributes:
        produced: The number of produce requests.
        failed: How many of them failed.
    """

    def __init__(self, port: int, broker_port: int, fails: Callable[[int], str | None]) -> None:
        self._broker_port = broker_port
        self._fails = fails
        self._lock = threading.Lock()
        self.produced = 0
        self.failed = 0
        # By api_key, how many answers are still passed on before one is dropped.
        self._answers_before_loss: dict[int, int] = {}
        self._listening = socket.create_server(("127.0.0.1", port))
        self._open: list[socket.socket] = [self._listening]

    @contextmanager
    def serving(self) -> Iterator[Proxy]:
        """Serve until the context ends, then cut all connections."""
        accepting = threading.Thread(target=self._accept)
        accepting.start()
        try:
            yield self
        finally:
            self._listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _accept(self) -> None:
        threads = []
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                break
            broker = socket.create_connection(("127.0.0.1", self._broker_port))
            self._open += [client, broker]
            pair = _Pair(self, client, broker)
            threads += [threading.Thread(target=pair.up), threading.Thread(target=pair.down)]
            for thread in threads[-2:]:
                thread.daemon = True
                thread.start()

    def lose_answer(self, api_key: int, *, after: int) -> None:
        """Pass on `after` answers to requests of this API, and drop the next one."""
        self._answers_before_loss[api_key] = after

    def has_lost(self, api_key: int) -> bool:
        """Return whether the answer that `lose_answer` names was dropped."""
        return api_key not in self._answers_before_loss

    def failure_of_next(self, api_key: int) -> str | None:
        """Return how the next request of this API fails, or None."""
        with self._lock:
            if api_key in self._answers_before_loss:
                self._answers_before_loss[api_key] -= 1
                if self._answers_before_loss[api_key] < 0:
                    del self._answers_before_loss[api_key]
                    return NO_ANSWER
        if api_key != ProduceRequest.API_KEY:
            return None
        with self._lock:
            self.produced += 1
            how = self._fails(self.produced)
            self.failed += how is not None
            return how


@dataclass(frozen=True)
class Proxied:
    """A broker that clients reach only through a proxy."""

    broker: Broker
    port: int

    @contextmanager
    def failing(self, fails: Callable[[int], str | None]) -> Iterator[Proxy]:
        """Run the proxy until the context ends. Only then is the broker reachable.

        Args:
            fails: Called with the number of each produce request, from 1. It returns how the
                request fails, or None if it is forwarded.
        """
        with Proxy(self.port, self.broker.port, fails).serving() as proxy:
            yield proxy


class _Pair:
    """A client's connection and the proxy's own connection to the broker."""

    def __init__(self, proxy: Proxy, client: socket.socket, broker: socket.socket) -> None:
        self._proxy, self._client, self._broker = proxy, client, broker
        self._sending = threading.Lock()
        self._cut_at: int | None = None
        self._dropped: set[int] = set()

    def up(self) -> None:
        with suppress(OSError):
            while frame := _frame(self._client):
                api_key, version, correlation_id = struct.unpack_from(">hhi", frame)
                how = self._proxy.failure_of_next(api_key)
                if how in _ERRORS:
                    answer = _refusal(frame, version, correlation_id, _ERRORS[how].errno)
                    with self._sending:
                        _send(self._client, answer)
                    continue
                if how == CUT_BEFORE:
                    break
                if how == CUT_AFTER:
                    self._cut_at = correlation_id
                if how == NO_ANSWER:
                    self._dropped.add(correlation_id)
                _send(self._broker, frame)
        self._cut()

    def down(self) -> None:
        with suppress(OSError):
            while frame := _frame(self._broker):
                (correlation_id,) = struct.unpack_from(">i", frame)
                if correlation_id == self._cut_at:
                    break
                if correlation_id in self._dropped:
                    continue
                with self._sending:
                    _send(self._client, frame)
        self._cut()

    def _cut(self) -> None:
        for each in (self._client, self._broker):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _frame(source: socket.socket) -> bytes:
    head = _exactly(source, 4)
    return _exactly(source, *struct.unpack(">i", head)) if head else b""


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = source.recv(size)
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _send(target: socket.socket, frame: bytes) -> None:
    target.sendall(struct.pack(">i", len(frame)) + frame)


def _refusal(frame: bytes, version: int, correlation_id: int, error_code: int) -> bytes:
    """Return an answer to a produce request, with this error for each partition."""
    request = ProduceRequest.decode(frame, version=version, header=True)
    response = ProduceResponse(
        version=version,
        responses=[
            ProduceResponse.TopicProduceResponse(
                version=version,
                name=topic.name,
                partition_responses=[
                    ProduceResponse.TopicProduceResponse.PartitionProduceResponse(
                        version=version,
                        index=partition.index,
                        error_code=error_code,
                        base_offset=-1,
                        log_append_time_ms=-1,
                        log_start_offset=-1,
                    )
                    for partition in topic.partition_data
                ],
            )
            for topic in request.topic_data
        ],
        throttle_time_ms=0,
    )
    response.with_header(correlation_id=correlation_id)
    encoded: bytes = response.encode(header=True)
    return encoded
