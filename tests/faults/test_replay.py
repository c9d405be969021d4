"""A replay of many events is one transaction of short statements, with heartbeats between them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import create_engine

from settle_outbox.publish import replay
from settle_outbox.publish.lost_topics import Destination, record_topics
from settle_outbox.publish.pending import lock_shards
from settle_outbox.publish.relay import Relay
from settle_outbox.publish.replay import ReplayFilter, queue_again
from settle_outbox.runtime.process import Stop
from settle_outbox.service import load_service
from support.delivery import ORDERS, Delivery, first_appearances, read_health
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

EVENTS, PIECE = 20_000, 1_000
DAY = timedelta(days=1)
NOWHERE = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}


@pytest.fixture
def sent_delivery(orders_url: str) -> Delivery:
    """Return a delivery in whose outbox all events count as sent."""
    delivery = Delivery("", orders_url, "")
    delivery.add("a", *range(EVENTS // 2))
    delivery.add("b", *range(EVENTS // 2))
    delivery.query("orders", "DELETE FROM outbox_pending")
    return delivery


@pytest.fixture
def engine(orders_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(replay, "REPLAY_PIECE", PIECE)
    made = create_engine(orders_url, pool_size=1, max_overflow=0)
    yield made
    made.dispose()


def test_a_long_replay_is_made_of_short_statements(sent_delivery: Delivery, engine: Engine) -> None:
    pieces: list[int] = []

    with engine.begin() as connection:
        queued = queue_again(
            connection, ["orders"], ReplayFilter(since=DAY), lambda: pieces.append(1)
        )

    assert queued == sent_delivery.pending("orders") == EVENTS
    assert len(pieces) == EVENTS // PIECE + 1  # the last piece is empty


def test_no_relay_sends_between_two_pieces(sent_delivery: Delivery, engine: Engine) -> None:
    """A relay between two pieces would send a later event of a key before an earlier one."""
    sent_delivery.add("a", "later")
    other = create_engine(sent_delivery.orders_url)
    locked: list[list[int]] = []

    def lock_as_relay() -> None:
        with other.begin() as relay:
            locked.append(lock_shards(relay, 16))

    with engine.begin() as connection:
        queue_again(connection, ["orders"], ReplayFilter(since=DAY), lock_as_relay)
    with other.begin() as relay:
        after = lock_shards(relay, 16)
    other.dispose()

    assert locked == [[]] * (EVENTS // PIECE + 1)
    assert len(after) == 2  # the shards of the keys a and b


def test_a_replay_that_was_cut_off_leaves_nothing_and_begins_again(
    sent_delivery: Delivery, engine: Engine
) -> None:
    first, second = (Destination(None, {ORDERS: uuid4()}, {ORDERS: "orders"}) for _ in range(2))
    pieces = iter(range(EVENTS))

    def fail_at_piece_5() -> None:
        if next(pieces) == 5:
            raise ConnectionError

    with engine.begin() as connection:
        record_topics(connection, first, DAY)
    with pytest.raises(ConnectionError), engine.begin() as connection:
        record_topics(connection, second, DAY, fail_at_piece_5)
    assert sent_delivery.pending("orders") == 0

    with engine.begin() as connection:
        assert record_topics(connection, second, DAY).queued == {ORDERS: EVENTS}


def test_a_relay_writes_heartbeats_between_the_pieces_and_stops_when_asked(
    delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "REPLAY_PIECE", 10)
    delivery.add("a", *range(100))
    with delivery.relay("orders"):
        delivery.wait_sent("orders")
    delivery.query("orders", "UPDATE outbox_topics SET topic_id = gen_random_uuid()")
    beats: list[tuple[str, dict[str, str]]] = []
    stop = Stop()
    relay = Relay(
        load_service("orders"), delivery.settings("orders", health_dir=str(tmp_path)), stop
    )
    beat = relay._health.beat  # noqa: SLF001

    def beat_and_count(state: str, detail: str = "") -> None:
        beat(state, detail)
        beats.append((state, json.loads(read_health(tmp_path, "outbox-relay-orders"))))
        if len([each for each, _ in beats if each == "waiting"]) == 5:
            stop.request()

    monkeypatch.setattr(relay._health, "beat", beat_and_count)  # noqa: SLF001

    relay.run()

    states = [state for state, _ in beats]
    assert states == ["starting", *["waiting"] * 5]
    assert beats[-1][1]["detail"] == "events are queued again for a topic that was replaced"
    assert delivery.pending("orders") == 0
    with delivery.relay("orders"):
        wait_until(lambda: len(delivery.records(ORDERS)) == 200, what="all events to be sent again")
    assert first_appearances(delivery.records(ORDERS)) == {"a": list(range(100))}


@pytest.mark.parametrize("since", ["30000d", "999999999d"])
def test_a_replay_of_more_days_than_a_date_holds_is_a_replay_of_everything(
    sent_delivery: Delivery, since: str
) -> None:
    done = sent_delivery.run("outbox-relay", "replay", "orders", "--since", since, **NOWHERE)

    assert done.stdout == f"{EVENTS} events of orders are queued to be sent again.\n", done.stderr
