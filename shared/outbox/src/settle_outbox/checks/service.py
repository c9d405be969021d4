"""All checks of a service: its database, its topics and consumer group, and the clocks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import psycopg2
from kafka.errors import KafkaError

from settle_outbox.checks import (
    broker,
    clocks,
    database,
    delivery,
    groups,
    pooling,
    schema,
    topics,
    transactions,
    upkeep,
)
from settle_outbox.checks.background import run_at_once
from settle_outbox.checks.check import Level, fail, run_each
from settle_outbox.checks.database import APPLICATION_NAME, Database
from settle_outbox.checks.schema import ExpectedSchema
from settle_outbox.errors import SettleError
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly
from settle_outbox.service import load_service
from settle_outbox.settings import read_database_url, read_settings
from settle_outbox.storage import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kafka import KafkaAdminClient

    from settle_outbox.checks.check import Finding, NamedCheck
    from settle_outbox.settings import Settings

SETTLE_OUTBOX_SCHEMA = ExpectedSchema((tables.metadata,))


def check_service(name: str) -> Iterator[Finding]:
    """Run every check of a service. Nothing is changed.

    Args:
        name: the service's name; its settings come from the environment.

    Raises:
        SettingsError: a setting is missing or wrong.
    """
    settings = read_settings(name)
    return run_at_once(
        (
            (name, partial(check_database, name, database_checks)),
            ("clocks", partial(clocks.check_clocks, {name: settings.database_url})),
            (
                broker.BROKER,
                partial(check_kafka, ",".join(settings.kafka_bootstrap_servers), [name]),
            ),
        )
    )


def check_database(
    service: str, checks_of: Callable[[Database], Iterable[NamedCheck]]
) -> Iterator[Finding]:
    """Run checks on the database of a service, until the connection ends.

    Args:
        service: the service's name.
        checks_of: returns the checks.
    """
    try:
        opened = Database(service, read_database_url(service))
    except SettleError as error:
        yield fail(f"{service} db", str(error), "correct the variable")
        return
    except psycopg2.Error as error:
        yield database.unreachable(service, error)
        return
    with opened:
        yield database.judge_version(f"{service} db", opened.version)
        for check in checks_of(opened):
            yield from run_each([check])
            if opened.is_lost:
                yield fail(
                    f"{service} answers",
                    "no longer: it ended the connection; its other checks were left out",
                    "read the server's log, then try again",
                )
                return


def database_checks(
    opened: Database,
    expected_of: Callable[[], ExpectedSchema] = lambda: SETTLE_OUTBOX_SCHEMA,
    hot_tables: Sequence[str] = upkeep.HOT_TABLES,
) -> Iterator[NamedCheck]:
    """Return the checks of a service's database.

    Args:
        opened: the database.
        expected_of: returns the tables and triggers that it must have.
        hot_tables: the tables that change most.
    """
    checks: dict[str, Callable[[Database], Iterable[Finding]]] = {
        "durability": database.check_durability,
        "transactions": transactions.check_transactions,
        "pooler": pooling.check_connections,
        "indexes": partial(schema.check_indexes, expected_of=expected_of),
        "constraints": partial(schema.check_constraints, expected_of=expected_of),
        "sequences": schema.check_sequences,
        "autovacuum": partial(upkeep.check_autovacuum, tables=hot_tables),
        "parts": upkeep.check_partitions,
        "horizon": upkeep.check_horizon,
        "size": database.check_size,
        "unsent": delivery.check_unsent,
        "refused": delivery.check_refused,
        "stopped": delivery.check_stopped,
        "dead letters": delivery.check_dead_letters,
        "parked": delivery.check_parked,
        "anomaly": delivery.check_anomalies,
    }
    for name, check in checks.items():
        yield f"{opened.service} {name}", partial(check, opened)


def check_kafka(bootstrap: str, services: Sequence[str]) -> Iterator[Finding]:
    """Check the brokers, and the topics and consumer groups of services.

    Args:
        bootstrap: the brokers' addresses, comma-separated.
        services: the services' names; without one, only the connection is checked.
    """
    for finding in broker.check_reached(bootstrap):
        yield finding
        if finding.verdict is Level.FAIL or not services:
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
            f"accepts connections, but does not answer: {error}",
            "read the brokers' logs: they are frozen, or the address is not Kafka's",
        )
        return
    try:
        yield from run_each(_kafka_checks(admin, settings))
    finally:
        close_quietly(admin)


def _kafka_checks(
    admin: KafkaAdminClient, settings_of: Mapping[str, Settings]
) -> Iterator[NamedCheck]:
    yield "cluster", partial(broker.check_cluster, admin)
    yield "broker disk", partial(broker.check_disk, admin)
    yield "session time-out", partial(broker.check_consumer_settings, admin)
    services = {
        name: load_service(name, settings.topic_prefix) for name, settings in settings_of.items()
    }
    wanted = {
        topic: settings_of[name]
        for name, service in services.items()
        for topic in (*service.published_topics, *service.consumed_topics)
    }
    found = topics.describe(admin, wanted)
    brokers = len(admin.describe_cluster()["brokers"])
    for topic, settings in sorted(wanted.items()):
        check = partial(topics.check_topic, topic, found.get(topic), settings, brokers=brokers)
        yield f"topic {topic}", check
    for topic, description in sorted(found.items()):
        settings = wanted[topic]
        yield f"retention {topic}", partial(topics.check_retention, admin, topic, settings)
        yield f"sending {topic}", partial(topics.check_sending, admin, description, settings)
    for name, service in services.items():
        if not service.consumed_topics:
            continue
        settings = settings_of[name]
        yield f"{name} consumers", partial(groups.check_members, admin, service, settings)
        partitions = [
            partition
            for topic in service.consumed_topics
            if topic in found
            for partition in topics.partitions_of(found[topic])
        ]
        if partitions:
            yield f"{name} lag", partial(groups.check_lag, admin, service, settings, partitions)
    # These come last, because the embedded broker answers them by closing the connection.
    for topic, description in sorted(found.items()):
        yield f"transactions {topic}", partial(topics.check_transactions, admin, description)
        yield f"clock {topic}", partial(topics.check_newest, admin, description)
