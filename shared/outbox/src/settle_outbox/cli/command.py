"""The manners that every command line here shares: help, exit codes, colours, and errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import click
import psycopg2
from kafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.cli.terminal import never_fail_to_print, printable
from settle_outbox.errors import SettleError
from settle_outbox.storage.sqlstate import is_unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
EXIT_CODES = "Exit codes: 0 done, or stopped as asked; 1 failed; 2 wrong usage; 130 interrupted."
_REMEDIES = {
    errno.ENOSPC: "free some space, then try again",
    errno.EDQUOT: "free some space, then try again",
    errno.EACCES: "make it accessible to this user",
    errno.EPERM: "make it accessible to this user",
    errno.EROFS: "make it writable",
    errno.ENOENT: "if it is part of the installation, run make install",
}
# What a command may run into through no fault of the code.
EXPECTED = (
    *(SettleError, KafkaError, SQLAlchemyError, psycopg2.Error, OSError),
    subprocess.TimeoutExpired,
)


def version_option(distribution: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command line its --version, which is that of a distribution."""
    return click.version_option(package_name=distribution, message="%(prog)s %(version)s")


def _explained(given: dict[str, Any]) -> dict[str, Any]:
    """What click makes a command of, with its exit codes, and its lines kept where it says so."""
    # click looks for a backspace; in a raw docstring, which a backslash asks for, it is two signs.
    told = (given.get("help") or "").replace("\\b\n", "\b\n")
    return {"epilog": EXIT_CODES, **given, "help": told}


class Command(click.Command):
    """A command whose help ends with its exit codes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **_explained(kwargs))


class Group(click.Group):
    """Commands that answer to -h, tell their exit codes, and obey NO_COLOR (no-color.org)."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **_explained(kwargs))

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Leave out colours where they are not wanted; click itself looks at the terminal alone."""
        if os.environ.get("NO_COLOR"):
            extra["color"] = False
        return super().make_context(info_name, args, parent, **extra)


def report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print an expected error to stderr, in one sentence, and exit with 1: never a traceback."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        never_fail_to_print(sys.stdout)
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            fail("Interrupted.", code=EXIT_INTERRUPTED)
        except BrokenPipeError:
            raise  # whoever read our lines has gone; click ends quietly
        except EXPECTED as error:
            fail(sentence(error))

    return wrapper


def sentence(error: Exception) -> str:
    """What happened and what to do about it, on one line."""
    if isinstance(error, SettleError):
        said = str(error)
    elif isinstance(error, KafkaError):
        said = f"Kafka cannot be reached or refuses: {error}. Check KAFKA_BOOTSTRAP_SERVERS."
    elif isinstance(error, OSError):
        what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        remedy = _REMEDIES.get(error.errno or 0)
        said = f"{what}: {remedy}." if remedy else f"{what}."
    elif isinstance(error, subprocess.TimeoutExpired):
        said = (
            f"{error.cmd[0]} has not ended after {error.timeout:.0f} s: see settle doctor --quick."
        )
    else:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        trouble = "cannot be reached" if is_unreachable(error) else "refuses"
        said = f"The database {trouble}: {reason}"
    return " ".join(said.split())


def fail(said: str, *, code: int = EXIT_FAILED) -> None:
    """End the process with a sentence on stderr."""
    click.echo(f"{click.style('Error:', fg='red')} {printable(said)}", err=True)
    sys.exit(code)
