"""settle: the whole stack on one machine."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import sysconfig
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from settle.audit import audit as run_audit
from settle.audit.run import SECOND_LOOK_S
from settle.audit.shown import show, shown_bars
from settle.audit.targets import find_settings
from settle.demo import Demo
from settle.doctor.examine import examine
from settle.progress import shown_steps
from settle.stack.databases import create_database
from settle.stack.definition import BOOTSTRAP, SERVICES, running_stack
from settle.stack.down import take_down
from settle.stack.logs import NAMES, find_logs, follow, last_lines
from settle.stack.reset import reset as remove_all
from settle.stack.state import find_state, open_state
from settle.stack.status import read_status
from settle.stack.supervisor import Supervisor
from settle.stack.up import bring_up
from settle_outbox.checks.check import Level, worst
from settle_outbox.cli.command import (
    EXIT_FAILED,
    EXPECTED,
    Group,
    fail,
    report_errors,
    sentence,
    version_option,
)
from settle_outbox.errors import SettleError
from settle_outbox.log import configure_logging
from settle_outbox.service import load_service, service_names
from settle_outbox.settings import service_variable

if TYPE_CHECKING:
    from settle.stack.definition import Stack
    from settle.stack.logs import Line
    from settle_outbox.checks.check import Finding

COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
EXIT_NOT_SEEN = 3  # of the audit: nothing is said about what is there
NAME_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")


@click.group(cls=Group)
@version_option("settle")
def main() -> None:
    r"""Run both services, with what they need, on this machine.

    Without Docker: PostgreSQL and a broker come from Python packages, unless
    PAYMENTS_DATABASE_URL, ORDERS_DATABASE_URL or KAFKA_BOOTSTRAP_SERVERS name others.
    BROKER=kafka has Apache Kafka run instead; it needs Java 17 and Maven.

    \b
    Ports: PAYMENTS_PORT (8080), ORDERS_PORT (8081), POSTGRES_PORT (15432), KAFKA_PORT (19092).
    All that is kept lies in one folder: .settle, or the one SETTLE_HOME names.

    \b
    Examples:
      settle up
      settle logs orders-relay --follow
      settle doctor
    """


@main.command()
@report_errors
def up() -> None:
    r"""Start everything, and return when all of it is ready.

    Where it runs already, what has stopped is started, and what runs older code than is here is
    started again. Both databases are migrated. Interrupted, it stops what it has started.

    \b
    Example: settle up
    Example: PAYMENTS_PORT=9080 ORDERS_PORT=9081 settle up
    Example: BROKER=kafka settle up
    """
    configure_logging(level="WARNING", form="auto")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has the second ignored
            signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    with shown_steps() as steps:
        stack = bring_up(open_state(), steps)
    click.echo(f"\nSettle is up, after {time.monotonic() - began:.1f} s.\n")
    click.echo(_next_steps(stack))


def _next_steps(stack: Stack) -> str:
    settle = displayed_command("settle")
    payments, orders = stack.base_url("payments"), stack.base_url("orders")
    return f"""\
  payments   {payments}   (described at {payments}/docs)
  orders     {orders}   (described at {orders}/docs)
  logs       {stack.state.logs}

Try next:
  {settle} demo
  {settle} logs --follow
  {settle} status
  curl -i {shlex.quote(payments)}/accounts -H 'Content-Type: application/json' \\
       -d '{{"user_id": "{uuid.uuid4()}"}}'
  curl {shlex.quote(orders)}/orders
  {settle} down"""


@main.command()
@report_errors
def down() -> None:
    r"""Stop everything. What is stored stays; orders in flight settle after the next start.

    Where nothing runs, that is said, and is no failure.

    \b
    Example: settle down
    """
    stopped = take_down(open_state(), click.echo)
    click.echo("Settle is down." if stopped else "Settle is not running.")


@main.command(epilog="Exit codes: 0 all ready; 1 something is not; 2 wrong usage; 3 nothing runs.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@report_errors
def status(*, as_json: bool) -> None:
    r"""Show every process: state, pid, uptime, address.

    \b
    Example: settle status
    Example: settle status --json
    """
    found = read_status(open_state())
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        for line in found.as_lines():
            click.echo(line)
    sys.exit(found.health)


@main.command()
@report_errors
def demo() -> None:
    r"""Open an account, deposit, and place two orders: one is paid, one fails for lack of money.

    \b
    Example: settle demo
    """
    Demo(_running(), click.echo).run()


@main.command()
@click.argument("name", metavar="SERVICE")
@report_errors
def database(name: str) -> None:
    r"""Make a database for a service of your own, and print how to reach it and the broker.

    The database is on the embedded PostgreSQL, with a role of the same name. It is safe to repeat:
    a database that is there is kept. A shell takes the lines by eval "$(settle database NAME)".

    \b
    Example: settle database notifications
    """
    stack = _running()
    if stack.cluster is None:
        raise SettleError("PostgreSQL is not an embedded one here: make the database on yours.")
    url = create_database(stack.cluster, stack.ports["POSTGRES_PORT"], name)
    click.echo(f"export {service_variable(name, 'DATABASE_URL')}={shlex.quote(url)}")
    click.echo(f"export {BOOTSTRAP}={shlex.quote(stack.bootstrap)}")


def _running() -> Stack:
    state = open_state()
    stack = running_stack(state)
    if stack is None or Supervisor(state.socket).pid() is None:
        raise SettleError(f"Settle is not running: run {displayed_command('settle')} up first.")
    return stack


@main.command(
    epilog="Exit codes: 0 nothing is wrong; 1 something is; 2 wrong usage; 3 it could not look;"
    " 130 interrupted."
)
@click.option(
    "--second-look",
    "second_look_s",
    default=SECOND_LOOK_S,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    help="How long what is under way may take until it counts as wrong.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@report_errors
def audit(second_look_s: float, *, as_json: bool) -> None:
    r"""Reconcile both databases and both topics: is everything delivered and paid exactly once?

    It only reads, and may run while orders are placed. It looks at what PAYMENTS_DATABASE_URL,
    ORDERS_DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS name, else at what runs here.

    \b
    Example: settle audit
    Example: settle audit --json --second-look 60
    """
    try:
        with shown_bars() as bars:
            report = run_audit(
                **find_settings(open_state()), second_look_s=second_look_s, bars=bars
            )
    except EXPECTED as error:
        fail(sentence(error), code=EXIT_NOT_SEEN)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        show(report)
    if not report.clean:
        sys.exit(EXIT_FAILED)


def _complete_process(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in NAMES if name.startswith(incomplete)]


@main.command()
@click.argument("process", required=False, shell_complete=_complete_process)
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until interrupted.")
@click.option(
    "-n",
    "lines",
    default=100,
    show_default=True,
    type=click.IntRange(0, 1_000_000),
    help="How many of the last lines to begin with.",
)
@report_errors
def logs(process: str | None, lines: int, *, following: bool) -> None:
    r"""Show what PROCESS has logged, or all of them, merged by time.

    PROCESS is a name that settle status shows. The files are in the folder that it shows as well.

    \b
    Example: settle logs orders-relay --follow
    Example: settle logs -n 1000 | grep 7808585c-4dcb-4d25-9750-7095259f0bbf
    """
    found = find_logs(open_state(), process)
    try:
        for line in last_lines(found, lines):
            click.echo(_log_line(line, alone=process is not None))
        if following:
            for line in follow(found):
                click.echo(_log_line(line, alone=process is not None))
    except KeyboardInterrupt:
        return  # how one stops following


def _log_line(line: Line, *, alone: bool) -> str:
    if alone:
        return line.text
    colour = NAME_COLOURS[NAMES.index(line.process) % len(NAME_COLOURS)]
    width = max(map(len, NAMES))
    return f"{click.style(f'{line.process:<{width}}', fg=colour)}  {line.text}"


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@report_errors
def reset(*, yes: bool) -> None:
    r"""Stop everything and remove all that is kept: accounts, orders, topics, logs.

    \b
    Example: settle reset
    Example: settle reset --yes
    """
    state = open_state()
    if not yes:
        click.confirm(f"Remove every account, order and log kept in {state.home}?", abort=True)
    removed = remove_all(state, click.echo)
    for path in removed:
        click.echo(f"Removed {path}")
    if not removed:
        click.echo("There is nothing to remove.")


def _complete_service(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in service_names() if name.startswith(incomplete)]


@main.command(epilog="Exit codes: 0 nothing fails; 1 something does; 2 wrong usage.")
@click.argument("service", required=False, shell_complete=_complete_service)
@click.option("--quick", is_flag=True, help="Only what keeps the stack from starting; seconds.")
@click.option("--strict", is_flag=True, help="Exit with 1 for a warning, too.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@report_errors
def doctor(service: str | None, *, quick: bool, strict: bool, as_json: bool) -> None:
    r"""Look for what is wrong, and say what to do about it: one line a check.

    Looks at both services or at SERVICE: those of the stack that runs here, or whatever
    PAYMENTS_DATABASE_URL, ORDERS_DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS name. Nothing is
    changed, and nobody is waited for longer than 20 s.

    \b
    Example: settle doctor
    Example: settle doctor orders --json
    Example: settle doctor --quick
    """
    configure_logging(level="CRITICAL", form="auto")  # what libraries say, the checks say
    services = SERVICES if service is None else (load_service(service).name,)
    checks = []
    for check in examine(find_state(), quick=quick, services=services):
        checks.append(check)
        if not as_json:
            click.echo(_check_line(check))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    if worst(checks) is Level.FAIL or (strict and worst(checks) is Level.WARN):
        sys.exit(EXIT_FAILED)


def _check_line(check: Finding) -> str:
    verdict = click.style(f"{check.verdict:<4}", fg=COLOURS[check.verdict])
    remedy = f" -> {check.remedy}" if check.remedy else ""
    return f"{verdict}  {check.name:<25} {check.found}{remedy}"


def displayed_command(command: str) -> str:
    """The command as it must be typed here: by its name alone when that finds it."""
    script = Path(sysconfig.get_path("scripts"), command)
    found = shutil.which(command)
    if found is not None and Path(found).absolute() == script:
        return command
    try:
        return str(script.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):  # elsewhere, or the folder that one stands in is gone
        return str(script)
