"""Which checks are carried out, and on what; each neighbour's on a thread of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
from kafka.errors import KafkaError

from settle.doctor import (
    broker,
    clocks,
    delivery,
    groups,
    installation,
    local,
    pooling,
    schema,
    sessions,
    topics,
    upkeep,
)
from settle.doctor.background import Background
from settle.doctor.check import Check, Verdict, carried_out, fail, warn
from settle.doctor.database import (
    APPLICATION_NAME,
    Database,
    check_durability,
    check_migrations,
    check_size,
    check_version,
    unreachable,
)
from settle.stack.definition import (
    BOOTSTRAP,
    BROKER,
    DATABASE_URLS,
    SERVICES,
    read_embedded,
    running_stack,
    take_environment,
)
from settle.stack.supervisor import Supervisor
from settle_outbox.cli.command import EXPECTED
from settle_outbox.errors import SettleError
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly
from settle_outbox.service import load_service
from settle_outbox.settings import read_database_url, read_settings
from shared.settings import read_web_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kafka import KafkaAdminClient

    from settle.doctor.check import Look
    from settle.stack.definition import Stack
    from settle.stack.state import StateFolder
    from settle_outbox.settings import Settings


@dataclass(frozen=True, slots=True)
class _Patient:
    """What is examined.

    Args:
        state: the folder of this machine's stack.
        stack: which runs here, and is meant; None when none does, or others are given.
        services: whose databases and topics.
        bootstrap: the broker's addresses; None when it is ours, and does not run.
    """

    state: StateFolder
    stack: Stack | None
    services: Sequence[str]
    bootstrap: str | None

    @property
    def is_local(self) -> bool:
        """Whether this machine's stack is meant, running or not."""
        return self.stack is not None or bool(read_embedded())


def examine(
    state: StateFolder, *, quick: bool, services: Sequence[str] = SERVICES
) -> Iterator[Check]:
    """Give each check as it is made; changes nothing, and never raises for what it finds.

    Args:
        state: the folder of this machine's stack.
        quick: only what keeps the stack from starting.
        services: whose databases and topics are examined.
    """
    patient = _find(state, services)
    looks = _quick(patient) if quick else _full(patient)
    for each in [Background(look) for look in looks]:
        yield from each.checks()


def _find(state: StateFolder, services: Sequence[str]) -> _Patient:
    """The stack that runs here, unless the environment names others than it has."""
    try:
        state.refuse_unsafe()
        runs = Supervisor(state.socket).pid() is not None
        stack = running_stack(state) if runs else None
    except EXPECTED:
        stack = None  # the checks of the folder and the supervisor tell why
    if stack is not None:
        ours = stack.environment
        given = [name for name in (*DATABASE_URLS.values(), BOOTSTRAP) if os.environ.get(name)]
        if all(os.environ[name] == ours[name] for name in given):
            take_environment(stack)
        else:
            stack = None
    known = stack is not None or BROKER not in read_embedded()
    return _Patient(state, stack, services, os.environ[BOOTSTRAP] if known else None)


def _quick(patient: _Patient) -> Iterator[Look]:
    yield "python", installation.check_python
    yield from _local(patient)
    for service in _reachable(patient):
        yield service, partial(_examine_database, service, quick=True)
    if patient.bootstrap is not None:
        yield BROKER, partial(broker.check_reached, patient.bootstrap)


def _local(patient: _Patient) -> Iterator[Look]:
    state, stack = patient.state, patient.stack
    yield "folder", partial(local.check_folder, state)
    yield "supervisord", partial(local.check_supervisor, state)
    yield "ports", partial(local.check_ports, stack)
    yield "servers", partial(local.check_embedded, state, stack)
    if stack is not None:
        yield "user", partial(local.check_user, state)
        others = {service for service in SERVICES if service not in patient.services}
        programs = [each for each in stack.programs if each.partition("-")[0] not in others]
        yield "processes", partial(local.check_processes, stack, programs)


def _reachable(patient: _Patient) -> list[str]:
    """The services whose database is given, or served by the stack that runs."""
    embedded = frozenset[str]() if patient.stack is not None else read_embedded()
    return [service for service in patient.services if service not in embedded]


def _full(patient: _Patient) -> Iterator[Look]:
    yield "python", installation.check_python
    if patient.is_local:
        yield from _local(patient)
    reachable = _reachable(patient)
    if patient.bootstrap is None or len(reachable) < len(patient.services):
        yield "stack", partial(_tell_unknown, patient, reachable)
    for service in reachable:
        yield service, partial(_examine_database, service, quick=False)
    yield "clocks", lambda: clocks.check_clocks(_urls(reachable))
    if patient.bootstrap is not None:
        yield BROKER, partial(_examine_broker, patient.bootstrap, reachable)


def _tell_unknown(patient: _Patient, reachable: Sequence[str]) -> Iterator[Check]:
    lacking = [DATABASE_URLS[each] for each in patient.services if each not in reachable]
    lacking += [BOOTSTRAP] if patient.bootstrap is None else []
    yield warn(
        "stack",
        f"none runs here, and {', '.join(lacking)} is not set: nothing of it was looked at",
        "settle up, or set what is to be looked at",
    )


def _urls(services: Iterable[str]) -> Mapping[str, str]:
    return {service: read_database_url(service) for service in services}


def _examine_database(service: str, *, quick: bool) -> Iterator[Check]:
    try:
        read_web_settings(service)
    except SettleError as error:
        yield fail(f"{service} api settings", str(error), "correct the variable")
    try:
        database = Database(service, read_database_url(service))
    except SettleError as error:
        yield fail(f"{service} db", str(error), "correct the variable")
        return
    except psycopg2.Error as error:
        yield unreachable(service, error)
        return
    with database:
        looks = [*_start_looks(database), *([] if quick else _database_looks(database))]
        for look in looks:
            yield from carried_out([look])
            if database.is_lost:
                yield fail(
                    f"{service} answers",
                    "no longer: it ended the connection; nothing more of it was looked at",
                    "see its log, then ask again",
                )
                return


def _start_looks(database: Database) -> Iterator[Look]:
    yield f"{database.service} db", partial(check_version, database)
    yield f"{database.service} migrations", partial(check_migrations, database)


def _database_looks(database: Database) -> Iterator[Look]:
    looks = {
        "durability": check_durability,
        "transactions": sessions.check_transactions,
        "pooler": pooling.check_connections,
        "indexes": schema.check_indexes,
        "constraints": schema.check_constraints,
        "sequences": schema.check_sequences,
        "autovacuum": upkeep.check_autovacuum,
        "parts": upkeep.check_partitions,
        "horizon": upkeep.check_horizon,
        "size": check_size,
        "unsent": delivery.check_unsent,
        "refused": delivery.check_refused,
        "stopped": delivery.check_stopped,
        "dead letters": delivery.check_dead_letters,
        "parked": delivery.check_parked,
        "anomaly": delivery.check_anomalies,
    }
    if database.service == "orders":
        looks["open"] = delivery.check_open_orders
    for name, look in looks.items():
        yield f"{database.service} {name}", partial(look, database)


def _examine_broker(bootstrap: str, services: Sequence[str]) -> Iterator[Check]:
    for check in broker.check_reached(bootstrap):
        yield check
        if check.verdict is Verdict.FAIL or not services:
            return
    try:
        settings = {service: read_settings(service) for service in services}
        admin = make_admin(settings[services[0]], APPLICATION_NAME)
    except SettleError as error:
        yield fail("settings", str(error), "correct the variable")
        return
    except KafkaError as error:
        yield fail(
            "cluster",
            f"takes connections, and does not answer: {error}",
            f"settle logs {BROKER}, or see the brokers' logs: frozen, or no Kafka",
        )
        return
    try:
        yield from carried_out(_broker_looks(admin, settings))
    finally:
        close_quietly(admin)


def _broker_looks(admin: KafkaAdminClient, settings: Mapping[str, Settings]) -> Iterator[Look]:
    yield "cluster", partial(broker.check_cluster, admin)
    yield "broker disk", partial(broker.check_disk, admin)
    yield "session time-out", partial(broker.check_consumer_settings, admin)
    services = {
        name: load_service(name).with_topic_prefix(of.topic_prefix) for name, of in settings.items()
    }
    wanted = {
        topic: settings[name]
        for name, service in services.items()
        for topic in (*service.published_topics, *service.consumed_topics)
    }
    found = topics.describe(admin, wanted)
    for topic, of in sorted(wanted.items()):
        yield f"topic {topic}", partial(topics.check_topic, topic, found.get(topic), of)
    for topic, description in sorted(found.items()):
        of = wanted[topic]
        yield f"retention {topic}", partial(topics.check_retention, admin, topic, of)
        yield f"sending {topic}", partial(topics.check_sending, admin, description, of)
    for name, service in services.items():
        yield f"{name} consumers", partial(groups.check_members, admin, service, settings[name])
        where = [
            place
            for topic in service.consumed_topics
            if topic in found
            for place in topics.places(found[topic])
        ]
        if where:
            yield f"{name} lag", partial(groups.check_lag, admin, service, settings[name], where)
    # Last: the embedded broker hangs up on them.
    for topic, description in sorted(found.items()):
        yield f"transactions {topic}", partial(topics.check_transactions, admin, description)
        yield f"clock {topic}", partial(topics.check_newest, admin, description)
