"""The private parts of kafka-python: reading batches, limits, joins and the version check."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import kafka
import kafka.codec
import pytest
import zstandard
from kafka import TopicPartition
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.errors import KafkaConnectionError, UnsupportedCodecError
from kafka.net.transport import KafkaTCPTransport
from kafka.record import MemoryRecords
from kafka.structs import MemberState

from settle_outbox.kafka import record_stream
from settle_outbox.kafka.internals import check, client, consumer
from settle_outbox.kafka.internals.check import PRIVATE_PARTS, KafkaVersionError, PrivateParts
from settle_outbox.kafka.internals.unreadable import UnreadableBatchError
from settle_outbox.kafka.record_stream import HEADERS_MAX, RECORD_MAX_BYTES, TooLarge
from support.segments import (
    ATTRIBUTES_AT,
    CODECS,
    COUNT_AT,
    LAST_OFFSET_DELTA_AT,
    LENGTH_AT,
    MAGIC_AT,
    RECORDS_AT,
    XERIAL,
    batch_of,
    batch_with,
    flip,
    put,
    record_bytes,
    with_checksum,
)

PARTITION = TopicPartition("orders.events", 3)
HIGH_WATERMARK = 1_000
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _patched() -> None:
    consumer.patch_consumers()


def read(*batches: bytes, at: int = 0) -> tuple[list[Any], UnreadableBatchError | None]:
    """Read a fetch of these batches as the consumer does, and return the records and the error."""
    part = Fetcher.PartitionRecords(at, PARTITION, MemoryRecords(b"".join(batches)))
    part.high_watermark = HIGH_WATERMARK
    records = []
    try:
        while part:
            records += part.take(1)
    except UnreadableBatchError as error:
        assert not part, "the part would be read again forever"
        return records, error
    return records, None


def part_of(batch: bytes, at: int = 0) -> Any:
    """Return a fetched partition with a batch."""
    return Fetcher.PartitionRecords(at, PARTITION, MemoryRecords(batch))


def offsets(records: list[Any]) -> list[int]:
    return [record.offset for record in records]


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_of_each_codec_is_read(codec: str) -> None:
    long = b"long enough to be worth it " * 100
    batch = batch_of(long, b"b", offset=5, codec=codec)

    records, error = read(batch)

    assert batch[ATTRIBUTES_AT + 1] == CODECS[codec]
    assert error is None
    assert [(record.offset, record.value) for record in records] == [(5, long), (6, b"b")]


SOUND = batch_of(b"a", b"b", offset=2)
UNREADABLE = {
    "checksum": flip(SOUND, len(SOUND) - 1),
    "future format": put(SOUND, MAGIC_AT, ">b", 3),
    "format 1": put(SOUND, MAGIC_AT, ">b", 1),
    "format 0": put(SOUND, MAGIC_AT, ">b", 0),
    "negative format": put(SOUND, MAGIC_AT, ">b", -1),
    "negative length of a record": with_checksum(put(SOUND, RECORDS_AT, ">B", 1)),
    "length beyond the end": with_checksum(put(SOUND, RECORDS_AT, ">B", 0x7E)),
    "more records than there are": with_checksum(put(SOUND, COUNT_AT, ">i", 3)),
    "fewer records than there are": with_checksum(put(SOUND, COUNT_AT, ">i", 1)),
    "no records": with_checksum(put(SOUND, COUNT_AT, ">i", 0)),
    "offset outside the batch": with_checksum(put(SOUND, RECORDS_AT + 3, ">B", 0x20)),
    "last offset before the first": with_checksum(put(SOUND, LAST_OFFSET_DELTA_AT, ">i", -2)),
    **{
        f"not in {codec}, as marked": with_checksum(put(SOUND, ATTRIBUTES_AT, ">h", number))
        for codec, number in CODECS.items()
        if number
    },
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_corrupt_batch_is_reported_whole_after_the_records_before_it(kind: str) -> None:
    before, after = batch_of(b"x", b"y"), batch_of(b"z", offset=4)

    records, error = read(before, UNREADABLE[kind], after)

    assert offsets(records) == [0, 1]
    assert error is not None
    assert not error.lacks_codec
    assert (error.partition, error.offset, error.last_offset) == (PARTITION, 2, 3)
    assert error.value == UNREADABLE[kind]


@pytest.mark.parametrize(
    ("delta", "last"),
    [(1, 3), (500, 502), (10_000, 2), (-7, 2)],
    ids=["unchanged", "within the topic", "beyond the topic", "before the batch"],
)
def test_at_the_end_of_a_fetch_the_header_gives_the_batchs_last_offset_if_plausible(
    delta: int, last: int
) -> None:
    """If it is not plausible, only one offset is skipped, so that no later record is lost."""
    corrupt = flip(put(SOUND, LAST_OFFSET_DELTA_AT, ">i", delta), len(SOUND) - 1)

    _, error = read(corrupt, at=2)

    assert error is not None
    assert error.last_offset == last


def test_a_batch_with_an_earlier_base_offset_is_unreadable() -> None:
    """The checksum does not cover the base offset. With an earlier one, reading would not end."""
    records, error = read(batch_of(b"a", b"b", offset=4), batch_of(b"c", offset=0), at=4)

    assert offsets(records) == [4, 5]
    assert error is not None
    assert error.offset == 6


@pytest.mark.parametrize("length", [-1, -40, 3])
def test_a_batch_with_a_wrong_length_is_reported(length: int) -> None:
    records, error = read(put(SOUND, LENGTH_AT, ">i", length), batch_of(b"z", offset=4), at=2)

    assert records == []
    assert error is not None
    assert error.offset == 2


def test_a_missing_codec_is_not_reported_as_corruption(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = batch_of(b"a" * 1000, codec="snappy")
    monkeypatch.setattr(kafka.codec, "snappy", None)

    _, error = read(compressed)

    assert error is not None
    assert error.lacks_codec
    assert isinstance(error.cause, UnsupportedCodecError)


def test_an_unknown_codec_is_not_reported_as_corruption() -> None:
    _, error = read(with_checksum(put(SOUND, ATTRIBUTES_AT, ">h", 7)), at=2)

    assert error is not None
    assert error.lacks_codec


@pytest.mark.parametrize("codec", CODECS)
def test_a_record_that_is_too_large_is_measured_and_its_neighbours_are_read(codec: str) -> None:
    large = b"x" * RECORD_MAX_BYTES
    batch = batch_of(b"before", large, b"after", codec=codec)

    records, error = read(batch)

    assert error is None
    before, too_large, after = records
    assert (before.value, after.value) == (b"before", b"after")
    assert (too_large.offset, too_large.timestamp, too_large.key) == (1, 1_000, None)
    assert isinstance(too_large.value, TooLarge)
    content = record_bytes(b"key", large, offset_delta=1)
    assert too_large.value.size == len(content) > RECORD_MAX_BYTES
    assert too_large.value.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("headers", [HEADERS_MAX, HEADERS_MAX + 1])
def test_a_record_with_too_many_headers_is_measured(headers: int) -> None:
    batch = batch_of(b"value", headers=[("", None)] * headers)

    records, error = read(batch)

    assert error is None
    assert isinstance(records[0].value, TooLarge) is (headers > HEADERS_MAX)


def test_a_key_or_a_header_counts_for_the_size_of_a_record() -> None:
    keyed = batch_of(b"", key=b"k" * RECORD_MAX_BYTES)
    headed = batch_of(b"", headers=[("name", b"h" * RECORD_MAX_BYTES)], offset=1)

    records, error = read(keyed, headed)

    assert error is None
    assert offsets(records) == [0, 1]
    assert all(isinstance(record.value, TooLarge) for record in records)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "none"])
def test_a_batch_that_expands_beyond_the_limit_is_measured(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_stream, "EXPANDED_MAX_BYTES", 100_000)
    bomb = batch_of(b"a", b"x" * 200_000, codec=codec)

    records, error = read(bomb)

    assert records == []
    assert error is not None
    assert error.is_too_large
    assert "100000" in error.reason
    assert isinstance(error.value, TooLarge)
    assert error.value.size == len(bomb)
    assert error.value.sha256 == hashlib.sha256(bomb).hexdigest()


def test_a_batch_of_too_many_records_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_stream, "BATCH_RECORDS_MAX", 10)

    largest, no_error = read(batch_of(*[b""] * 10))
    too_large, error = read(batch_of(*[b""] * 11))

    assert (len(largest), no_error) == (10, None)
    assert too_large == []
    assert error is not None
    assert error.is_too_large


def test_a_corrupt_batch_that_is_too_large_to_keep_is_measured() -> None:
    batch = flip(batch_of(b"x" * RECORD_MAX_BYTES), 100)

    _, error = read(batch)

    assert error is not None
    assert not error.is_too_large, (
        "the batch is fetched again, because the connection may have damaged it"
    )
    assert isinstance(error.value, TooLarge)


def test_the_records_before_a_corrupt_record_of_a_batch_are_read() -> None:
    last = batch_of(b"aaaa", b"bbbb", b"cccc", offset=2)
    # The length of the value is 6 instead of 4: as zigzag varints, 12 and 8.
    batch = with_checksum(last.replace(b"\x08bbbb", b"\x0cbbbb"))

    records, error = read(batch, batch_of(b"z", offset=5))

    assert offsets(records) == [2]
    assert error is not None
    assert (error.offset, error.last_offset, error.value) == (3, 4, batch)


def test_records_whose_offsets_go_back_are_corrupt() -> None:
    batch = batch_of(b"aaaa", b"bbbb", offset=2)
    # The offset relative to the batch is 0 instead of 1.
    repeated = with_checksum(batch.replace(b"\x02\x06key\x08bbbb", b"\x00\x06key\x08bbbb"))

    records, error = read(repeated)

    assert offsets(records) == [2]
    assert error is not None


def test_a_poll_ends_at_the_record_that_reaches_its_byte_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "POLL_MAX_BYTES", 3_000)
    batches = [batch_of(*[b"x" * 1_000] * 5, offset=offset) for offset in (0, 5)]
    parts = [part_of(batches[0]), part_of(batches[1], at=5)]
    state = Mock(highwater=None)
    fetcher = Mock(**{"_subscriptions.assignment": {PARTITION: state}})
    append = Fetcher._append  # noqa: SLF001
    drained: dict[TopicPartition, list[Any]] = defaultdict(list)

    for part in parts:
        state.position = Mock(offset=part.next_fetch_offset)
        added = append(fetcher, drained, part, 500, update_offsets=True)

    assert offsets(drained[PARTITION]) == [0, 1, 2]
    assert added == 500, "the limit of records, which ends the poll"
    assert offsets(parts[0].take(2)) == [3, 4]


def test_each_header_counts_100_bytes_in_the_limit_of_a_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fetcher.PartitionRecords, "bytes_left", 100_000)
    part = part_of(batch_of(*[b""] * 20, headers=[("", None)] * 500))

    records = part.take(500)

    assert len(records) == 2


ZSTD = zstandard.ZstdCompressor()
HOSTILE_CONTENT = {
    "zstd with a window of 128 MiB": (
        "zstd",
        zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(window_log=27)
        )
        .compressobj()
        .compress(b"x" * 1_000_000),
    ),
    "zstd with a dictionary": (
        "zstd",
        # RFC 8878, 3.1.1: one segment, the id of a dictionary (7), one raw byte.
        b"\x28\xb5\x2f\xfd\x21\x07\x01\x09\x00\x00x",
    ),
    "zstd with a wrong size": ("zstd", ZSTD.compress(b"x" * 200)[:5] + b"\xff" * 20),
    "snappy with a size of 4 GB": ("snappy", b"\xff\xff\xff\xff\x0f" + b"\0" * 20),
    "snappy without a size": ("snappy", b"\xff" * 20),
    "snappy in blocks of negative length": ("snappy", XERIAL + b"\xff\xff\xff\xfc" * 5),
    "snappy in blocks of length 0": ("snappy", XERIAL + b"\0" * 20),
    "lz4 without an end": ("lz4", kafka.codec.lz4.compress(b"x" * 200)[:-4]),
    "lz4 with a wrong size": (
        "lz4",
        kafka.codec.lz4.compress(b"x" * 200).replace(b"\xc8\0\0\0\0\0\0\0", b"\xff" * 8),
    ),
    "gzip without an end": ("gzip", gzip.compress(b"x" * 200)[:-4]),
    "gzip with a wrong checksum": ("gzip", flip(gzip.compress(b"x" * 200), -6)),
}


@pytest.mark.parametrize("kind", HOSTILE_CONTENT)
def test_invalid_compressed_content_is_unreadable(kind: str) -> None:
    codec, content = HOSTILE_CONTENT[kind]
    batch = batch_with(content, codec)

    records, error = read(batch)

    assert records == []
    assert error is not None
    assert not error.lacks_codec


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_compressed_content_in_several_parts_is_read(codec: str) -> None:
    """In gzip (RFC 1952, 2.2), zstd (RFC 8878) and LZ4, several parts may follow one another."""
    compress = {"gzip": gzip.compress, "lz4": kafka.codec.lz4.compress, "zstd": ZSTD.compress}[
        codec
    ]
    plain = batch_of(b"a" * 50, b"b" * 50)[RECORDS_AT:]
    content = b"".join(compress(plain[n : n + 40]) for n in range(0, len(plain), 40))

    records, error = read(batch_with(content, codec, count=2))

    assert error is None
    assert [record.value for record in records] == [b"a" * 50, b"b" * 50]


def test_snappy_without_blocks_is_read() -> None:
    """librdkafka writes this form."""
    plain = batch_of(b"a" * 50, b"b" * 50)[RECORDS_AT:]

    records, error = read(batch_with(kafka.codec.snappy.compress(plain), "snappy", count=2))

    assert error is None
    assert len(records) == 2


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy"])
def test_a_compressed_batch_that_ends_early_is_unreadable(codec: str) -> None:
    whole = batch_of(b"x" * 1000, codec=codec)
    shorter = with_checksum(put(whole, LENGTH_AT, ">i", len(whole) - 12 - 4)[:-4])

    records, error = read(shorter)

    assert records == []
    assert error is not None
    assert (error.last_offset, error.value) == (0, shorter)


def test_another_version_of_kafka_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "__version__", "3.0.13")
    with pytest.raises(KafkaVersionError, match=r"pip install kafka-python==3\.0\.12"):
        client.connect(Mock())


def test_the_error_names_a_missing_private_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Fetcher, "_parse_fetched_data")
    with pytest.raises(KafkaVersionError, match=r"Fetcher\._parse_fetched_data"):
        check.check()


@pytest.mark.parametrize("part", PRIVATE_PARTS, ids=lambda part: part.guarded_by)
def test_each_private_part_has_a_test_that_guards_it(part: PrivateParts) -> None:
    file, _, name = part.guarded_by.partition("::")
    (path,) = TESTS.rglob(file)

    assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_a_join_that_fails_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason to join can vanish during the join. kafka-python then forgets the failed join."""

    async def lose_connection(_: ConsumerCoordinator) -> None:
        raise KafkaConnectionError

    monkeypatch.setattr(consumer, "_original_join_and_sync", lose_connection)
    coordinator = ConsumerCoordinator.__new__(ConsumerCoordinator)
    coordinator.state = MemberState.STABLE
    coordinator.rejoin_needed = False
    with pytest.raises(KafkaConnectionError):
        asyncio.run(consumer._join_once(coordinator))  # noqa: SLF001

    assert coordinator.rejoin_needed


@pytest.mark.parametrize("size", [0, 40_000_000])
def test_a_connection_receives_a_limited_number_of_bytes(size: int) -> None:
    """The broker has closed the connection, or sends faster than the client parses."""
    client.connect(Mock())
    transport = KafkaTCPTransport(Mock(), Mock())
    left = size

    def receive(most: int) -> bytes:
        nonlocal left
        left -= (count := min(most, left))
        return b"x" * count

    transport._sock.recv = receive  # noqa: SLF001
    data, error = transport._sock_recv()  # noqa: SLF001

    assert len(data) == min(size, client.RECEIVE_BYTES)
    assert (error is None) == bool(data)


@pytest.mark.parametrize("attribute", ["_cluster", "_metadata"])
def test_no_client_asks_a_broker_to_create_topics(attribute: str) -> None:
    """A consumer and a producer keep the cluster in attributes with different names."""
    cluster = ClusterMetadata()
    cluster.add_topic("orders.events")
    asked_before = cluster.metadata_request()

    client.disable_topic_creation(Mock(spec=[attribute], **{attribute: cluster}))
    asked = cluster.metadata_request()

    assert asked_before.allow_auto_topic_creation
    assert not asked.allow_auto_topic_creation


def test_records_of_a_paused_partition_are_not_kept() -> None:
    fetcher = Fetcher(Mock(), Mock())
    paused, parsed = Mock(topic_partition=PARTITION), part_of(SOUND, at=2)
    fetcher._subscriptions.is_paused.return_value = True  # noqa: SLF001
    kept = [name for name in vars(fetcher) if name.startswith("_paused_")]

    consumer.drop_fetched_when_paused(Mock(_fetcher=fetcher))
    fetcher._completed_fetches.append(paused)  # noqa: SLF001
    fetcher._next_partition_records = parsed  # noqa: SLF001
    found = fetcher.fetched_records(10)

    assert found == ({}, False)
    assert len(kept) == 2
    assert [len(getattr(fetcher, name)) for name in kept] == [0, 0]
    assert not fetcher._completed_fetches  # noqa: SLF001
