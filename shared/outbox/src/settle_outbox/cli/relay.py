"""outbox-relay: takes a service's events from its outbox to Kafka."""

from __future__ import annotations

from dataclasses import replace as changed
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
    Relay(found, settings, stop_on_signals()).run()


@main.command()
@service_argument
@database_url_option
@click.option(
    "--since", type=read_duration, metavar="AGE", help="At most so old: 90s, 30m, 2h, 7d."
)
@click.option("--until", type=read_duration, metavar="AGE", help="At least so old.")
@click.option("--id", "ids", type=UUID, multiple=True, metavar="EVENT_ID", help="Only this; many.")
@click.option("--key", help="Only events with this aggregateid.")
@click.option("--type", "type_", metavar="TYPE", help="Only events of this type.")
@dry_run_option
@report_errors
def replay(service: str, database_url: str | None, *, dry_run: bool, **chosen: Any) -> None:
    r"""Send published events of SERVICE again.

    For a broker or a consumer that lost them. Consumers drop what they know. The events are put in
    line; a running relay sends them. Give --since or --id.

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
    found, settings = start(service, database_url)
    engine = make_engine(settings.database_url, application_name="outbox-relay replay", pool_size=1)
    with engine.begin() as connection:
        count = queue_again(connection, found.aggregatetypes, wanted, dry_run=dry_run)
    engine.dispose()
    verb = "would be" if dry_run else "are"
    click.echo(f"{count} events of {found.name} {verb} in line to be sent again.")


main.add_command(refused)


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
            add_partitions(engine, admin, found, partitions)
            engine.dispose()
    finally:
        close_quietly(admin)
    click.echo(f"Topics of {found.name}: {', '.join(found.published_topics)}")
    if partitions is not None:
        click.echo(f"Each has {partitions} partitions. Set TOPIC_PARTITIONS={partitions}.")
