"""A relay, a consumer, and a look into topics, for the tests of delivery."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from kafka import KafkaConsumer, TopicPartition
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from shared.outbox.clients import make_admin, make_producer
from shared.outbox.consumer import Consumer
from shared.outbox.process import Stop
from shared.outbox.relay import Relay
from shared.outbox.service import Service, load_service
from shared.outbox.topics import ensure_topics
from shared.settings import Settings, read_settings
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka.consumer.fetcher import ConsumerRecord

BIN = Path(sys.executable).parent


@dataclass
class Delivery:
    """Both services' databases and a broker, to run the engine against."""

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
        with patch.dict(os.environ, self.environ):
            return replace(read_settings(service), **changed)

    def url(self, service: str) -> str:
        return {"payments": self.payments_url, "orders": self.orders_url}[service]

    @contextmanager
    def session(self, service: str) -> Iterator[Session]:
        """A transaction of a service; it commits."""
        engine = create_engine(self.url(service))
        try:
            with Session(engine) as session, session.begin():
                yield session
        finally:
            engine.dispose()

    def query(self, service: str, sql: str, **parameters: Any) -> list[Any]:
        with self.session(service) as session:
            result = session.execute(text(sql), parameters)
            return list(result.all()) if result.returns_rows else []

    def pending(self, service: str) -> int:
        count: int = self.query(service, "SELECT count(*) FROM outbox_pending")[0][0]
        return count

    @contextmanager
    def relay(self, service: str | Service, **changed: Any) -> Iterator[Stop]:
        """A relay in a thread of this process."""
        found = load_service(service) if isinstance(service, str) else service
        stop = Stop()
        with _in_thread(Relay(found, self.settings(found.name, **changed), stop), stop):
            yield stop

    @contextmanager
    def consumer(self, service: str | Service, **changed: Any) -> Iterator[Stop]:
        """A consumer in a thread of this process."""
        found = load_service(service) if isinstance(service, str) else service
        stop = Stop()
        with _in_thread(Consumer(found, self.settings(found.name, **changed), stop), stop):
            yield stop

    @contextmanager
    def process(self, *command: str, **environ: str) -> Iterator[Process]:
        """A command line of ours, as a process; killed at the end."""
        process = Process(command, {**os.environ, **self.environ, **environ})
        try:
            yield process
        finally:
            process.discard()

    def produce(
        self,
        topic: str,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        *,
        key: bytes = b"key",
        partition: int | None = None,
    ) -> None:
        """Put a record into a topic by hand, and wait until the broker has it."""
        settings = self.settings("orders")
        admin = make_admin(settings, "test")
        ensure_topics(admin, [topic], settings)
        admin.close()
        producer = make_producer(settings, "test")
        producer.send(topic, value=value, key=key, headers=headers, partition=partition).get(10)
        producer.close()

    def records(self, topic: str, *, partitions: int = 6) -> list[ConsumerRecord]:
        """All that a topic holds now, a partition after the other."""
        reader = KafkaConsumer(
            bootstrap_servers=self.bootstrap, group_id=None, enable_auto_commit=False
        )
        found: list[ConsumerRecord] = []
        try:
            for number in range(partitions):
                place = TopicPartition(topic, number)
                reader.assign([place])
                reader.seek(place, 0)
                found += _read_to_end(reader, place)
        finally:
            reader.close()
        return found


class Process:
    """A running command line of ours, and what it logs."""

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

    def _read(self) -> None:
        assert self._popen.stderr is not None
        self.lines.extend([])
        for line in self._popen.stderr:
            self.lines.append(line)

    def logged(self, event: str) -> list[str]:
        return [line for line in list(self.lines) if f'"event": "{event}"' in line]

    def wait_logged(self, event: str, *, timeout_s: float = 20) -> None:
        wait_until(lambda: self.logged(event), timeout_s=timeout_s, what=f"the log line {event}")

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, *, timeout_s: float = 30) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        code = self._popen.wait(timeout_s)
        self._reader.join(5)
        return code

    def discard(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self.wait()
        assert self._popen.stderr is not None
        self._popen.stderr.close()


def _read_to_end(reader: KafkaConsumer, place: TopicPartition) -> list[ConsumerRecord]:
    """The embedded broker's end_offsets is wrong; the high-water mark after a fetch is right."""
    found: list[ConsumerRecord] = []

    def read() -> bool:
        found.extend(reader.poll(timeout_ms=200).get(place, []))
        end = reader.highwater(place)
        return end is not None and reader.position(place) >= end

    wait_until(read, timeout_s=10, what=f"the end of {place}")
    return found


@contextmanager
def _in_thread(runner: Relay | Consumer, stop: Stop) -> Iterator[None]:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            runner.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.request()
        thread.join(30)
    assert not thread.is_alive(), "the relay or consumer did not stop"
    assert not failures, failures
