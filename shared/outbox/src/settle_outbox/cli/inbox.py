"""The command inbox-consumer, which reads events from Kafka and applies each one once."""

from __future__ import annotations

import json
from typing import Any

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
from settle_outbox.consume.circuit_breaker import resume
from settle_outbox.consume.consumer import Consumer
from settle_outbox.consume.dead_letters import read_newest, text_or_base64


@click.group(cls=Group)
@version_option("settle-outbox")
def main() -> None:
    r"""Read events from Kafka, and apply each one to a service exactly once.

    Settings come from the environment: <SERVICE>_DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS. In names
    of variables, write an underscore for a hyphen in the name of SERVICE.
    """


@main.command()
@service_argument
@database_url_option
@report_errors
def run(service: str, database_url: str | None) -> None:
    r"""Consume the events that SERVICE subscribes to, until SIGTERM or SIGINT.

    One consumer may run for each partition. On a signal, a consumer finishes its current batch.

    \b
    Example: inbox-consumer run payments
    """
    loaded, settings = start(service, database_url)
    Consumer(loaded, settings, stop_on_signals()).run()


@main.command()
@service_argument
@max_age_option
@report_errors
def healthcheck(service: str, max_age_s: float) -> None:
    r"""Check that the main loop of each consumer of SERVICE runs.

    For supervisors and containers. It reads the files that the consumers write to HEALTH_DIR. Exit
    code 1: a consumer is stuck, or no consumer runs. A consumer is healthy if it waits for the
    database or Kafka, or if a subscription is stopped, because a restart would not help.

    \b
    Example: inbox-consumer healthcheck orders
    """
    print_health("inbox-consumer", service, max_age_s)


@main.command("resume")
@service_argument
@database_url_option
@click.option(
    "--type", "event_type", help="Resume only the subscription to this type, such as order.created."
)
@report_errors
def resume_subscriptions(service: str, database_url: str | None, event_type: str | None) -> None:
    r"""Resume stopped subscriptions of SERVICE.

    A subscription stops after many events in a row have failed in its handler with the same error.
    Correct the cause first. Otherwise more events become dead letters until it stops again.

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
        click.echo(f"{resumed_type} of {topic} is resumed.")


@main.group("dead-letters")
def dead_letters() -> None:
    """Records that could not be applied."""


@dead_letters.command("list")
@service_argument
@database_url_option
@click.option("--limit", default=50, type=click.IntRange(1, 10_000), show_default=True)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the complete records, one JSON object per line."
)
@report_errors
def list_dead_letters(service: str, database_url: str | None, limit: int, *, as_json: bool) -> None:
    r"""Show the records that SERVICE could not apply and the reasons, newest first.

    \b
    Example: inbox-consumer dead-letters list payments --json
    """
    loaded, settings = start(service, database_url)
    is_empty = True
    with transaction(settings, "inbox-consumer") as connection:
        for row in read_newest(connection, limit=limit):
            is_empty = False
            letter = dict(row)
            click.echo(_as_json(letter) if as_json else _summary(letter))
    if is_empty and not as_json:
        click.echo(f"No dead letters in {loaded.name}.")


def _summary(row: dict[str, Any]) -> str:
    return (
        f"#{row['id']}  {row['parked_at']:%Y-%m-%d %H:%M:%S}  {row['reason']}\n"
        f"    {row['topic']}[{row['partition']}]@{row['offset']}"
        f"  event {row['event_id'] or '-'}  type {row['type'] or '-'}"
        f"  request {row['requestid'] or '-'}\n"
        f"    {row['detail']}"
    )


def _as_json(row: dict[str, Any]) -> str:
    whole = row | {
        "parked_at": row["parked_at"].isoformat(),
        "event_id": str(row["event_id"]) if row["event_id"] else None,
        "key": text_or_base64(_bytes(row["key"])),
        "value": text_or_base64(_bytes(row["value"])),
    }
    return json.dumps(whole, ensure_ascii=False)


def _bytes(value: memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)
