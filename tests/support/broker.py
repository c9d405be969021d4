"""The broker that tests run against: Apache Kafka where it can be run, else the embedded one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from settle.stack.embedded import broker as embedded
from settle.stack.embedded import kafka
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

# Forces one of the two; where it says `kafka` and Kafka is missing, tests fail.
WHICH = "SETTLE_TEST_BROKER"
KAFKA, EMBEDDED = "kafka", "embedded"
STOP_TIMEOUT_S = 30


@cache
def chosen() -> tuple[str, str]:
    """Which broker the tests run on, and why."""
    forced = os.environ.get(WHICH)
    if forced:
        if forced not in {KAFKA, EMBEDDED}:
            raise ValueError(f"{WHICH} is {forced!r}: set it to {KAFKA} or {EMBEDDED}.")
        return forced, f"{WHICH} says so"
    lacking = kafka.missing()
    return (KAFKA, "Java is here") if lacking is None else (EMBEDDED, lacking)


def open_broker(advertised_port: int | None = None) -> Broker:
    """The chosen broker, not started yet.

    Args:
        advertised_port: what it tells clients; that of a proxy before it.
    """
    return KafkaBroker(advertised_port) if chosen()[0] == KAFKA else EmbeddedBroker(advertised_port)


class Broker(ABC):
    """A broker on a free port of 127.0.0.1, which it keeps; what it stores goes away with it."""

    def __init__(self, advertised_port: int | None = None) -> None:
        self.port = free_port()
        self._advertised_port = advertised_port or self.port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def folder(self) -> Path | None:
        """Where it keeps its data; None when in memory."""
        return None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @abstractmethod
    def start(self) -> None:
        """Start it, on what it stored, and wait until it serves."""

    @abstractmethod
    def forget(self) -> None:
        """Lose all topics and offsets. It must not run."""

    @abstractmethod
    def reset(self) -> None:
        """Be as good as new, for the next test; it runs before and after."""

    def stop(self) -> None:
        """End the broker as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the broker with no warning."""
        self._end(signal.SIGKILL)

    def discard(self) -> None:
        """End the broker and remove what it stored."""
        self._end(signal.SIGKILL)
        self.forget()

    def _start(self, command: list[str], serves: Callable[[], bool]) -> None:
        with tempfile.TemporaryFile() as log:
            process = self._process = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

            def runs_and_serves() -> bool:
                if process.poll() is None:
                    return serves()
                log.seek(0)
                raise RuntimeError(f"The broker ended at its start:\n{log.read().decode()}")

            wait_until(runs_and_serves, timeout_s=60, what="the broker to serve")

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
        except OSError:
            return False
        return True


class EmbeddedBroker(Broker):
    """The broker that `settle up` starts unless told otherwise. Its end is the end of its data."""

    def start(self) -> None:
        advertised = f"--advertised-listener-url=tcp://127.0.0.1:{self._advertised_port}"
        # Of an option given twice, it would take neither.
        self._start([*embedded.command(self.port)[:-1], advertised], self._listens)

    def forget(self) -> None:
        """It has."""

    def reset(self) -> None:
        self.kill()
        self.start()


class KafkaBroker(Broker):
    """A node of Apache Kafka."""

    def __init__(self, advertised_port: int | None = None) -> None:
        super().__init__(advertised_port)
        self._folder = Path(tempfile.mkdtemp(prefix="settle-test-kafka-"))
        self._node = kafka.Node(self._folder, self.port, free_port(), self._advertised_port)

    @property
    def folder(self) -> Path:
        return self._folder

    def start(self) -> None:
        self._start(self._node.prepare(), self._serves)

    def forget(self) -> None:
        self._node.forget()

    def discard(self) -> None:
        super().discard()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serves(self) -> bool:
        """Its port opens when the controller has let it in; then it also answers."""
        return self._listens() and (self._advertised_port != self.port or self._has_controller())

    def _has_controller(self) -> bool:
        try:
            admin = self._administration()
        except KafkaError:
            return False
        try:
            return bool(admin.describe_cluster()["controller_id"] != -1)
        except KafkaError:
            return False
        finally:
            admin.close()

    def _administration(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=2000)

    def reset(self) -> None:
        """Delete topics and groups: seconds sooner than another node."""
        admin = self._administration()
        try:
            wait_until(lambda: forget_groups(admin), timeout_s=30, what="the groups to be gone")
            wait_until(lambda: _forget_topics(admin), timeout_s=30, what="the topics to be gone")
        finally:
            admin.close()


def forget_groups(admin: KafkaAdminClient) -> bool:
    """Remove all consumer groups, with their offsets; return whether none was left."""
    groups = [each["group_id"] for each in admin.list_groups()]
    for group, described in admin.describe_groups(groups).items() if groups else ():
        _remove_members(admin, group, described["members"])
    if groups:
        admin.delete_groups(groups)  # refused to one that has members: the next try's
    return not groups


def _remove_members(admin: KafkaAdminClient, group: str, members: list[dict[str, Any]]) -> None:
    """Those that were killed; the broker would wait for them for their session's time-out."""
    ids = [MemberToRemove(member_id=member["member_id"]) for member in members]
    if ids:
        admin.remove_group_members(group, ids)


def _forget_topics(admin: KafkaAdminClient) -> bool:
    topics = [topic for topic in admin.list_topics() if not topic.startswith("__")]
    if topics:
        admin.delete_topics(topics, raise_errors=False)
    return not topics
