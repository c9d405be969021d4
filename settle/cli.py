"""settle: the whole stack on one machine."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import time
import uuid
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from settle.demo import Demo
from settle.down import take_down
from settle.stack import running_stack
from settle.state import open_state
from settle.status import read_status
from settle.supervisor import Supervisor
from settle.up import bring_up
from shared.errors import SettleError
from shared.log import configure_logging

if TYPE_CHECKING:
    from collections.abc import Callable

    from settle.stack import Stack

P = ParamSpec("P")
EXIT_FAILED = 1


def _told_in_a_sentence(command: Callable[P, None]) -> Callable[P, None]:
    """Tell expected trouble on stderr, in one sentence, with exit code 1; never a traceback."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SettleError as error:
            _fail(str(error))
        except BrokenPipeError:
            raise  # whoever read our lines has gone; click ends quietly
        except OSError as error:
            _fail(f"{error.strerror or error}: {error.filename}")

    return wrapper


def _fail(sentence: str) -> None:
    click.echo(f"settle: {sentence}", err=True)
    sys.exit(EXIT_FAILED)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("settle"), message="settle %(version)s")
def main() -> None:
    r"""Run both services, with what they need, on this machine.

    Without Docker: PostgreSQL and a broker come from Python packages, unless
    PAYMENTS_DATABASE_URL, ORDERS_DATABASE_URL or KAFKA_BOOTSTRAP_SERVERS name others.

    \b
    Ports: PAYMENTS_PORT (8080), ORDERS_PORT (8081), POSTGRES_PORT (15432), KAFKA_PORT (19092).
    All that is kept lies in one folder: .settle, or the one SETTLE_HOME names.
    """


@main.command()
@_told_in_a_sentence
def up() -> None:
    """Start everything, and return when all of it is ready.

    Where it runs already, what has stopped is started.
    """
    configure_logging(level="WARNING", form="auto")
    began = time.monotonic()
    stack = bring_up(open_state(), click.echo)
    click.echo(f"\nSettle is up, after {time.monotonic() - began:.1f} s.\n")
    click.echo(_next_steps(stack))


def _next_steps(stack: Stack) -> str:
    settle = _as_typed("settle")
    payments, orders = stack.base_url("payments"), stack.base_url("orders")
    return f"""\
  payments   {payments}   (described at {payments}/docs)
  orders     {orders}   (described at {orders}/docs)
  logs       {stack.state.logs}

Try next:
  {settle} demo
  {settle} status
  curl -i {payments}/accounts -H 'Content-Type: application/json' \\
       -d '{{"user_id": "{uuid.uuid4()}"}}'
  curl {orders}/orders
  {settle} down"""


@main.command()
@_told_in_a_sentence
def down() -> None:
    """Stop everything. What is stored stays; orders in flight settle after the next start."""
    stopped = take_down(open_state())
    click.echo("Settle is down." if stopped else "Settle is not running.")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_told_in_a_sentence
def status(*, as_json: bool) -> None:
    r"""Show every process: state, pid, uptime, address.

    \b
    Exit codes: 0 all ready, 1 something is not, 3 nothing runs.
    """
    found = read_status(open_state())
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        for line in found.as_lines():
            click.echo(line)
    sys.exit(found.health)


@main.command()
@_told_in_a_sentence
def demo() -> None:
    """Open an account, deposit, and place two orders: one is paid, one fails for lack of money."""
    state = open_state()
    stack = running_stack(state)
    if stack is None or Supervisor(state.socket).pid() is None:
        raise SettleError(f"Settle is not running: run {_as_typed('settle')} up first.")
    Demo(stack, click.echo).run()


def _as_typed(command: str) -> str:
    """The command as it must be typed here: by its name alone when that finds it."""
    script = Path(sysconfig.get_path("scripts"), command)
    found = shutil.which(command)
    if found is not None and Path(found).absolute() == script:
        return command
    try:
        return str(script.relative_to(Path.cwd()))
    except ValueError:
        return str(script)
