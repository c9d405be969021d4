"""Starts the whole stack, in an order in which each part finds what it needs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from settle.databases import create_databases, why_silent
from settle.leftovers import end_leftovers
from settle.readiness import wait_ready
from settle.stack import (
    APIS,
    BOOTSTRAP,
    BROKER,
    DATABASE_URLS,
    PORT_VARIABLES,
    POSTGRES,
    SERVICES,
    WORKERS,
    planned_stack,
    refuse_other_settings,
    running_stack,
)
from settle.supervisor import Supervisor, start_supervisor
from shared.errors import SettleError
from shared.migrations import upgrade
from shared.outbox.clients import make_admin
from shared.outbox.service import load_service
from shared.outbox.topics import close_quietly, ensure_topics
from shared.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from settle.stack import Stack
    from settle.state import StateFolder

SERVER_TIMEOUT_S = 60.0
PROGRAMS_TIMEOUT_S = 60.0
TOPICS_TIMEOUT_S = 20.0

Tell = Callable[[str], None]


class UpError(SettleError):
    """The stack cannot be started."""


def bring_up(state: StateFolder, tell: Tell) -> Stack:
    """Start what does not run yet, and wait until all of it is ready.

    Args:
        state: its folder.
        tell: is given a line for each step.

    Raises:
        SettleError: why it cannot be.
    """
    with state.locked():
        supervisor = Supervisor(state.socket)
        running = running_stack(state) if supervisor.pid() is not None else None
        if running is not None:
            refuse_other_settings(running)
            if not supervisor.processes().keys() >= set(running.programs):
                raise UpError("Settle was started by another version: run settle down first.")
            tell("Settle is running already; starting what is not.")
            stack = running
        else:
            stack = planned_stack(state)
        os.environ.update(stack.environment)
        for service in SERVICES:
            read_settings(service)  # refuses a wrong setting before anything is started
        if running is None:
            supervisor = _start_supervisor(stack, tell)
        _start_all(stack, supervisor, tell)
    return stack


def _start_supervisor(stack: Stack, tell: Tell) -> Supervisor:
    ended = end_leftovers(stack.state, stack.cluster)
    if ended:
        tell(f"Ended {ended} processes left over from a killed supervisord.")
    refuse_taken_ports(stack, stack.programs)
    for written in stack.state.health.glob("*.json"):
        written.unlink()
    stack.state.write_env(stack.environment)
    return start_supervisor(stack)


def refuse_taken_ports(stack: Stack, programs: Iterable[str]) -> None:
    """Refuse to start where another process listens.

    Raises:
        UpError: naming the port, and the variable that sets another.
    """
    for program in programs:
        variable = PORT_VARIABLES.get(program)
        if variable is None:
            continue
        host = stack.bind_address if program in APIS else "127.0.0.1"
        port = stack.ports[variable]
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                probe.listen()
        except OSError as error:
            raise UpError(
                f"{program} cannot listen on port {port} of {host} ({error.strerror}): "
                f"set {variable} to another port."
            ) from error


def _start_all(stack: Stack, supervisor: Supervisor, tell: Tell) -> None:
    step = _Steps(tell)
    if stack.cluster is not None:
        _start_server(stack, supervisor, POSTGRES)
        create_databases(stack.cluster, stack.ports["POSTGRES_PORT"])
        step.done(f"PostgreSQL serves on {stack.address(POSTGRES)}")
    _migrate(stack)
    step.done("Both databases are migrated")
    if BROKER in stack.servers:
        _start_server(stack, supervisor, BROKER)
        step.done(f"The broker serves on {stack.address(BROKER)}")
    _create_topics()
    step.done("The topics exist")
    _start_stopped(stack, supervisor, (*WORKERS, *APIS))
    missing = wait_ready(stack, supervisor, (*WORKERS, *APIS), timeout_s=PROGRAMS_TIMEOUT_S)
    if missing:
        name, reason = next(iter(missing.items()))
        raise UpError(
            f"{name} is not ready after {PROGRAMS_TIMEOUT_S:.0f} s ({reason}): "
            f"see {stack.state.logs / name}.log; settle down stops the rest."
        )
    step.done("APIs, relays and consumers are ready")


def _start_stopped(stack: Stack, supervisor: Supervisor, names: Iterable[str]) -> None:
    processes = supervisor.processes()
    stopped = [name for name in names if processes[name].stopped]
    refuse_taken_ports(stack, stopped)
    supervisor.start(stopped)


def _start_server(stack: Stack, supervisor: Supervisor, name: str) -> None:
    _start_stopped(stack, supervisor, [name])
    missing = wait_ready(stack, supervisor, [name], timeout_s=SERVER_TIMEOUT_S)
    if missing:
        raise UpError(
            f"{name} does not serve after {SERVER_TIMEOUT_S:.0f} s ({missing[name]}): "
            f"see {stack.state.logs / name}.log."
        )


def _migrate(stack: Stack) -> None:
    for service, url in stack.database_urls.items():
        silent = why_silent(url)
        if silent is not None:
            raise UpError(f"The database of {DATABASE_URLS[service]} does not answer: {silent}")
        try:
            upgrade(service, url)
        except SQLAlchemyError as error:
            reason = str(error).partition("\n")[0]
            raise UpError(f"The migrations of {service} failed: {reason}") from error


def _create_topics() -> None:
    services = [load_service(name) for name in SERVICES]
    topics = {
        topic
        for service in services
        for topic in (*service.published_topics, *service.consumed_topics)
    }
    settings = read_settings(SERVICES[0])
    deadline = time.monotonic() + TOPICS_TIMEOUT_S
    while True:
        try:
            admin = make_admin(settings, "settle-up")
            try:
                ensure_topics(admin, topics, settings)
            finally:
                close_quietly(admin)
        except KafkaError as error:
            if time.monotonic() > deadline:
                raise UpError(
                    f"The broker at {','.join(settings.kafka_bootstrap_servers)} does not take "
                    f"topics: {error}. Check {BOOTSTRAP}."
                ) from error
        else:
            return


class _Steps:
    """Tells each step with the time it took."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._since = time.monotonic()

    def done(self, what: str) -> None:
        now = time.monotonic()
        self._tell(f"  {what:<60} {now - self._since:5.1f} s")
        self._since = now
