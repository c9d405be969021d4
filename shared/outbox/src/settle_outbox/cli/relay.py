"""outbox-relay: takes a service's events from its outbox to Kafka."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import TYPE_CHECKING

import click

from settle_outbox.cli.command import Group, report_errors, version_option
from settle_outbox.cli.common import (
    database_url_option,
    max_age_option,
    print_health,
    read_duration,
    service_argument,
    start,
    stopped_by_signals,
)
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly, ensure_topics
from settle_outbox.publish.partition_count import raise_partitions
from settle_outbox.publish.relay import Relay
from settle_outbox.publish.replay import queue_again
from settle_outbox.storage.database import make_engine

if TYPE_CHECKING:
    from datetime import timedelta


@click.group(cls=Group)
@version_option("settle-outbox")
def main() -> None:
    r"""Take a service's events from its outbox to Kafka.

    Settings come from the environment: <SERVICE>_DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS. A hyphen
    in the name of SERVICE is an underscore there.
    """


@main.command()
@service_argument
@database_url_option
@report_errors
def run(service: str, database_url: str | None) -> None:
    r"""Relay the events of SERVICE until SIGTERM or SIGINT.

    Any number may run at once. A batch under way is finished first.

    \b
    Example: outbox-relay run orders
    """
    found, settings = start(service, database_url)
    Relay(found, settings, stopped_by_signals()).run()


@main.command()
@service_argument
@database_url_option
@click.option(
    "--since",
    type=read_duration,
    metavar="DURATION",
    required=True,
    help="How far back: 90s, 30m, 2h, 7d. At most as long as events are kept.",
)
@report_errors
def replay(service: str, database_url: str | None, since: timedelta) -> None:
    r"""Send the published events of SERVICE again.

    For a broker that lost them. Consumers drop what they know. The events are put in line; a
    running relay sends them.

    \b
    Example: outbox-relay replay orders --since 2h
    """
    found, settings = start(service, database_url)
    engine = make_engine(settings.database_url, application_name="outbox-relay replay", pool_size=1)
    with engine.begin() as connection:
        count = queue_again(connection, found.aggregatetypes, since)
    engine.dispose()
    click.echo(f"{count} events of {found.name} are in line to be sent again.")


@main.command()
@service_argument
@max_age_option
@report_errors
def healthcheck(service: str, max_age_s: float) -> None:
    r"""Check that the main loop of each relay of SERVICE runs: exit 1 when one is stuck.

    For supervisors and containers. Reads the files that the relays write to HEALTH_DIR. A relay
    that waits for the database or Kafka passes: a restart would not help. Exit 1 also when no
    relay runs.

    \b
    Example: outbox-relay healthcheck orders
    """
    print_health("outbox-relay", service, max_age_s)


@main.command()
@service_argument
@database_url_option
@click.option(
    "--partitions",
    type=click.IntRange(1, 10_000),
    help="Raise the partitions of each topic to this count.",
)
@report_errors
def topics(service: str, database_url: str | None, partitions: int | None) -> None:
    r"""Create the topics that SERVICE publishes, where they are missing.

    With --partitions: also add partitions to those that exist, in order per key. While the command
    runs, no relay sends; it waits until the consumers have read everything. If they do not, it
    changes nothing and names who is behind. Partitions are never removed.

    \b
    Example: outbox-relay topics payments --partitions 12
    """
    found, settings = start(service, database_url)
    if partitions is not None:
        settings = changed(settings, topic_partitions=partitions)
    admin = make_admin(settings, "outbox-relay-topics")
    try:
        ensure_topics(admin, found.published_topics, settings)
        if partitions is not None:
            name = "outbox-relay topics"
            engine = make_engine(settings.database_url, application_name=name, pool_size=1)
            raise_partitions(engine, admin, found, partitions)
            engine.dispose()
    finally:
        close_quietly(admin)
    click.echo(f"Topics of {found.name}: {', '.join(found.published_topics)}")
    if partitions is not None:
        click.echo(f"Each has {partitions} partitions. Set TOPIC_PARTITIONS={partitions}.")
