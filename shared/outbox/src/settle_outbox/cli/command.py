"""What all commands of this project share: help, exit codes, colors and errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import click
import psycopg2
from kafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.cli.terminal import never_fail_to_print, printable
from settle_outbox.errors import SettleError, first_line
from settle_outbox.storage.sqlstate import is_login_refused, is_unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells
EXIT_CODES = "Exit codes: 0 done, or stopped as asked; 1 failed; 2 wrong usage; 130 interrupted."
_REMEDIES = {
    errno.ENOSPC: "free some space, then try again",
    errno.EDQUOT: "free some space, then try again",
    errno.EACCES: "make it accessible to this user",
    errno.EPERM: "make it accessible to this user",
    errno.EROFS: "make it writable",
    errno.ENOENT: "if it is part of the installation, run make install",
}
# Errors that are reported in a sentence, because they are no defect of the code.
EXPECTED = (
    *(SettleError, KafkaError, SQLAlchemyError, psycopg2.Error, OSError),
    subprocess.TimeoutExpired,
)


def version_option(distribution: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option --version, which prints the version of a distribution."""
    return click.version_option(package_name=distribution, message="%(prog)s %(version)s")


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Add the exit codes, -h and NO_COLOR (no-color.org) to click's options for a command."""
    context: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
    if os.environ.get("NO_COLOR"):  # click itself checks only whether there is a terminal
        context["color"] = False
    # click keeps the lines of a paragraph after a backspace character. A raw docstring has a
    # backslash and a b in its place.
    text = (options.get("help") or "").replace("\\b\n", "\b\n")
    return {"epilog": EXIT_CODES, "context_settings": context, **options, "help": text}


class Command(click.Command):
    """A command with -h, whose help ends with its exit codes. It obeys NO_COLOR."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_with_defaults(kwargs))


class Group(click.Group):
    """Commands with -h, and exit codes in their help. They obey NO_COLOR."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_with_defaults(kwargs))


def report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Report expected errors as a sentence on stderr, with exit code 1 and without a traceback."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        never_fail_to_print(sys.stdout)
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            fail("Interrupted.", code=EXIT_INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends without a message, because the reader of the output has ended
        except EXPECTED as error:
            fail(error_sentence(error))

    return wrapper


def error_sentence(error: Exception) -> str:
    """Return what happened and what to do, on one line."""
    if isinstance(error, SettleError):
        message = str(error)
    elif isinstance(error, KafkaError):
        message = f"Kafka cannot be reached or refuses: {error}. Check KAFKA_BOOTSTRAP_SERVERS."
    elif isinstance(error, OSError):
        what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        remedy = _REMEDIES.get(error.errno or 0)
        message = f"{what}: {remedy}." if remedy else f"{what}."
    elif isinstance(error, subprocess.TimeoutExpired):
        message = (
            f"{error.cmd[0]} has not ended after {error.timeout:.0f} s: see settle doctor --quick."
        )
    elif is_login_refused(error):
        message = f"The database refuses the login: {_database_message(error)}"
    elif is_unreachable(error):
        message = f"The database cannot be reached: {_database_message(error)}"
    else:
        message = f"The database refuses: {_database_message(error)}"
    return " ".join(message.split())


def _database_message(error: Exception) -> str:
    return first_line(getattr(error, "orig", None) or error)


def fail(message: str, *, code: int = EXIT_FAILED) -> NoReturn:
    """End the process with a message on stderr."""
    click.echo(f"{click.style('Error:', fg='red')} {printable(message)}", err=True)
    sys.exit(code)
