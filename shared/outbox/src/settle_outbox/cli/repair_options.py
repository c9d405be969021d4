"""What the commands that repair dead letters and refused events share."""

from __future__ import annotations

import getpass
import json
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from settle_outbox.consume.dead_letters import text_or_base64

if TYPE_CHECKING:
    from sqlalchemy import RowMapping


def _user_name() -> str:
    """Return the name of the operating system's user. In a container, the user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


# The limit of dead_letter_requests.requested_by; see `storage.migrations`.
REQUESTED_BY_MAX = 200


def _check_length(_: click.Context, __: click.Parameter, text: str) -> str:
    if len(text) > REQUESTED_BY_MAX:
        raise click.BadParameter(f"at most {REQUESTED_BY_MAX} characters")
    return text


json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line, for programs."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would be done.")
confirm_option = click.option(
    "--confirm", type=int, metavar="N", help="With --all: how many you expect."
)
note_option = click.option("--note", help="Why; kept with the answer.")
by_option = click.option(
    "--by",
    default=_user_name,
    callback=_check_length,
    help="Who asks; by default, your user name.",
)


def confirm_count(action: str, count: int, confirmed: int | None) -> None:
    """Make sure that the operator knows how many rows a command changes.

    Args:
        action: what is done, such as ``retry``.
        count: the number of rows.
        confirmed: the number that the operator gave; None asks for it on a terminal.

    Raises:
        click.UsageError: the operator's number is not `count`.
    """
    if confirmed is None and sys.stdin.isatty():
        confirmed = click.prompt(f"Write the number to {action} all {count}", type=int, err=True)
    if confirmed != count:
        raise click.UsageError(f"{count} to {action}: give --confirm {count}. Nothing was done.")


def json_line(row: RowMapping) -> str:
    """Return a row as one line of JSON."""
    return json.dumps(plain_row(row))


def plain_row(row: RowMapping) -> dict[str, Any]:
    """Return a row as JSON can hold it: times in ISO 8601, bytes as text or Base64."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, memoryview | bytes):
        return text_or_base64(bytes(value))
    return str(value) if isinstance(value, UUID) else value
