"""Run relays and consumers, and read topics and databases, for the tests of delivery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

import settle_outbox as outbox
from services.orders import orders
from services.payments import accounts
from settle_outbox import Event, ReceivedEvent
from settle_outbox.consume.consumer import Consumer
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import ensure_topics
from settle_outbox.publish.relay import Relay
from settle_outbox.runtime.process import Stop
from settle_outbox.service import Service, load_service
from settle_outbox.settings import Settings, read_settings
from support.environ import environment
from support.logs import log_plain_tracebacks
from support.waiting import wait_until

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy import CursorResult

    from settle_outbox.trace import Trace

BIN = Path(sys.executable).parent
PARTITIONS = 6
PATIENCE_S = 30
ORDERS = "orders.events"
PAYMENTS = "payments.events"


@dataclass(frozen=True)
class Record:
    """A record that a test writes to a topic."""

    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    key: bytes = b"key"
    partition: int | None = None


def headers(type_: str, event_id: UUID | None = None, **changed: Any) -> list[tuple[str, Any]]:
    """Return the headers of a valid event.

    `changed` replaces values. Its names are without ``ce_``; the value None leaves a header out.
    """
    good = {
        "id": str(event_id or uuid7()),
        "type": type_,
        "source": "/test",
        "specversion": "1.0",
    } | changed
    found: list[tuple[str, Any]] = [
        (f"ce_{name}", value.encode() if isinstance(value, str) else value)
        for name, value in good.items()
        if value is not None
    ]
    return [*found, ("content-type", b"application/json")]


def order_created(
    user_id: UUID, amount: int, *, order_id: UUID | None = None, **changed: Any
) -> Record:
    """Return a valid `order.created` event, with the headers in `changed` replaced."""
    data = {"order_id": str(order_id or uuid7()), "user_id": str(user_id), "amount": amount}
    return Record(
        json.dumps(data).encode(), headers("order.created", **changed), str(user_id).encode()
    )


def received_event(event_type: str, data: dict[str, Any], trace: Trace) -> ReceivedEvent:
    """Return an event as a handler gets it, with data that its schema has already validated."""
    return ReceivedEvent(
        id=uuid4(),
        type=event_type,
        source="/test",
        time=None,
        trace=trace,
        data=data,
        topic="test",
        partition=0,
        offset=0,
        key=None,
        headers=(),
    )


@dataclass
class Delivery:
    """The databases of both services and a broker, on which the engine runs."""

    payments_url: str
    orders_url: str
    bootstrap: str

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PAYMENTS_DATABASE_URL": self.payments_url,
            "ORDERS_DATABASE_URL": self.orders_url,
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "LOG_FORMAT": "json",
        }

    def settings(self, service: str, **changed: Any) -> Settings:
        with environment(self.environ):
            return replace(read_settings(service), **changed)

    def url(self, service: str) -> str:
        return {"payments": self.payments_url, "orders": self.orders_url}[service]

    @contextmanager
    def session(self, service: str) -> Iterator[Session]:
        """Open a session of a service's database that commits at the end."""
        engine = create_engine(self.url(service))
        try:
            with Session(engine) as session, session.begin():
                yield session
        finally:
            engine.dispose()

    def query(self, service: str, sql: str, **parameters: Any) -> list[Any]:
        with self.session(service) as session:
            # For SQL text, execute() returns a CursorResult, although it is annotated with Result.
            result = cast("CursorResult[Any]", session.execute(text(sql), parameters))
            return list(result.all()) if result.returns_rows else []

    def pending(self, service: str) -> int:
        count: int = self.query(service, "SELECT count(*) FROM outbox_pending")[0][0]
        return count

    def wait_sent(self, service: str, *, timeout_s: float = 20) -> None:
        wait_until(
            lambda: self.pending(service) == 0,
            timeout_s=timeout_s,
            what=f"the outbox of {service} to be sent",
        )

    def add(self, key: str, *data: Any, service: str = "orders") -> None:
        """Add one event for each `data` to an outbox, in one transaction."""
        with self.session(service) as session:
            outbox.add_all(session, [Event(service, key, "order.created", each) for each in data])

    # Money and orders, without the API.

    def open_account(self, balance: int) -> UUID:
        user_id = uuid7()
        with self.session("payments") as session:
            accounts.open_account(session, user_id)
            accounts.deposit(session, user_id, balance)
        return user_id

    def balance(self, user_id: UUID) -> int:
        with self.session("payments") as session:
            return accounts.read_balance(session, user_id)

    def place(self, user_id: UUID, amount: int, *, count: int = 1) -> list[UUID]:
        with self.session("orders") as session:
            return [
                orders.place_order(session, user_id=user_id, amount=amount, description="")
                for _ in range(count)
            ]

    def statuses(self) -> dict[str, int]:
        return dict(self.query("orders", "SELECT status, count(*) FROM orders GROUP BY status"))

    def charges(self) -> list[UUID]:
        """Return the ids of the charged orders, one for each charge."""
        charged = self.query("payments", "SELECT order_id FROM transfers WHERE kind = 'charge'")
        return [row.order_id for row in charged]

    def inbox(self, service: str) -> dict[str, int]:
        """Return the number of events in the inbox, by outcome."""
        return dict(self.query(service, "SELECT outcome, count(*) FROM inbox GROUP BY outcome"))

    def received(self, service: str) -> int:
        count: int = self.query(service, "SELECT count(*) FROM inbox")[0][0]
        return count

    def skipped(self, service: str) -> dict[str, int]:
        """Return the number of records by type, for types without a subscription."""
        return dict(self.query(service, "SELECT type, records FROM inbox_skipped"))

    def dead_letters(self, service: str) -> list[Any]:
        return self.query(service, "SELECT * FROM dead_letters ORDER BY id")

    # The engine, in threads and in processes.

    @contextmanager
    def relay(self, service: str | Service, **changed: Any) -> Iterator[Stop]:
        """Run a relay in a thread of this process."""
        found = load_service(service) if isinstance(service, str) else service
        settings, stop = self.settings(found.name, **changed), Stop()
        relay = Relay(found.with_topic_prefix(settings.topic_prefix), settings, stop)
        with _in_thread(relay, stop):
            yield stop

    @contextmanager
    def consumer(self, service: str | Service, **changed: Any) -> Iterator[Stop]:
        """Run a consumer in a thread of this process."""
        found = load_service(service) if isinstance(service, str) else service
        settings, stop = self.settings(found.name, **changed), Stop()
        consumer = Consumer(found.with_topic_prefix(settings.topic_prefix), settings, stop)
        with _in_thread(consumer, stop):
            yield stop

    @contextmanager
    def process(self, *command: str, **environ: str) -> Iterator[Process]:
        """Start a command line of Settle as a process, and kill it at the end."""
        process = Process(command, {**os.environ, **self.environ, **environ})
        try:
            yield process
        finally:
            process.discard()

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command line of Settle until it ends."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env={**os.environ, **self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    # The topics.

    def create_topic_with_senders_times(self, topic: str) -> None:
        """Create a topic whose records keep the timestamps that producers give them."""
        admin = make_admin(self.settings("orders"), "test")
        configs = {"message.timestamp.type": "CreateTime"}
        described = {"num_partitions": PARTITIONS, "replication_factor": 1, "configs": configs}
        admin.create_topics({topic: described})
        admin.close()

    def produce(self, topic: str, *records: Record) -> list[int]:
        """Write records to a topic, and return their offsets.

        The records of each partition are written as one batch, if they are not over 16 KiB.
        """
        settings = self.settings("orders")
        admin = make_admin(settings, "test")
        ensure_topics(admin, [topic], settings)
        admin.close()
        producer = patient_producer(self.bootstrap, linger_s=PATIENCE_S / 3)
        try:
            futures = [
                producer.send(
                    topic,
                    value=record.value,
                    key=record.key,
                    headers=record.headers,
                    partition=record.partition,
                )
                for record in records
            ]
            producer.flush(PATIENCE_S)
            return [future.get(PATIENCE_S).offset for future in futures]
        finally:
            producer.close()

    def records(self, topic: str) -> list[ConsumerRecord]:
        """Return all records of a topic, one partition after the other."""
        reader = KafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=None,
            enable_auto_commit=False,
            fetch_max_wait_ms=50,
        )
        try:
            return _read_to_end(reader, [TopicPartition(topic, n) for n in range(PARTITIONS)])
        finally:
            reader.close()

    def committed(self, service: str) -> int:
        """Return the sum of the offsets that the service's group has committed."""
        admin = make_admin(self.settings(service), "test")
        try:
            offsets = admin.list_group_offsets(service)
        except KafkaError:
            return 0
        finally:
            admin.close()
        return sum(max(0, each.offset) for group in offsets.values() for each in group.values())


def patient_producer(bootstrap: str, *, linger_s: float = 0) -> KafkaProducer:
    """Return a producer that waits long for the metadata of a new topic.

    The engine's producer gives up after 2 s, which can be too short on a loaded machine.

    Args:
        bootstrap: the address of the broker.
        linger_s: for how long it collects the records of a batch, if nobody flushes it.
    """
    return KafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        allow_auto_create_topics=False,
        max_block_ms=PATIENCE_S * 1000,
        delivery_timeout_ms=PATIENCE_S * 1000,
        request_timeout_ms=PATIENCE_S * 500,
        linger_ms=int(linger_s * 1000),
    )


def read_health(folder: Path, process: str) -> str:
    """Return the content of a process's health file; "" before the first heartbeat.

    At most one process of this kind may have a file in the folder.
    """
    return "".join(file.read_text() for file in folder.glob(f"{process}.*.json"))


def header(record: ConsumerRecord, name: str) -> str:
    """Return the value of a header that the record has exactly once."""
    (value,) = [value for key, value in record.headers if key == name]
    return str(value.decode())


def first_appearances(records: Iterable[ConsumerRecord]) -> dict[str, list[Any]]:
    """Return the events' data by key, in the order of their first appearance in the topic."""
    found: dict[str, list[Any]] = {}
    seen = set()
    for record in records:
        event_id = header(record, "ce_id")
        if event_id not in seen:
            seen.add(event_id)
            found.setdefault(record.key.decode(), []).append(json.loads(record.value))
    return found


class Process:
    """A running command line of Settle, and its log lines."""

    def __init__(self, command: tuple[str, ...], environ: dict[str, str]) -> None:
        self._popen = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def _read(self) -> None:
        assert self._popen.stderr is not None
        self.lines.extend(self._popen.stderr)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of this event."""
        lines = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def wait_logged(self, event: str, *, timeout_s: float = 20) -> None:
        def seen() -> bool:
            assert self.running or self.logged(event), f"the process ended: {self.lines}"
            return bool(self.logged(event))

        wait_until(seen, timeout_s=timeout_s, what=f"the log line {event}")

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether a SIGSTOP has stopped the process."""
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, *, timeout_s: float = 30) -> int:
        """Wait until the process ends, and return its exit code, which is negative for a signal."""
        code = self._popen.wait(timeout_s)
        self._reader.join(PATIENCE_S)
        return code

    def discard(self) -> None:
        if self.running:
            self._popen.kill()
        self.wait()
        assert self._popen.stderr is not None
        self._popen.stderr.close()


def _read_to_end(reader: KafkaConsumer, places: list[TopicPartition]) -> list[ConsumerRecord]:
    """Return all records of partitions.

    The end_offsets of the embedded broker are wrong, but the high-water mark after a fetch
    is right.
    """
    reader.assign(places)
    for place in places:
        reader.seek(place, 0)
    found: dict[TopicPartition, list[ConsumerRecord]] = {place: [] for place in places}

    def read() -> bool:
        for place, records in reader.poll(timeout_ms=200).items():
            found[place] += records
        ends = {place: reader.highwater(place) for place in places}
        return all(end is not None and reader.position(place) >= end for place, end in ends.items())

    wait_until(read, timeout_s=PATIENCE_S, what=f"the end of {places[0].topic}")
    return [record for place in places for record in found[place]]


@contextmanager
def _in_thread(runner: Relay | Consumer, stop: Stop) -> Iterator[None]:
    log_plain_tracebacks()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(runner.run)
        try:
            yield
        finally:
            stop.request()
        running.result(30)
