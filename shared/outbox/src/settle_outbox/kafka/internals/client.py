"""What kafka-python keeps private of every client: connecting, and what it asks a broker for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from settle_outbox.kafka.internals.check import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka import KafkaConsumer, KafkaProducer

_Client = TypeVar("_Client")


def connect(client_class: Callable[..., _Client], **options: Any) -> _Client:
    """Make a client. If no broker answers, leave nothing of it behind.

    kafka-python starts a client's thread before it connects, and does not end it when that fails:
    an outage of an hour would leak hundreds of threads.

    Raises:
        KafkaError: no broker can be reached.
    """
    check()
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
    """Set `allow_auto_create_topics` where kafka-python reads it; it never stores it there.

    A broker that forgot a topic would create it again for each client that is still connected,
    with a partition count of its own.
    """
    cluster = client._cluster if hasattr(client, "_cluster") else client._metadata
    cluster.config["allow_auto_create_topics"] = False
