"""Only stored events count as acknowledged, even if the broker has lost all its data.

A broker that has lost its data assigns producer ids from the start again, so an old and a new
producer can have the same id. The broker would take the events of one of them for duplicates of the
other one's events, and acknowledge them without storing them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from uuid_utils.compat import uuid7

from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly, ensure_topics
from settle_outbox.publish.pending import PendingEvent
from settle_outbox.publish.sender import Sender
from settle_outbox.service import load_service
from support.broker import EmbeddedBroker, KafkaBroker, chosen_broker
from support.delivery import ORDERS, Delivery
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle_outbox.settings import Settings
    from support.broker import Broker

BROKERS = {"embedded": EmbeddedBroker, "kafka": KafkaBroker}


@pytest.fixture(params=sorted({"embedded", chosen_broker().kind}))
def own_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with BROKERS[request.param]() as broker:
        yield broker


def events(key: str, count: int) -> list[PendingEvent]:
    return [
        PendingEvent(
            id=uuid7(),
            seq=seq,
            shard=0,
            aggregatetype="orders",
            aggregateid=key,
            type="order.created",
            payload=b"{}",
            requestid=None,
            traceparent=None,
            created_at=datetime.now(UTC),
        )
        for seq in range(1, count + 1)
    ]


def make_topics(settings: Settings) -> None:
    admin = make_admin(settings, "test")
    ensure_topics(admin, [ORDERS], settings)
    close_quietly(admin)


def test_an_event_that_an_emptied_broker_did_not_store_is_not_acknowledged(
    own_broker: Broker, payments_url: str, orders_url: str
) -> None:
    """The old sender is asked to send after the loss, although its connection has ended."""
    delivery = Delivery(payments_url, orders_url, own_broker.bootstrap)
    settings = delivery.settings("orders")
    make_topics(settings)
    old = Sender(settings, load_service("orders"))
    # This key is in another partition than "key". So in the partition of "key", neither sender has
    # sent anything before, and the first batch of each has the sequence number 0.
    assert len(old.send(events("other", 1)).acknowledged) == 1
    own_broker.kill()
    own_broker.delete_data()
    own_broker.start()
    make_topics(settings)
    new = Sender(settings, load_service("orders"))
    first = events("key", 3)
    assert new.send(first).acknowledged == first
    # The old sender must send nothing. Its batch would have the producer id and the sequence
    # numbers of the new sender's first batch, and the broker would drop it as a duplicate.
    second = events("key", 3)
    acknowledged = old.send(second).acknowledged
    new.close()
    old.close()
    kept = {dict(record.headers)["ce_id"].decode() for record in delivery.records(ORDERS)}
    assert {str(event.id) for event in first} <= kept
    assert {str(event.id) for event in acknowledged} <= kept


def test_a_sender_stops_when_its_connection_is_lost(
    own_broker: Broker, payments_url: str, orders_url: str
) -> None:
    settings = Delivery(payments_url, orders_url, own_broker.bootstrap).settings("orders")
    make_topics(settings)
    sender = Sender(settings, load_service("orders"))
    assert len(sender.send(events("key", 1)).acknowledged) == 1
    assert not sender.stopped
    own_broker.kill()
    wait_until(lambda: sender.stopped, what="the sender to notice that the connection ended")
    own_broker.start()
    assert sender.send(events("key", 1)).acknowledged == []
    sender.close()
