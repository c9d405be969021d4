"""`outbox-relay refused`: see, retry and discard events that the relay could not send."""

from __future__ import annotations

import json
import sys
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import click

from settle_outbox.cli.command import EXIT_FAILED, Group, fail, report_errors
from settle_outbox.cli.common import database_url_option, service_argument, start, transaction
from settle_outbox.cli.repair_options import (
    by_option,
    confirm_count,
    confirm_option,
    dry_run_option,
    json_line,
    json_option,
    note_option,
    plain_row,
)
from settle_outbox.cli.terminal import printable
from settle_outbox.publish.refused_events import discard_refused, read_refused, retry_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, RowMapping


_NAME = "outbox-relay refused"


@click.group("refused", cls=Group)
def refused() -> None:
    """Events that the relay could not send: list, show, retry, discard."""


@refused.command("list")
@service_argument
@database_url_option
@click.option("--discarded", is_flag=True, help="Discarded ones as well.")
@click.option("--limit", default=50, type=click.IntRange(1, 10_000), show_default=True)
@json_option
@report_errors
def list_refused(
    service: str, database_url: str | None, limit: int, *, discarded: bool, as_json: bool
) -> None:
    r"""Show the events of SERVICE that could not be sent, oldest first, and why.

    \b
    Example: outbox-relay refused list orders
    """
    loaded, settings = start(service, database_url)
    any_shown = False
    with transaction(settings, _NAME) as connection:
        for row in read_refused(connection, limit=limit, discarded=discarded):
            any_shown = True
            click.echo(json_line(row) if as_json else _summary(row))
    if not any_shown and not as_json:
        click.echo(f"No refused events in {loaded.name}.")


@refused.command("show")
@service_argument
@click.argument("event_id", metavar="EVENT_ID", type=UUID)
@database_url_option
@json_option
@report_errors
def show_refused(service: str, event_id: UUID, database_url: str | None, *, as_json: bool) -> None:
    r"""Show one refused event of SERVICE, whole.

    \b
    Example: outbox-relay refused show orders 01980000-0000-7000-8000-000000000001
    """
    loaded, settings = start(service, database_url)
    with transaction(settings, _NAME) as connection:
        row = next(read_refused(connection, ids=[event_id], discarded=True), None)
    if row is None:
        fail(f"{loaded.name} has no refused event {event_id}.")
    if as_json:
        click.echo(json_line(row))
        return
    click.echo(_summary(row))
    click.echo(f"    payload {json.dumps(plain_row(row)['payload'])}")


class _Selection(NamedTuple):
    """Which refused events a command changes, and how it reports that.

    Args:
        service: the service that published the events.
        database_url: its database; None reads the variable.
        ids: only these events; empty if `choose_all` is set.
        choose_all: all refused events that are not discarded.
        confirm: how many events the operator expects; None asks on a terminal.
        dry_run: whether to change nothing.
        as_json: whether to print JSON.
    """

    service: str
    database_url: str | None
    ids: tuple[UUID, ...]
    choose_all: bool
    confirm: int | None
    dry_run: bool
    as_json: bool


def _selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a `_Selection`, which is passed to it as `selection`."""

    @service_argument
    @click.argument("ids", nargs=-1, type=UUID, metavar="[EVENT_ID]...")
    @click.option("--all", "choose_all", is_flag=True, help="All that are not discarded.")
    @confirm_option
    @dry_run_option
    @database_url_option
    @json_option
    @wraps(command)
    def wrapper(**options: Any) -> None:
        selection = _Selection(**{name: options.pop(name) for name in _Selection._fields})
        if bool(selection.ids) == selection.choose_all:
            raise click.UsageError("Give either the ids of refused events, or --all.")
        command(selection=selection, **options)

    return wrapper


@refused.command("retry")
@_selection_options
@report_errors
def retry(selection: _Selection) -> None:
    r"""Let the relay of SERVICE send refused events again.

    Correct the cause first. An event that is refused again comes back with its reason. Later
    events of its key may be sent already.

    \b
    Example: outbox-relay refused retry orders 01980000-0000-7000-8000-000000000001
    Example: outbox-relay refused retry orders --all --confirm 3
    """
    _change("retry", selection, retry_refused)


@refused.command("discard")
@_selection_options
@note_option
@by_option
@report_errors
def discard(selection: _Selection, note: str | None, by: str) -> None:
    r"""Decide that refused events of SERVICE are never sent. A replay leaves them out.

    `retry` overrules it later.

    \b
    Example: outbox-relay refused discard orders --all --confirm 3 --note "a test"
    """
    _change("discard", selection, partial(discard_refused, discarded_by=by, note=note))


def _change(
    action: str,
    selection: _Selection,
    change: Callable[[Connection, Sequence[UUID]], set[UUID]],
) -> None:
    loaded, settings = start(selection.service, selection.database_url)
    with transaction(settings, _NAME) as connection:
        known = read_refused(
            connection, ids=selection.ids or None, discarded=not selection.choose_all
        )
        ids = [row["event_id"] for row in known]
        if missing := sorted(str(each) for each in set(selection.ids) - set(ids)):
            fail(f"{loaded.name} has no refused event {', '.join(missing)}. Nothing was done.")
        if selection.dry_run:
            click.echo(f"{len(ids)} to {action}. Nothing was done.")
            return
        if selection.choose_all and ids:
            confirm_count(action, len(ids), selection.confirm)
        changed = change(connection, ids)
    for event_id in ids:
        done = event_id in changed
        if selection.as_json:
            click.echo(json.dumps({"event_id": str(event_id), "done": done}))
        else:
            click.echo(f"{event_id}  {action}: {'done' if done else _NOT_DONE}")
    if len(changed) < len(ids):
        sys.exit(EXIT_FAILED)


_NOT_DONE = "not done: it is discarded already, or gone from the outbox"


def _summary(row: RowMapping) -> str:
    state = f"  discarded by {row['discarded_by']}" if row["discarded_at"] else ""
    event = f"{row['aggregatetype']} {row['aggregate_id']}  type {row['type']}"
    lines = (
        f"{row['event_id']}  {row['refused_at']:%Y-%m-%d %H:%M:%S}{state}",
        f"    {event if row['type'] else 'gone from the outbox'}",
        f"    request {row['request_id'] or '-'}",
        f"    {row['reason']}",
    )
    return "\n".join(map(printable, lines))
