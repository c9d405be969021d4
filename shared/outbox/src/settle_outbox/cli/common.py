"""What the delivery engine's two command lines share: the service argument and the start."""

from __future__ import annotations

import os
import re
from datetime import timedelta

import click

from settle_outbox.cli.terminal import printable
from settle_outbox.log import configure_logging
from settle_outbox.runtime.failpoints import arm
from settle_outbox.runtime.health import check_health
from settle_outbox.runtime.process import Stop
from settle_outbox.service import Service, load_service, service_names
from settle_outbox.settings import Settings, read_settings

_DURATION = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def read_duration(text: str) -> timedelta:
    """Read a length of time such as ``90s``, ``30m``, ``2h`` or ``7d``: the type of an option.

    Raises:
        click.BadParameter: it has another form, or is too long.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise click.BadParameter(f"{text!r} is no duration; write 90s, 30m, 2h or 7d")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError as error:
        raise click.BadParameter(f"{text!r} is too long") from error


def start(service_name: str, database_url: str | None) -> tuple[Service, Settings]:
    """Find the service, read its settings, set up the logs: the beginning of every command.

    Args:
        service_name: as its entry point has it.
        database_url: from the option; None reads the variable.
    """
    service = load_service(service_name)
    settings = read_settings(service.name, database_url)
    service = service.with_topic_prefix(settings.topic_prefix)
    configure_logging(level=settings.log_level, form=settings.log_format)
    arm(os.environ)
    return service, settings


def stopped_by_signals() -> Stop:
    """A stop that SIGTERM and SIGINT request."""
    stop = Stop()
    stop.listen()
    return stop


def print_health(process: str, service_name: str, max_age_s: float) -> None:
    """Print the state of a service's processes, from the files that they write to HEALTH_DIR.

    Raises:
        StuckError: there is none, or one does not turn.
    """
    service = load_service(service_name)
    directory = os.environ.get("HEALTH_DIR") or None
    lines = check_health(directory, f"{process}-{service.name}", max_age_s).splitlines()
    click.echo("\n".join(map(printable, lines)))


def _complete_service(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in service_names() if name.startswith(incomplete)]


max_age_option = click.option(
    "--max-age",
    "max_age_s",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds without a sign of life that are too many.",
)
database_url_option = click.option(
    "--database-url",
    metavar="URL",
    help="The database of SERVICE, in place of its variable. Other users of this machine see the"
    " arguments of a process: leave a password to PGPASSFILE.",
)
service_argument = click.argument("service", metavar="SERVICE", shell_complete=_complete_service)
