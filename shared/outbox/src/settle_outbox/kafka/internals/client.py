"""Private parts of all clients: connecting, and the creation of topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from kafka.errors import KafkaConnectionError, KafkaError
from kafka.net.compat import KafkaNetClient
from kafka.net.transport import KafkaTCPTransport

from settle_outbox.kafka.internals.check import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka import KafkaConsumer, KafkaProducer

_Client = TypeVar("_Client")

# Maximum bytes that a connection receives before it parses them.
RECEIVE_BYTES = 256 * 1024


def connect(client_class: Callable[..., _Client], **options: Any) -> _Client:
    """Return a connected client. If no broker responds, end its thread.

    kafka-python starts a client's thread before it connects, and does not end it if that fails. An
    outage of an hour would leak hundreds of threads.

    Raises:
        KafkaError: no broker can be reached.
    """
    check()
    KafkaTCPTransport._sock_recv = _receive
    nets: list[KafkaNetClient] = []

    def net_client(**net_options: Any) -> KafkaNetClient:
        nets.append(KafkaNetClient(**net_options))
        return nets[-1]

    try:
        return client_class(kafka_client=net_client, **options)
    except KafkaError:
        for net in nets:
            net.close()
        raise


def disable_topic_creation(client: KafkaConsumer | KafkaProducer) -> None:
    """Set `allow_auto_create_topics` to False where kafka-python reads it.

    kafka-python does not store the client's option there. If a topic was lost, the broker would
    create it again for each connected client, with a default partition count.
    """
    cluster = client._cluster if hasattr(client, "_cluster") else client._metadata
    cluster.config["allow_auto_create_topics"] = False


def _receive(transport: KafkaTCPTransport) -> tuple[bytes, KafkaError | None]:
    """Receive bytes, up to a limit. Return them, and the error that ends the connection.

    kafka-python receives until there are no more bytes. A broker that sends faster than they are
    received would fill the memory with one response.
    """
    try:
        data = transport._sock.recv(RECEIVE_BYTES)
    except (BlockingIOError, InterruptedError):
        return b"", None
    except (OSError, AttributeError) as error:  # no socket: another thread closed it
        return b"", KafkaConnectionError(error)
    return data, None if data else KafkaConnectionError("socket disconnected")
