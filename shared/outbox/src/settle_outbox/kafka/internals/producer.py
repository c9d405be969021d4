"""Private parts of the producer: its connections and its sending thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka import KafkaProducer
    from kafka.net.connection import KafkaConnection


def when_connection_ends(producer: KafkaProducer, call: Callable[..., object]) -> None:
    """Call a function in the sending thread when a connection to a broker ends.

    The producer opens a new connection by itself. The function is called before anything is sent
    over the new connection.
    """
    manager = producer._sender._client._manager
    connect_to = manager.get_connection
    watched: WeakSet[KafkaConnection] = WeakSet()

    def watch(node_id: int | str, connection: KafkaConnection) -> None:
        # A bootstrap connection carries no events, and is closed after the bootstrap.
        if connection not in watched and not manager.cluster.is_bootstrap(node_id):
            watched.add(connection)
            connection.close_future.add_both(call)

    def get_connection(node_id: int | str, *arguments: Any, **options: Any) -> KafkaConnection:
        connection = connect_to(node_id, *arguments, **options)
        watch(node_id, connection)
        return connection

    manager.get_connection = get_connection
    for node_id, connection in list(manager._conns.items()):
        watch(node_id, connection)


def stop_sending(producer: KafkaProducer) -> None:
    """Make the sending thread end before it takes the next batch. Any thread may call this.

    KafkaProducer.close() would flush first.
    """
    producer._sender.force_close()


def wait_for_sending_to_end(producer: KafkaProducer, timeout_s: float) -> bool:
    """Wait for the end of the sending thread. Return whether it ended in time."""
    producer._sender.join(timeout_s)
    return not producer._sender.is_alive()
