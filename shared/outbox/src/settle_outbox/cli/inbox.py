"""inbox-consumer: takes events from Kafka into a service's inbox, and has them applied once."""

from __future__ import annotations

import base64
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
    stopped_by_signals,
)
from settle_outbox.cli.terminal import printable
from settle_outbox.consume.circuit_breaker import resume
from settle_outbox.consume.consumer import Consumer
from settle_outbox.consume.dead_letters import read_newest
from settle_outbox.storage.database import make_engine


@click.group(cls=Group)
@version_option("settle-outbox")
def main() -> None:
    r"""Take events from Kafka into a service's inbox, and have each applied exactly once.

    Settings come from the environment: <SERVICE>_DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS. A hyphen
    in the name of SERVICE is an underscore there.
    """


@main.command()
@service_argument
@database_url_option
@report_errors
def run(service: str, database_url: str | None) -> None:
    r"""Consume the events that SERVICE subscribes to, until SIGTERM or SIGINT.

    Any number may run, up to one a partition. A batch under way is finished first.

    \b
    Example: inbox-consumer run payments
    """
    found, settings = start(service, database_url)
    Consumer(found, settings, stopped_by_signals()).run()


@main.command()
@service_argument
@max_age_option
@report_errors
def healthcheck(service: str, max_age_s: float) -> None:
    r"""Check that the main loop of each consumer of SERVICE runs: exit 1 when one is stuck.

    For supervisors and containers. Reads the files that the consumers write to HEALTH_DIR. A
    consumer passes that waits for the database or Kafka, or that stopped because of a handler's
    error: a restart would not help. Exit 1 also when no consumer runs.

    \b
    Example: inbox-consumer healthcheck orders
    """
    print_health("inbox-consumer", service, max_age_s)


@main.command("resume")
@service_argument
@database_url_option
@click.option("--type", "event_type", help="Of this subscription alone, such as order.created.")
@report_errors
def resume_subscriptions(service: str, database_url: str | None, event_type: str | None) -> None:
    r"""Let stopped subscriptions of SERVICE go on.

    A subscription stops when many events in a row fail in its handler with the same error. Correct
    the cause first: events that still fail become dead letters until it stops again.

    \b
    Example: inbox-consumer resume payments
    """
    found, settings = start(service, database_url)
    engine = make_engine(settings.database_url, application_name="inbox-consumer", pool_size=1)
    known = sorted({subscription.type for subscription in found.subscriptions})
    if event_type is not None and event_type not in known:
        fail(f"{found.name} does not subscribe to {event_type}, but to: {', '.join(known)}.")
    with engine.begin() as connection:
        resumed = resume(connection, event_type)
    engine.dispose()
    if not resumed:
        which = "No subscription" if event_type is None else f"The subscription to {event_type}"
        state = "is stopped" if event_type is None else "is not stopped"
        click.echo(f"{which} of {found.name} {state}.")
    for topic, resumed_type in resumed:
        click.echo(printable(f"{resumed_type} of {topic} is resumed."))


@main.group("dead-letters")
def dead_letters() -> None:
    """Records that could not be applied."""


@dead_letters.command("list")
@service_argument
@database_url_option
@click.option("--limit", default=50, type=click.IntRange(1, 10_000), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, the record whole.")
@report_errors
def list_dead_letters(service: str, database_url: str | None, limit: int, *, as_json: bool) -> None:
    r"""Show what SERVICE could not apply, newest first, and why.

    \b
    Example: inbox-consumer dead-letters list payments --json
    """
    found, settings = start(service, database_url)
    engine = make_engine(settings.database_url, application_name="inbox-consumer", pool_size=1)
    found_any = False
    with engine.connect() as connection:
        for row in read_newest(connection, limit=limit):
            found_any = True
            shown = dict(row)
            click.echo(json.dumps(_whole(shown)) if as_json else _short(shown))
    engine.dispose()
    if not found_any and not as_json:
        click.echo(f"No dead letters in {found.name}.")


def _short(row: dict[str, Any]) -> str:
    lines = (
        f"#{row['id']}  {row['parked_at']:%Y-%m-%d %H:%M:%S}  {row['reason']}",
        (
            f"    {row['topic']}[{row['partition']}]@{row['offset']}"
            f"  event {row['event_id'] or '-'}  type {row['type'] or '-'}"
            f"  request {row['requestid'] or '-'}"
        ),
        f"    {row['detail']}",
    )
    return "\n".join(map(printable, lines))


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    return row | {
        "parked_at": row["parked_at"].isoformat(),
        "event_id": str(row["event_id"]) if row["event_id"] else None,
        "key": _bytes(row["key"]),
        "value": _bytes(row["value"]),
    }


def _bytes(value: Any) -> Any:
    """Text where it is text, Base64 where it is not."""
    if value is None:
        return None
    raw = bytes(value)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}
