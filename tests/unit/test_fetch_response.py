"""Answers to a fetch that are larger than the limit of the consumer."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import InvalidReceiveError
from kafka.protocol.consumer import FetchRequest, FetchResponse
from kafka.protocol.parser import KafkaProtocol
from kafka.record import MemoryRecords

from settle_outbox.kafka.fetch_response import replaced_batch
from settle_outbox.kafka.internals import consumer
from settle_outbox.kafka.internals.unreadable import UnreadableBatchError
from settle_outbox.kafka.record_stream import TooLarge
from support.segments import batch_of

TOPIC = "orders.events"
LIMIT = 10_000
LARGE = batch_of(b"x" * 20_000, b"y", offset=7)


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer.patch_consumers()
    monkeypatch.setattr(consumer, "FETCH_MAX_BYTES", LIMIT)


def answer(*records: bytes | None, version: int = 12) -> bytes:
    """Return an answer with the records of each partition, as a broker sends it."""
    partitions = [
        FetchResponse.FetchableTopicResponse.PartitionData(
            partition_index=number,
            error_code=0,
            high_watermark=100,
            last_stable_offset=100,
            log_start_offset=0,
            aborted_transactions=[
                FetchResponse.FetchableTopicResponse.PartitionData.AbortedTransaction(
                    producer_id=5, first_offset=6, version=version
                )
            ],
            preferred_read_replica=-1,
            records=each,
            version=version,
        )
        for number, each in enumerate(records)
    ]
    topic = FetchResponse.FetchableTopicResponse(
        topic=TOPIC, partitions=partitions, version=version
    )
    response = FetchResponse(
        version=version, throttle_time_ms=0, error_code=0, session_id=3, responses=[topic]
    )
    response.with_header(correlation_id=1)
    return bytes(response.encode(header=True, framed=True))


def receive(data: bytes, *, piece: int = 4096, version: int = 12) -> list[Any]:
    """Return the partitions that a consumer's connection reads from these bytes."""
    protocol = KafkaProtocol(client_id="test", receive_message_max_bytes=LIMIT + 1_000)
    request = FetchRequest(
        version=version, max_wait_ms=1, min_bytes=1, max_bytes=1, isolation_level=1, topics=[]
    )
    protocol.send_request(request)
    responses = [
        response
        for at in range(0, len(data), piece)
        for _, response in protocol.receive_bytes(data[at : at + piece])
    ]
    (response,) = responses
    (topic,) = response.responses
    assert (topic.topic, response.session_id) == (TOPIC, 3)
    return list(topic.partitions)


@pytest.mark.parametrize("piece", [1, 7, 4096, 1_000_000])
def test_a_too_large_batch_is_measured_while_it_arrives(piece: int) -> None:
    partitions = receive(answer(b"", LARGE, None), piece=piece)

    assert [each.partition_index for each in partitions] == [0, 1, 2]
    assert [each.high_watermark for each in partitions] == [100, 100, 100]
    assert (partitions[0].records, partitions[2].records) == (b"", None)
    assert len(partitions[1].records) < 200
    part = Fetcher.PartitionRecords(
        7, TopicPartition(TOPIC, 1), MemoryRecords(partitions[1].records)
    )
    part.high_watermark = 100
    with pytest.raises(UnreadableBatchError) as raised:
        part.take(1)
    error = raised.value
    assert (error.offset, error.last_offset, error.is_too_large) == (7, 8, True)
    assert isinstance(error.value, TooLarge)
    assert error.value.size == len(LARGE)
    assert error.value.sha256 == hashlib.sha256(LARGE).hexdigest()


def test_an_answer_within_the_limit_is_not_changed() -> None:
    small = batch_of(b"x" * 2_000)

    (partition,) = receive(answer(small))

    assert partition.records == small


@pytest.mark.parametrize("piece", [1, 7, 1_000_000])
def test_batches_beyond_the_limit_are_left_for_the_next_fetch(piece: int) -> None:
    """Some brokers send more than the consumer requested."""
    batch = batch_of(b"x" * (LIMIT // 3))
    several = answer(batch * 2 + batch[:100], batch + batch, LARGE + batch, batch)

    partitions = receive(several, piece=piece)

    first, second, third, fourth = (each.records for each in partitions)
    assert (first, second, fourth) == (batch * 2, b"", b"")
    replaced = replaced_batch(third)
    assert replaced is not None
    _, measure = replaced
    assert measure.size == len(LARGE)


@pytest.mark.parametrize("piece", [1, 1_000_000])
def test_bytes_after_the_fields_of_an_answer_end_the_connection(piece: int) -> None:
    whole = answer(LARGE)
    longer = (int.from_bytes(whole[:4]) + 3).to_bytes(4) + whole[4:] + b"end"

    with pytest.raises(InvalidReceiveError):
        receive(longer, piece=piece)


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (answer(LARGE, version=11), 11),
        (b"\0\1\0\0" + b"\xff" * 65_536, 12),
    ],
    ids=["another version", "no answer at all"],
)
def test_another_large_answer_ends_the_connection(data: bytes, version: int) -> None:
    with pytest.raises(InvalidReceiveError):
        receive(data, version=version)
