"""The whole stack with a PostgreSQL and a broker that tests can stop, each behind a proxy."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from settle.stack.definition import BOOTSTRAP, DATABASE_URLS, WORKERS
from settle.stack.state import StateFolder
from settle.stack.supervisor import Supervisor, SupervisorError
from support.broker import make_broker
from support.delivery import BIN, Delivery
from support.ports import free_port, with_port
from support.postgres import PostgresServer
from support.stack import Stack
from support.tcp_proxy import Wire, kafka_client, postgres_client
from support.waiting import wait_until

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator

    from settle.stack.supervisor import Process
    from support.broker import Broker

# By part of the system, the beginnings of the names of its clients at PostgreSQL and at the broker.
# A proxy disturbs the clients whose names begin with one of these.
CLIENT_NAMES = {
    "api": ("orders-api", "payments-api", "outbox-notifier"),
    "relay": ("outbox-relay", "outbox-listener"),
    "consumer": ("inbox-consumer",),
}
APIS = tuple(f"{service}-api" for service in DATABASE_URLS)
SETTLE_TIMEOUT_S = 120


class System:
    """`settle up` with a separate PostgreSQL and broker, which it reaches through proxies.

    Its data survives a restart of a server, except for the topics of an embedded broker.
    """

    def __init__(self) -> None:
        wire_port = free_port()
        self.postgres = PostgresServer()
        self.broker = make_broker(advertised_port=wire_port)
        self.wires = {
            "postgres": Wire(postgres_client, free_port(), self.postgres.port),
            "broker": Wire(kafka_client, wire_port, self.broker.port),
        }
        over_wire = {
            variable: with_port(self.postgres.url(service), self.wires["postgres"].port)
            for service, variable in DATABASE_URLS.items()
        }
        self.stack = Stack(**over_wire, **{BOOTSTRAP: f"127.0.0.1:{wire_port}"})
        self._entered = ExitStack()
        self._kept = False

    def __enter__(self) -> Self:
        with ExitStack() as entered:
            # Contexts end in reverse order, so the servers end after the stack that uses them.
            for server in (self.postgres, self.broker):
                entered.callback(self._end, server)
                server.start()
            for wire in self.wires.values():
                entered.enter_context(wire)
            entered.callback(self._take_down)
            for service in DATABASE_URLS:
                self.postgres.create_database(service)
            self.stack.up()
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def keep(self) -> list[Path]:
        """Keep all data at the end for an investigation, and return its folders."""
        self._kept = True
        folders = (self.stack.home, self.postgres.folder, self.broker.folder)
        return [folder for folder in folders if folder is not None]

    def _end(self, server: PostgresServer | Broker) -> None:
        server.stop() if self._kept else server.discard()

    def _take_down(self) -> None:
        self.stack.settle("down") if self._kept else self.stack.discard()

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.stack.home)

    @property
    def delivery(self) -> Delivery:
        """A delivery that does not use the proxies, to read state and to write records."""
        return Delivery(
            self.postgres.url("payments"), self.postgres.url("orders"), self.broker.bootstrap
        )

    def processes(self) -> dict[str, Process]:
        """Return what supervisord reports about each program, or nothing if it does not run."""
        with closing(Supervisor(self.state.socket)) as supervisor, suppress(SupervisorError):
            return supervisor.processes()
        return {}

    def pid(self, program: str) -> int | None:
        """Return the process id of a program, or of an API's worker (``orders-api worker``)."""
        name, _, worker = program.partition(" ")
        process = self.processes().get(name)
        pid = process.pid if process is not None else None
        if worker and pid is not None:
            pid = next(iter(children(pid)), None)
        return pid

    def start_another(self, program: str) -> subprocess.Popen[bytes]:
        """Start a second relay or consumer, such as ``orders-relay``, outside of supervisord."""
        service, _, part = program.partition("-")
        command = {"relay": "outbox-relay", "consumer": "inbox-consumer"}[part]
        environ = os.environ | self.state.read_env()
        del environ["HEALTH_DIR"]  # only the supervised process writes a health file
        with (self.state.logs / f"{program}-more.log").open("ab") as log:
            return subprocess.Popen(
                [str(BIN / command), "run", service], env=environ, stdout=log, stderr=log
            )

    def wait_started(self, program: str, pid: int) -> None:
        """Wait until a process of `start_another` logs that it runs."""
        log = self.state.logs / f"{program}-more.log"
        wait_until(
            lambda: f'"pid": {pid},' in log.read_text(), timeout_s=60, what=f"{program} to start"
        )

    def wait_ready(self, *programs: str, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait until these programs, or all programs, are ready."""

        def ready() -> bool:
            found = self.stack.processes()
            states = {name: found[name]["state"] for name in programs or (*APIS, *WORKERS)}
            assert set(states.values()) == {"ready"}, states
            return True

        wait_until(ready, timeout_s=timeout_s, what="the programs to be ready")


def children(pid: int) -> list[int]:
    """Return the running child processes of a process."""
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    return [pid, *(each for child in children(pid) for each in family(child))]


def send(pids: Iterator[int] | list[int], number: signal.Signals) -> None:
    """Send a signal to processes, except those that have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
