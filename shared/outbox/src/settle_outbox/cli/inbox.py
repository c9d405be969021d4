"""The command inbox-consumer, which applies events from Kafka with a service's handlers."""

from __future__ import annotations

import click

from settle_outbox.cli.command import Group, fail, report_errors, version_option
from settle_outbox.cli.common import (
    database_url_option,
    max_age_option,
    print_health,
    service_argument,
    start,
    stop_on_signals,
    transaction,
)
from settle_outbox.cli.dead_letters import dead_letters
from settle_outbox.cli.terminal import printable
from settle_outbox.consume.circuit_breaker import resume
from settle_outbox.consume.consumer import Consumer


@click.group(cls=Group)
@version_option("settle-outbox")
def main() -> None:
    r"""Read events from Kafka, and apply each exactly once with a service's handlers.

    Settings come from the environment: <SERVICE>_DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS. In names
    of variables, write an underscore for a hyphen in the name of SERVICE.
    """


@main.command()
@service_argument
@database_url_option
@report_errors
def run(service: str, database_url: str | None) -> None:
    r"""Consume the events that SERVICE subscribes to, until SIGTERM or SIGINT.

    Run up to one consumer per partition. On a signal, a consumer finishes its current batch.

    \b
    Example: inbox-consumer run payments
    """
    loaded, settings = start(service, database_url, needs_kafka=True)
    Consumer(loaded, settings, stop_on_signals()).run()


@main.command()
@service_argument
@max_age_option
@report_errors
def healthcheck(service: str, max_age_s: float) -> None:
    r"""Check that the main loop of each consumer of SERVICE runs.

    For supervisors and containers. It reads the files that the consumers write to HEALTH_DIR. Exit
    code 1: a consumer is stuck, or no consumer runs. A consumer that waits for the database or
    Kafka, or that stopped because of a handler's error, is healthy: a restart would not help.

    \b
    Example: inbox-consumer healthcheck orders
    """
    print_health("inbox-consumer", service, max_age_s)


@main.command("resume")
@service_argument
@database_url_option
@click.option("--type", "event_type", help="Only of this event type, such as order.created.")
@report_errors
def resume_subscriptions(service: str, database_url: str | None, event_type: str | None) -> None:
    r"""Let stopped subscriptions of SERVICE go on.

    A subscription stops when many events in a row fail in its handler with the same error. Correct
    the cause first: events that still fail become dead letters until it stops again.

    \b
    Example: inbox-consumer resume payments
    """
    loaded, settings = start(service, database_url)
    types = sorted({subscription.type for subscription in loaded.subscriptions})
    if event_type is not None and event_type not in types:
        fail(f"{loaded.name} does not subscribe to {event_type}, but to: {', '.join(types)}.")
    with transaction(settings, "inbox-consumer") as connection:
        resumed = resume(connection, event_type)
    if not resumed and event_type is None:
        click.echo(f"No subscription of {loaded.name} is stopped.")
    elif not resumed:
        click.echo(f"The subscription to {event_type} of {loaded.name} is not stopped.")
    for topic, resumed_type in resumed:
        click.echo(printable(f"{resumed_type} of {topic} is resumed."))


main.add_command(dead_letters)
