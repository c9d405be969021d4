"""Start the whole stack: servers first, then the programs that use them."""

from __future__ import annotations

import os
import signal
import time
from shutil import disk_usage
from typing import TYPE_CHECKING

from alembic.util.exc import CommandError
from kafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from settle.interrupts import interrupts_heard
from settle.stack.databases import connection_error, create_databases
from settle.stack.definition import (
    APIS,
    BOOTSTRAP,
    BROKER,
    DATABASE_URLS,
    POSTGRES,
    SERVICES,
    WORKERS,
    BrokerKind,
    planned_stack,
    port_variables,
    read_embedded,
    refuse_other_settings,
    running_stack,
    take_environment,
)
from settle.stack.down import stop_all
from settle.stack.embedded import kafka
from settle.stack.logs import last_error
from settle.stack.ports import port_conflict
from settle.stack.readiness import wait_ready
from settle.stack.root_user import AS_ROOT, how_to_leave_root
from settle.stack.state import CHECKOUT, LEAST_FREE_MB
from settle.stack.supervisor import Supervisor, start_supervisor
from settle_outbox.errors import SettleError, first_line
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly, ensure_topics
from settle_outbox.service import load_service
from settle_outbox.settings import read_database_url, read_settings
from shared.migrations import upgrade
from shared.settings import read_web_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from settle.progress import Step, Steps
    from settle.stack.definition import Stack
    from settle.stack.state import StateFolder

READY_TIMEOUT_S = 60.0
TOPICS_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 40.0  # above the stopwaitsecs in deploy/programs

# A running process does not see a change of these folders until it is restarted.
CODE = ("services", "shared", "alembic")


class UpError(SettleError):
    """The stack cannot be started."""


def bring_up(state: StateFolder, steps: Steps) -> Stack:
    """Start what does not run yet, and wait until all of it is ready.

    If the start of a stack is interrupted, the whole stack is stopped. If the stack was running
    before, what was started continues to run.

    Args:
        state: the stack's folder.
        steps: shows the progress.

    Raises:
        SettleError: the stack cannot be started.
    """
    state.refuse_unusable_paths()
    if os.geteuid() == 0:
        steps.say(f"Warning: {AS_ROOT}. To run it as an ordinary user:")
        for line in how_to_leave_root(state):
            steps.say(f"  {line}")
    with state.locked(steps.say):
        supervisor = Supervisor(state.socket)
        stack = running_stack(state)
        if stack is not None and supervisor.pid() is not None:
            _bring_up_running(stack, supervisor, steps)
            return stack
        if stop_all(state):
            steps.say("Ended processes that a killed supervisord had left.")
        try:
            with interrupts_heard():
                return _bring_up_new(state, steps)
        except KeyboardInterrupt:
            # A second interrupt must not leave half of the stack running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            stop_all(state)
            steps.say("Stopped what had been started. Run settle up to start again.")
            raise


def _bring_up_running(stack: Stack, supervisor: Supervisor, steps: Steps) -> None:
    refuse_other_settings(stack)
    processes = supervisor.processes()
    if not processes.keys() >= set(stack.programs):
        raise UpError("Settle was started by another version: run settle down first.")
    _apply_settings(stack)
    steps.say("Settle is running already. Starting what has stopped.")
    changed_at = _newest_code()
    old = [
        name
        for name in (*APIS, *WORKERS)
        if (uptime_s := processes[name].uptime_s) is not None
        and time.time() - uptime_s < changed_at
    ]
    if old:
        with steps.step("Stopping processes with older code", "Processes with older code stopped"):
            supervisor.stop(old, timeout_s=STOP_TIMEOUT_S)
    _start_all(stack, supervisor, steps)


def _newest_code() -> float:
    """Return the time of the newest change of the code, in Unix seconds."""
    files = (path for folder in CODE for path in (CHECKOUT / folder).rglob("*.py"))
    return max(path.stat().st_mtime for path in files)


def _bring_up_new(state: StateFolder, steps: Steps) -> Stack:
    with steps.step("Checking settings and ports", "Settings, ports and data folder are valid"):
        if not read_embedded().isdisjoint(SERVICES):
            refuse_full_disk(state)
        stack = planned_stack(state)
        _apply_settings(stack)
        refuse_taken_ports(stack, stack.programs)
    if stack.broker is BrokerKind.KAFKA and not kafka.fetched():
        fetching = f"Downloading Apache Kafka {kafka.VERSION} by Maven, once, about 45 MB"
        with steps.step(fetching, f"Apache Kafka {kafka.VERSION} is downloaded"):
            kafka.fetch()
    for written in state.health.glob("*.json"):
        written.unlink()
    state.write_env(stack.environment)
    _start_all(stack, start_supervisor(stack), steps)
    return stack


def _apply_settings(stack: Stack) -> None:
    take_environment(stack)
    for service in SERVICES:
        # Refuse a wrong setting before anything is started.
        read_settings(service)
        read_web_settings(service)


def refuse_full_disk(state: StateFolder) -> None:
    """Refuse to start a database on a disk that is almost full.

    Raises:
        UpError: less than `LEAST_FREE_MB` is free.
    """
    free_mb = disk_usage(state.nearest).free // 1024**2
    if free_mb < LEAST_FREE_MB:
        raise UpError(
            f"Only {free_mb} MB are free in {state.home}, and a database needs {LEAST_FREE_MB}: "
            "free some space, or set SETTLE_HOME to a folder on another disk."
        )


def refuse_taken_ports(stack: Stack, programs: Iterable[str]) -> None:
    """Refuse to start if another process listens on a port.

    Raises:
        UpError: it names the port, the process, and the variable that sets another port.
    """
    wanted = [(each, name) for each in programs for name in port_variables(each, stack.broker)]
    for program, variable in wanted:
        host, port = stack.host(program), stack.ports[variable]
        conflict = port_conflict(host, port)
        if conflict is not None:
            raise UpError(
                f"{program} cannot listen on port {port} of {host} ({conflict}): "
                f"set {variable} to another port."
            )


def _start_all(stack: Stack, supervisor: Supervisor, steps: Steps) -> None:
    if stack.cluster is not None:
        serving = f"PostgreSQL serves on {stack.address(POSTGRES)}"
        with steps.step("Starting PostgreSQL", serving) as step:
            _start_programs(stack, supervisor, (POSTGRES,), step)
            create_databases(stack.cluster, stack.ports["POSTGRES_PORT"])
    with steps.step("Migrating both databases", "Both databases are migrated"):
        migrate()
    if BROKER in stack.servers:
        is_kafka = stack.broker is BrokerKind.KAFKA
        starting = "Starting Apache Kafka" if is_kafka else "Starting the broker"
        serving = "Apache Kafka serves" if is_kafka else "The broker serves"
        with steps.step(starting, f"{serving} on {stack.address(BROKER)}") as step:
            _start_programs(stack, supervisor, (BROKER,), step)
    with steps.step("Creating the topics", "The topics exist"):
        _create_topics()
    starting = "Starting APIs, relays and consumers"
    with steps.step(starting, "APIs, relays and consumers are ready") as step:
        _start_programs(stack, supervisor, (*WORKERS, *APIS), step)


def _start_programs(stack: Stack, supervisor: Supervisor, names: Sequence[str], step: Step) -> None:
    processes = supervisor.processes()
    stopped = [name for name in names if processes[name].stopped]
    refuse_taken_ports(stack, stopped)
    supervisor.start(stopped)
    missing = wait_ready(stack, supervisor, names, timeout_s=READY_TIMEOUT_S, step=step)
    if missing:
        name, reason = next(iter(missing.items()))
        logged = last_error(stack.state.logs / f"{name}.log")
        raise UpError(
            f"{name} is not ready after {READY_TIMEOUT_S:.0f} s ({reason}); "
            f"{f'its log says: {logged}' if logged else 'its log has no error'}. "
            f"Run settle logs {name} and settle doctor --quick; settle down stops the rest."
        )


def migrate() -> None:
    """Migrate both databases that the environment names to the code's revision.

    Raises:
        UpError: a database does not answer, or cannot be migrated.
    """
    for service in SERVICES:
        url = read_database_url(service)
        error = connection_error(url)
        if error is not None:
            raise UpError(
                f"The database of {DATABASE_URLS[service]} does not answer ({error}): start it, "
                "or run settle down and correct the variable."
            )
        try:
            upgrade(service, url)
        except SQLAlchemyError as failure:
            raise UpError(
                f"The migration of {service} failed and was rolled back: "
                f"{_database_message(failure)}"
            ) from failure
        except CommandError as failure:
            raise UpError(
                f"The database of {service} cannot be migrated by this code ({failure}): if a later"
                " version has migrated it, run that version; settle down stops what runs."
            ) from failure


def _database_message(error: SQLAlchemyError) -> str:
    """Return the database's message and its hint."""
    diag = getattr(getattr(error, "orig", None), "diag", None)
    sentences = [diag.message_primary, diag.message_hint] if diag is not None else []
    return " ".join(each for each in sentences if each) or first_line(error)


def _create_topics() -> None:
    settings = {name: read_settings(name) for name in SERVICES}
    deadline = time.monotonic() + TOPICS_TIMEOUT_S
    while True:
        try:
            for name in SERVICES:
                admin = make_admin(settings[name], "settle-up")
                try:
                    service = load_service(name, settings[name].topic_prefix)
                    ensure_topics(admin, service.published_topics, settings[name])
                finally:
                    close_quietly(admin)
        except KafkaError as error:
            if time.monotonic() > deadline:
                brokers = ",".join(settings[SERVICES[0]].kafka_bootstrap_servers)
                raise UpError(
                    f"The broker at {brokers} does not create topics: {error}. Check {BOOTSTRAP}."
                ) from error
        else:
            return
