"""The commands `settle trace` and `settle orders stuck`."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from settle.audit.targets import find_settings, is_environment_set
from settle.stack.state import find_state
from settle.trace import queries
from settle.trace.record_times import RecordTimes
from settle.trace.timeline import FINAL, Timeline, Tracer
from settle_outbox.cli.command import EXIT_FAILED, Command, Group, fail, report_errors
from settle_outbox.cli.doctor import json_option
from settle_outbox.cli.terminal import printable
from settle_outbox.storage.database import make_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

_NAME = "settle trace"


@click.command(cls=Command)
@click.argument("given", metavar="ID")
@json_option
@report_errors
def trace(given: str, *, as_json: bool) -> None:
    r"""Show what happened to an order, when, and what it waits for.

    ID is the id of an order, of an event, or of a request (X-Request-ID). Asks both databases,
    and Kafka for the times of records if it answers.

    \b
    Example: settle trace 01980000-0000-7000-8000-000000000000
    """
    with _connect() as (orders, payments, tracer, env):
        order_ids = queries.find_orders(orders, payments, given)
        timelines = [found for found in map(tracer.trace, order_ids) if found is not None]
    if not timelines:
        unknown = "; ".join(f"order {each} is not in orders" for each in order_ids)
        fail(f"No order is found by {given}. {unknown}".strip())
    for timeline in timelines:
        click.echo(json.dumps(timeline.as_json()) if as_json else _shown(timeline, env))


@click.group(cls=Group)
def orders() -> None:
    """Orders that wait for something."""


@orders.command("stuck", epilog="Exit codes: 0 none is stuck; 1 some are; 2 wrong usage.")
@click.option(
    "--older-than",
    "age_s",
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="Age from which an open order counts as stuck.",
)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@json_option
@report_errors
def stuck(age_s: float, limit: int, *, as_json: bool) -> None:
    r"""Show each order that is open for too long, what it waits for, and the next command.

    \b
    Example: settle orders stuck
    """
    with _connect() as (orders_database, _, tracer, env):
        order_ids = queries.read_stuck(orders_database, age_s=age_s, limit=limit)
        traced = map(tracer.trace, order_ids)
        timelines = [each for each in traced if each is not None and each.wait.reason != FINAL]
    for timeline in timelines:
        click.echo(json.dumps(timeline.as_json()) if as_json else _shown_wait(timeline, env))
    if timelines:
        sys.exit(EXIT_FAILED)
    if not as_json:
        click.echo(f"No order has been open for more than {age_s:g} s.")


@contextmanager
def _connect() -> Iterator[tuple[Connection, Connection, Tracer, Path | None]]:
    """Connect to orders and payments. The path is the local stack's environment file, if used."""
    env = None if is_environment_set() else find_state().env
    settings = find_settings()
    engines = {
        service: make_engine(each.database_url, application_name=_NAME, pool_size=1)
        for service, each in settings.items()
    }
    with (
        engines["orders"].connect() as orders_database,
        engines["payments"].connect() as payments_database,
        closing(RecordTimes(settings["orders"])) as times,
    ):
        tracer = Tracer(orders_database, payments_database, times)
        yield orders_database, payments_database, tracer, env
    for engine in engines.values():
        engine.dispose()


def _shown(timeline: Timeline, env: Path | None) -> str:
    order = timeline.order
    lines = [
        f"Order {order['id']} of user {order['user_id']}, amount {order['amount']}; times in UTC"
    ]
    before: datetime | None = None
    for step in timeline.steps:
        at = "time unknown" if step.at is None else _shown_time(step.at)
        since = "" if step.at is None or before is None else _seconds(before, step.at)
        before = step.at or before
        known = [f"{name} {value}" for name, value in step.detail.items() if value is not None]
        detail = "  ".join(known)
        lines.append(f"  {at:23}  {since:>10}  {step.service:8}  {step.name:12}  {detail}".rstrip())
    return "\n".join(map(printable, [*lines, *_wait_lines(timeline, env)]))


def _shown_time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:23]


def _seconds(before: datetime, after: datetime) -> str:
    # Not below 0: the steps of one millisecond are in the order of the flow.
    return f"{max(0.0, (after - before).total_seconds()):+.3f} s"


def _shown_wait(timeline: Timeline, env: Path | None) -> str:
    order = timeline.order
    since = order["created_at"].astimezone(UTC)
    head = f"{order['id']}  since {since:%Y-%m-%d %H:%M:%S} UTC  {timeline.wait.reason}"
    return "\n".join(map(printable, [head, *_wait_lines(timeline, env)]))


def _wait_lines(timeline: Timeline, env: Path | None) -> list[str]:
    wait, command = timeline.wait, timeline.wait.command
    # The commands of settle find the local system by themselves.
    if command and env is not None and not command.startswith("settle "):
        command = f"( . {shlex.quote(str(env))}; {command} )"
    return [f"  {wait.sentence}", *([f"  Next: {command}"] if command else [])]
