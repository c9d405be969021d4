"""What outbox-relay and inbox-consumer share: options, the service argument and the start."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from settle_outbox.cli.terminal import printable
from settle_outbox.log import configure_logging
from settle_outbox.runtime.failpoints import arm
from settle_outbox.runtime.health import check_health
from settle_outbox.runtime.process import Stop
from settle_outbox.service import Service, load_service, service_names
from settle_outbox.settings import Settings, read_settings
from settle_outbox.storage.database import make_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

_DURATION = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def read_duration(text: str) -> timedelta:
    """Parse a duration such as ``90s``, ``30m``, ``2h`` or ``7d``.

    Raises:
        click.BadParameter: the text has another form, or the duration is too long.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise click.BadParameter(f"{text!r} is not a duration; write 90s, 30m, 2h or 7d")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError as error:
        raise click.BadParameter(f"{text!r} is too long") from error


def start(
    service_name: str, database_url: str | None, *, needs_kafka: bool = False
) -> tuple[Service, Settings]:
    """Load a service, read its settings, and configure the logs.

    Args:
        service_name: the name of its entry point.
        database_url: the value of the option, or None to read the variable.
        needs_kafka: whether the command talks to Kafka.
    """
    # Load the service first, so that a wrong name is reported as such.
    name = load_service(service_name).name
    settings = read_settings(name, database_url, needs_kafka=needs_kafka)
    configure_logging(level=settings.log_level, form=settings.log_format)
    arm(os.environ)
    return load_service(service_name, settings.topic_prefix), settings


@contextmanager
def transaction(settings: Settings, application_name: str) -> Iterator[Connection]:
    """Connect to the database for one transaction, which commits at the end of the block."""
    engine = make_engine(settings.database_url, application_name=application_name, pool_size=1)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def stop_on_signals() -> Stop:
    """Return a stop that SIGTERM and SIGINT request."""
    stop = Stop()
    stop.listen()
    return stop


def print_health(process: str, service_name: str, max_age_s: float) -> None:
    """Print the state of a service's processes from the files that they write to HEALTH_DIR.

    Raises:
        StuckError: no process is alive, or one of them is stuck.
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
    help="Maximum age of the last heartbeat, in seconds.",
)
database_url_option = click.option(
    "--database-url",
    metavar="URL",
    help="The database of SERVICE, in place of its variable. Other users of this machine can see"
    " the arguments of a process, so put a password into PGPASSFILE.",
)
service_argument = click.argument("service", metavar="SERVICE", shell_complete=_complete_service)
