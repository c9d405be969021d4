"""The command outbox-relay, which sends a service's events from its outbox to Kafka."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import click

from settle_outbox.cli.command import Group, report_errors, version_option
from settle_outbox.cli.common import (
    database_url_option,
    max_age_option,
    print_health,
    read_duration,
    service_argument,
    start,
    stop_on_signals,
    transaction,
)
from settle_outbox.cli.refused import refused
from settle_outbox.cli.repair_options import dry_run_option
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly, ensure_topics
from settle_outbox.publish.partition_count import add_partitions
from settle_outbox.publish.relay import Relay
from settle_outbox.publish.replay import ReplayFilter, queue_again
from settle_outbox.storage.database import make_engine


@click.group(cls=Group)
@version_option("settle-outbox")
def main() -> None:
    r"""Send a service's events from its outbox to Kafka.

    Settings come from the environment: <SERVICE>_DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS. In names
    of variables, write an underscore for a hyphen in the name of SERVICE.
    """


@main.command()
@service_argument
@database_url_option
@report_errors
def run(service: str, database_url: str | None) -> None:
    r"""Send the events of SERVICE until SIGTERM or SIGINT.

    Any number of relays may run. On a signal, a relay finishes its current batch.

    \b
    Example: outbox-relay run orders
    """
    loaded, settings = start(service, database_url, needs_kafka=True)
    Relay(loaded, settings, stop_on_signals()).run()


@main.command()
@service_argument
@database_url_option
@click.option(
    "--since",
    type=read_duration,
    metavar="AGE",
    help="Not older than 90s, 30m, 2h, 7d.",
)
@click.option("--until", type=read_duration, metavar="AGE", help="Older than this.")
@click.option(
    "--id", "ids", type=UUID, multiple=True, metavar="EVENT_ID", help="Only this event; repeatable."
)
@click.option("--key", help="Only events with this aggregateid.")
@click.option("--type", "type_", metavar="TYPE", help="Only events of this type.")
@dry_run_option
@report_errors
def replay(service: str, database_url: str | None, *, dry_run: bool, **chosen: Any) -> None:
    r"""Send published events of SERVICE again, after a broker or a consumer lost them.

    The command only queues the events. A running relay sends them. Consumers ignore events that
    they have already applied. Give --since or --id.

    \b
    Example: outbox-relay replay orders --since 2h
    Example: outbox-relay replay payments --id 01980000-0000-7000-8000-000000000001 --dry-run
    """
    if chosen["since"] is None and not chosen["ids"]:
        raise click.UsageError("Give --since, or --id for single events.")
    wanted = ReplayFilter(
        chosen["since"],
        chosen["until"],
        chosen["ids"] or None,
        chosen["key"],
        chosen["type_"],
    )
    loaded, settings = start(service, database_url)
    with transaction(settings, "outbox-relay replay") as connection:
        count = queue_again(connection, loaded.aggregatetypes, wanted, dry_run=dry_run)
    verb = "would be" if dry_run else "are"
    click.echo(f"{count} events of {loaded.name} {verb} queued to be sent again.")


main.add_command(refused)


@main.command()
@service_argument
@max_age_option
@report_errors
def healthcheck(service: str, max_age_s: float) -> None:
    r"""Check that the main loop of each relay of SERVICE runs.

    For supervisors and containers. It reads the files that the relays write to HEALTH_DIR. Exit
    code 1: a relay is stuck, or no relay runs. A relay that waits for the database or Kafka is
    healthy, because a restart would not help.

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
    help="Raise the number of partitions of each topic to this value.",
)
@report_errors
def topics(service: str, database_url: str | None, partitions: int | None) -> None:
    r"""Create the topics that SERVICE publishes, if they do not exist.

    With --partitions, also add partitions to existing topics. The order of events per key is kept.
    For this, relays send nothing while the command waits until consumers have read everything. If
    that takes too long, it changes nothing and names the consumer groups that are behind.
    Partitions are never removed.

    \b
    Example: outbox-relay topics payments --partitions 12
    """
    loaded, settings = start(service, database_url, needs_kafka=True)
    if partitions is not None:
        settings = replace(settings, topic_partitions=partitions)
    admin = make_admin(settings, "outbox-relay-topics")
    try:
        ensure_topics(admin, loaded.published_topics, settings)
        if partitions is not None:
            name = "outbox-relay topics"
            engine = make_engine(settings.database_url, application_name=name, pool_size=1)
            add_partitions(engine, admin, loaded, partitions)
            engine.dispose()
    finally:
        close_quietly(admin)
    click.echo(f"Topics of {loaded.name}: {', '.join(loaded.published_topics)}")
    if partitions is not None:
        click.echo(f"Each topic has {partitions} partitions. Set TOPIC_PARTITIONS={partitions}.")
