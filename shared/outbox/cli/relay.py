"""outbox-relay: takes a service's events from its outbox to Kafka."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from shared.cli import Group, told_in_a_sentence, version_option
from shared.database import make_engine
from shared.outbox.cli.common import (
    Duration,
    max_age_option,
    print_health,
    service_argument,
    start,
    stopped_by_signals,
)
from shared.outbox.clients import make_admin
from shared.outbox.pending import queue_again
from shared.outbox.relay import Relay
from shared.outbox.topics import close_quietly, ensure_topics
from shared.outbox.uuid7 import least_id

if TYPE_CHECKING:
    from datetime import timedelta


@click.group(cls=Group)
@version_option
def main() -> None:
    r"""Take a service's events from its outbox to Kafka.

    Settings come from the environment: <SERVICE>_DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS.
    """


@main.command()
@service_argument
@told_in_a_sentence
def run(service: str) -> None:
    r"""Relay the events of SERVICE until SIGTERM or SIGINT.

    Any number may run at once. A batch under way is finished first.

    \b
    Example: outbox-relay run orders
    """
    found, settings = start(service)
    Relay(found, settings, stopped_by_signals()).run()


@main.command()
@service_argument
@click.option(
    "--since",
    type=Duration(),
    required=True,
    help="How far back: 90s, 30m, 2h, 7d. At most as long as events are kept.",
)
@told_in_a_sentence
def replay(service: str, since: timedelta) -> None:
    r"""Send the published events of SERVICE again.

    For a broker that lost them. Consumers drop what they know. The events are put in line; a
    running relay sends them.

    \b
    Example: outbox-relay replay orders --since 2h
    """
    found, settings = start(service)
    engine = make_engine(settings.database_url, application_name="outbox-relay replay", pool_size=1)
    with engine.begin() as connection:
        count = queue_again(connection, found.aggregatetypes, least_id(datetime.now(UTC) - since))
    engine.dispose()
    click.echo(f"{count} events of {found.name} are in line to be sent again.")


@main.command()
@service_argument
@max_age_option
@told_in_a_sentence
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
@told_in_a_sentence
def topics(service: str) -> None:
    r"""Create the topics that SERVICE writes and reads, where they are missing.

    \b
    Example: outbox-relay topics payments
    """
    found, settings = start(service)
    wanted = sorted({*found.published_topics, *found.consumed_topics})
    admin = make_admin(settings, "outbox-relay-topics")
    try:
        ensure_topics(admin, wanted, settings)
    finally:
        close_quietly(admin)
    click.echo(f"Topics of {found.name}: {', '.join(wanted)}")
