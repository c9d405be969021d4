"""`inbox-consumer dead-letters`: see, retry, discard and restore what could not be applied."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from settle_outbox.cli.command import EXIT_FAILED, Group, fail, report_errors
from settle_outbox.cli.common import (
    database_url_option,
    read_duration,
    service_argument,
    start,
    transaction,
)
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
from settle_outbox.consume.dead_letters import (
    DeadLetterFilter,
    State,
    read_groups,
    read_ids,
    read_newest,
)
from settle_outbox.consume.handler.sessions import make_handler_sessions
from settle_outbox.consume.repair_requests import (
    Action,
    Answer,
    Repair,
    add_requests,
    read_requests,
)
from settle_outbox.consume.repairs import Repaired, Repairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine, RowMapping

    from settle_outbox.service import Service

# Maximum number of repair requests that one transaction writes.
_REQUESTS_AT_ONCE = 10_000
# The state that a dead letter must have before an action.
_STATE_BEFORE = {
    Action.RETRY: State.OPEN,
    Action.DISCARD: State.OPEN,
    Action.RESTORE: State.DISCARDED,
}


_ID = click.IntRange(1, 2**63 - 1)  # a bigint of PostgreSQL


def _filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a `DeadLetterFilter`, which is passed to it as `chosen`."""

    @click.option("--reason", help="With this reason, such as handler_failed.")
    @click.option("--type", "type_", metavar="TYPE", help="Of this event type.")
    @click.option("--key", help="Of records with this key.")
    @click.option("--since", type=read_duration, metavar="AGE", help="Not older than 30m, 2h, 7d.")
    @click.option("--until", type=read_duration, metavar="AGE", help="Older than this.")
    @click.option("--error", metavar="TEXT", help="Whose detail contains this text.")
    @wraps(command)
    def wrapper(
        *,
        reason: str | None,
        type_: str | None,
        key: str | None,
        since: timedelta | None,
        until: timedelta | None,
        error: str | None,
        **options: Any,
    ) -> None:
        now = datetime.now(UTC)
        chosen = DeadLetterFilter(
            reason=reason,
            type=type_,
            key=key,
            since=None if since is None else now - since,
            until=None if until is None else now - until,
            error=error,
        )
        command(chosen=chosen, **options)

    return wrapper


@click.group("dead-letters", cls=Group)
def dead_letters() -> None:
    """Records that could not be applied: list, show, retry, discard, restore.

    A dead letter is open until it is retried (applied) or discarded. Retried and discarded ones are
    deleted after INBOX_RETENTION_S.
    """


@dead_letters.command("list")
@service_argument
@database_url_option
@_filter_options
@click.option(
    "--state",
    type=click.Choice([*(each.value for each in State), "all"]),
    default=State.OPEN.value,
    show_default=True,
    help="In this state.",
)
@click.option("--group", is_flag=True, help="Count them by reason, topic and type instead.")
@click.option("--limit", default=50, type=click.IntRange(1, 10_000), show_default=True)
@json_option
@report_errors
def list_dead_letters(
    service: str,
    database_url: str | None,
    chosen: DeadLetterFilter,
    state: str,
    limit: int,
    *,
    group: bool,
    as_json: bool,
) -> None:
    r"""Show what SERVICE could not apply, newest first, and why.

    \b
    Example: inbox-consumer dead-letters list payments --group
    """
    loaded, settings = start(service, database_url)
    chosen = replace(chosen, state=None if state == "all" else State(state))
    any_shown = False
    with transaction(settings, "inbox-consumer") as connection:
        rows: Iterator[RowMapping] = (
            iter(read_groups(connection, chosen))
            if group
            else read_newest(connection, chosen, limit=limit)
        )
        format_row = _group_line if group else _summary
        for row in rows:
            any_shown = True
            click.echo(json_line(row) if as_json else format_row(row))
    if not any_shown and not as_json:
        which = "" if state == "all" else f"{state} "
        click.echo(f"No {which}dead letters in {loaded.name} match.")


@dead_letters.command("show")
@service_argument
@click.argument("dead_letter_id", metavar="ID", type=_ID)
@database_url_option
@json_option
@report_errors
def show_dead_letter(
    service: str, dead_letter_id: int, database_url: str | None, *, as_json: bool
) -> None:
    r"""Show one dead letter of SERVICE whole, and what was done with it.

    \b
    Example: inbox-consumer dead-letters show payments 12
    """
    loaded, settings = start(service, database_url)
    with transaction(settings, "inbox-consumer") as connection:
        row = next(read_newest(connection, DeadLetterFilter(ids=[dead_letter_id]), limit=1), None)
        requests = read_requests(connection, dead_letter_id)
    if row is None:
        fail(f"There is no dead letter {dead_letter_id} in {loaded.name}.")
    if as_json:
        click.echo(
            json.dumps(plain_row(row) | {"requests": [plain_row(each) for each in requests]})
        )
        return
    click.echo(_summary(row))
    plain = plain_row(row)
    for name in ("key", "headers", "value"):
        click.echo(f"    {name} {json.dumps(plain[name])}")
    for each in requests:
        line = (
            f"    {each['requested_at']:%Y-%m-%d %H:%M:%S}  {each['action']}"
            f" by {each['requested_by']}: {each['answer'] or 'not answered'}"
            f"  {each['detail'] or ''}  {each['note'] or ''}"
        )
        click.echo(printable(line.rstrip()))


def _selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ids, or --all with filters. Both are passed to it as `chosen`."""

    @click.argument("ids", nargs=-1, type=_ID, metavar="[ID]...")
    @click.option(
        "--all",
        "choose_all",
        is_flag=True,
        help="All that the filters choose, oldest first: open ones, or discarded ones to restore.",
    )
    @_filter_options
    @confirm_option
    @wraps(command)
    def wrapper(
        *, ids: tuple[int, ...], choose_all: bool, chosen: DeadLetterFilter, **options: Any
    ) -> None:
        if bool(ids) == choose_all:
            raise click.UsageError("Give either the ids of dead letters, or --all.")
        if ids and chosen != DeadLetterFilter():
            raise click.UsageError("Filters need --all. They cannot be combined with ids.")
        command(chosen=replace(chosen, ids=ids or None), **options)

    return wrapper


def _repair_options(action: Action) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a `Repair`, which is passed to it as `repair`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--force", is_flag=True, hidden=action is not Action.RETRY, help=_FORCE)
        @note_option
        @by_option
        @wraps(command)
        def wrapper(*, force: bool, note: str | None, by: str, **options: Any) -> None:
            command(repair=Repair(action, by, note, force), **options)

        return wrapper

    return decorate


_FORCE = "Retry even if its reason forbids it, or an older dead letter of its key is open."


def _repair_command(action: Action, help_text: str) -> None:
    """Add the command that carries out an action on dead letters."""

    @dead_letters.command(str(action), help=help_text)
    @service_argument
    @_selection_options
    @_repair_options(action)
    @dry_run_option
    @click.option(
        "--by-consumer",
        is_flag=True,
        help="Only write the requests: a consumer of SERVICE carries them out within seconds.",
    )
    @database_url_option
    @json_option
    @report_errors
    def repair(
        service: str,
        database_url: str | None,
        chosen: DeadLetterFilter,
        confirm: int | None,
        repair: Repair,
        *,
        dry_run: bool,
        by_consumer: bool,
        as_json: bool,
    ) -> None:
        loaded, settings = start(service, database_url)
        engine, sessions = make_handler_sessions(loaded, settings)
        ids = _choose(engine, loaded, action, chosen)
        if dry_run:
            _print_choice(engine, ids, as_json=as_json)
            return
        if not ids:
            if not as_json:
                click.echo("No dead letter matches. Nothing was done.")
            return
        if chosen.ids is None:
            confirm_count(action, len(ids), confirm)
        if by_consumer:
            for first in range(0, len(ids), _REQUESTS_AT_ONCE):
                with engine.begin() as connection:
                    add_requests(connection, ids[first : first + _REQUESTS_AT_ONCE], repair)
            click.echo(
                f"Requests written: {len(ids)}. Their answers:"
                f" inbox-consumer dead-letters show {loaded.name} ID",
                err=as_json,
            )
            return
        repairs = Repairs(loaded, sessions, retention_s=settings.inbox_retention_s)
        all_done = True
        for dead_letter_id in ids:
            repaired = repairs.carry_out(dead_letter_id, repair)
            all_done = all_done and repaired.answer is Answer.DONE
            click.echo(_answer_line(repaired, as_json=as_json))
        engine.dispose()
        if not all_done:
            sys.exit(EXIT_FAILED)


_repair_command(
    Action.RETRY,
    "Try to apply dead letters of SERVICE, with the current handler.\n\nNeeds only the database of"
    " SERVICE, and works whether or not its consumer runs. The oldest of a key goes first."
    " A dead letter whose reason is a decision, such as older_than_inbox or unknown_order, needs"
    " --force.\n\n\b\nExample: inbox-consumer dead-letters retry payments 12"
    "\nExample: inbox-consumer dead-letters retry payments --all --reason handler_failed"
    " --confirm 5",
)
_repair_command(
    Action.DISCARD,
    "Decide that dead letters of SERVICE are never applied.\n\nThey can be restored until they"
    " are deleted, after INBOX_RETENTION_S."
    '\n\n\b\nExample: inbox-consumer dead-letters discard payments 12 --note "a test"',
)
_repair_command(
    Action.RESTORE,
    "Open discarded dead letters of SERVICE again."
    "\n\n\b\nExample: inbox-consumer dead-letters restore payments 12",
)


def _choose(
    engine: Engine, service: Service, action: Action, chosen: DeadLetterFilter
) -> list[int]:
    """Return the ids of the dead letters to act on, oldest first."""
    if chosen.ids is None:
        chosen = replace(chosen, state=_STATE_BEFORE[action])
    with engine.connect() as connection:
        known = read_ids(connection, chosen)
    unknown = sorted(set(chosen.ids or ()) - set(known))
    if unknown:
        missing = ", ".join(str(each) for each in unknown)
        fail(f"There is no dead letter {missing} in {service.name}. Nothing was done.")
    return known


def _print_choice(engine: Engine, ids: Sequence[int], *, as_json: bool) -> None:
    chosen = DeadLetterFilter(ids=ids)
    with engine.connect() as connection:
        for row in read_groups(connection, chosen):
            click.echo(json_line(row) if as_json else _group_line(row))
    if not as_json:
        click.echo(f"{len(ids)} dead letters. Nothing was done.")


def _summary(row: RowMapping) -> str:
    state = "" if row["state"] == State.OPEN else f"  {row['state']}"
    place = f"{row['topic']}[{row['partition']}]@{row['offset']}"
    lines = [
        f"#{row['id']}  {row['parked_at']:%Y-%m-%d %H:%M:%S}  {row['reason']}{state}",
        f"    {place}  event {row['event_id'] or '-'}  type {row['type'] or '-'}",
        f"    request {row['request_id'] or '-'}",
        f"    {row['detail']}",
    ]
    if row["last_answer"] is not None:
        lines.append(
            f"    retries: {row['attempts']}; last request {row['last_at']:%Y-%m-%d %H:%M:%S}"
            f" by {row['last_by']}: {row['last_answer']}: {row['last_detail']}"
        )
    return "\n".join(map(printable, lines))


def _group_line(row: RowMapping) -> str:
    return printable(
        f"{row['count']:6}  {row['reason']}  {row['state']}  {row['topic']}  {row['type'] or '-'}"
        f"  {row['first_at']:%Y-%m-%d %H:%M} to {row['last_at']:%Y-%m-%d %H:%M}"
        f"  first #{row['first_id']}"
    )


def _answer_line(repaired: Repaired, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(repaired._asdict())
    return printable(f"#{repaired.dead_letter_id}  {repaired.answer}  {repaired.detail}")
